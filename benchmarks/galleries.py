"""Galleries by engine: how long they take to fill and to search, how much memory, what they find.

python -m benchmarks.galleries [--rows=20000,1000000] [--engines=exact,milvus]
python -m benchmarks.galleries --rows=10000000 --engines=mapped,ivf_pq --folder=DIR

exact    the features in memory, market_jax.retrieval.search.top_k
milvus   market_jax.galleries.store, embedded (`pip install "market_jax[gallery]"`), with fields
server   the same on the Milvus server at --server; its memory is not that of this process
lancedb  LanceDB (`pip install lancedb`), the same fields, without an index
mapped   features of float16 in a mapped file, exact
ivf_pq   faiss's IVF,PQ64 of the mapped file; 256 lists, 4096 above a million rows; 64 looked into

Rows are made: a person's direction and noise, ten pictures each. Each engine runs in a process of
its own. A search is of one query and its 20 nearest, alone and where one camera of six is wanted;
medians in ms. Recall is beside the exact search of the same features.
"""

import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from absl import app, flags

from market_jax import scripts
from market_jax.errors import InputError
from market_jax.registry import choose
from market_jax.report import tables
from market_jax.retrieval import search

ROWS = flags.DEFINE_list("rows", ["20000", "1000000"], "Sizes of galleries.")
ENGINES = flags.DEFINE_list("engines", ["exact", "milvus"], "What is measured.")
SIZE = flags.DEFINE_integer("size", 512, "Numbers of an embedding.", lower_bound=1)
QUERIES = flags.DEFINE_integer("queries", 50, "Searches of each kind.", lower_bound=1)
FOLDER = flags.DEFINE_string("folder", None, "Where files are written; else a temporary folder.")
SERVER = flags.DEFINE_string("server", "http://127.0.0.1:19530", "Where `server` is found.")
INDEX = flags.DEFINE_string("index", "FLAT", "Milvus's kind of index, of `milvus` and `server`.")
ONE = flags.DEFINE_string("one", None, "Measure this engine here, and print JSON.")

_K, _BLOCK, _CAMERAS, _OF_A_PERSON = 20, 10_000, 6, 10
HEADER = ("rows", "engine", "fill, s", "search, ms", "one camera, ms", "recall", "GiB", "disk, GiB")


def blocks(rows: int, size: int) -> Iterator[np.ndarray]:
    """Yields made embeddings, float32 [n, size], the same ones at every call.

    Args:
      rows: the number of them all.
      size: D.
    """
    for start in range(0, rows, _BLOCK):
        rng = np.random.default_rng(start)
        count = min(_BLOCK, rows - start)
        people = rng.standard_normal((-(-count // _OF_A_PERSON), size), np.float32)
        noise = rng.standard_normal((count, size), np.float32)
        yield np.repeat(people, _OF_A_PERSON, axis=0)[:count] + 0.9 * noise


def queries(rows: int, size: int, count: int) -> np.ndarray:
    """Other pictures of people in the gallery, float32 [count, size].

    Args:
      rows: of the gallery.
      size: D.
      count: the number of queries.
    """
    first = next(blocks(rows, size))
    rng = np.random.default_rng(1)
    at = rng.integers(0, len(first), count)
    return first[at] + 0.5 * rng.standard_normal((count, size)).astype(np.float32)


def cameras(start: int, count: int) -> np.ndarray:
    """Who took the pictures from a position on."""
    return np.arange(start, start + count) % _CAMERAS


Search = Callable[[np.ndarray, int | None], list[int]]  # query, camera -> positions


def fill_exact(rows: int, size: int, folder: Path) -> Search:
    """All features in memory."""
    gallery = np.concatenate(list(blocks(rows, size)))
    whose = cameras(0, rows)

    def find(query, camera):
        if camera is None:
            return search.top_k(query[None], gallery, _K)[1][0].tolist()
        chosen = np.flatnonzero(whose == camera)
        return chosen[search.top_k(query[None], gallery[chosen], _K)[1][0]].tolist()

    return find


def fill_milvus(rows: int, size: int, folder: Path | str) -> Search:
    """The gallery's own store."""
    from market_jax.galleries.store import Store

    store = Store(folder, "benchmark", size=size, index=INDEX.value, create=True)
    usual = {"path": "/crops", "sequence": 1, "frame": 1, "time": -1.0, "probabilities": [0.5] * 41}
    at = 0
    for block in blocks(rows, size):
        who = cameras(at, len(block)).tolist()
        store.add(
            [
                usual | {"id": str(at + i), "camid": who[i], "embedding": row}
                for i, row in enumerate(block)
            ]
        )
        at += len(block)
    return lambda query, camera: [
        int(hit["id"])
        for hit in store.search(query, _K, "" if camera is None else f"camid == {camera}")
    ]


def fill_server(rows: int, size: int, folder: Path) -> Search:
    """The same in a server, in place of what an earlier call has left there."""
    import pymilvus

    from market_jax.galleries.store import PREFIX

    pymilvus.MilvusClient(SERVER.value).drop_collection(f"{PREFIX}benchmark")
    return fill_milvus(rows, size, SERVER.value)


def fill_lancedb(rows: int, size: int, folder: Path) -> Search:
    """LanceDB, without an index."""
    try:
        import lancedb
        import pyarrow
    except ImportError:
        raise InputError("lancedb needs: pip install lancedb") from None
    database, table, at = lancedb.connect(folder), None, 0
    for block in blocks(rows, size):
        flat = pyarrow.array(block.ravel())
        columns = {
            "id": np.arange(at, at + len(block)),
            "camid": cameras(at, len(block)),
            "probabilities": pyarrow.FixedSizeListArray.from_arrays(
                pyarrow.array(np.full(41 * len(block), 0.5, np.float32)), 41
            ),
            "vector": pyarrow.FixedSizeListArray.from_arrays(flat, size),
        }
        batch = pyarrow.table(columns)
        table = database.create_table("people", batch) if table is None else table
        if at:
            table.add(batch)
        at += len(block)

    def find(query, camera):
        asked = table.search(query).distance_type("cosine").limit(_K).select(["id"])
        asked = asked if camera is None else asked.where(f"camid = {camera}", prefilter=True)
        return [row["id"] for row in asked.to_list()]

    return find


def fill_mapped(rows: int, size: int, folder: Path) -> Search:
    """A mapped file, by blocks."""
    gallery = search.store(folder / "gallery.npy", blocks(rows, size), (rows, size), "float16")
    return lambda query, _: search.top_k(query[None], gallery, _K)[1][0].tolist()


def fill_ivf_pq(rows: int, size: int, folder: Path) -> Search:
    """An approximate index of the mapped file, which is written if it is not there."""
    path = folder / "gallery.npy"
    if not path.exists():
        search.store(path, blocks(rows, size), (rows, size), "float16")
    gallery = np.load(path, mmap_mode="r")
    lists = 4096 if rows > 1_000_000 else 256
    index = search.build_index(gallery, f"IVF{lists},PQ64", probes=64)
    return lambda query, _: search.search_index(index, query[None], _K)[1][0].tolist()


FILL = {
    "exact": fill_exact,
    "milvus": fill_milvus,
    "server": fill_server,
    "lancedb": fill_lancedb,
    "mapped": fill_mapped,
    "ivf_pq": fill_ivf_pq,
}
WITHOUT_CAMERAS = ("mapped", "ivf_pq")


def measure(engine: str, rows: int, folder: Path) -> dict:
    """Fills a gallery and searches it: the times, the memory, and what was found.

    Args:
      engine: a name in `FILL`.
      rows: the size of the gallery.
      folder: where its files are written.
    """
    asked = queries(rows, SIZE.value, QUERIES.value)
    begin = time.perf_counter()
    find = choose(engine, FILL, "engine")(rows, SIZE.value, folder)
    filled = time.perf_counter() - begin
    kinds = (None,) if engine in WITHOUT_CAMERAS else (None, 3)
    found, times = {}, {}
    for camera in kinds:
        find(asked[0], camera)
        spent = []
        found[str(camera)] = []
        for query in asked:
            begin = time.perf_counter()
            found[str(camera)].append(find(query, camera))
            spent.append(1000 * (time.perf_counter() - begin))
        times[str(camera)] = statistics.median(spent)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**30
    return {"fill": filled, "times": times, "found": found, "memory": memory, "disk": disk}


def in_process(engine: str, rows: int, folder: Path) -> dict:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.galleries", f"--one={engine}", f"--rows={rows}"]
    command += [f"--size={SIZE.value}", f"--queries={QUERIES.value}", f"--folder={folder}"]
    command += [f"--server={SERVER.value}", f"--index={INDEX.value}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise InputError(found.stderr.strip().splitlines()[-1])
    return json.loads(found.stdout.splitlines()[-1])


def row(rows: int, engine: str, found: dict, exact: dict) -> tuple[str, ...]:
    """A row of the table."""
    recalled = [search.recall(found["found"][key], exact["found"][key]) for key in found["found"]]
    times = [f"{found['times'][key]:.1f}" for key in found["times"]]
    times += ["-"] * (2 - len(times))
    shares = " / ".join(f"{value:.3f}" for value in recalled)
    sizes = f"{found['memory']:.2f}", f"{found['disk']:.2f}"
    return f"{rows:,}", engine, f"{found['fill']:.1f}", *times, shares, *sizes


def main(_) -> None:
    """Measures and prints a table."""
    with scripts.messages("galleries", "nothing was kept"):
        sizes = [int(rows) for rows in ROWS.value]
        if ONE.value:
            print(json.dumps(measure(ONE.value, sizes[0], Path(FOLDER.value))))
            return
        shown = []
        for rows in sizes:
            exact = None
            with tempfile.TemporaryDirectory(dir=FOLDER.value) as folder:
                for engine in ENGINES.value:
                    shared = engine in WITHOUT_CAMERAS  # one file serves both
                    place = Path(folder, "mapped" if shared else engine)
                    place.mkdir(exist_ok=True)
                    found = in_process(engine, rows, place)
                    exact = exact or found  # the first engine is exact
                    shown.append(row(rows, engine, found, exact))
                    print(tables.align(HEADER, shown[-1:]), flush=True)
                    if not shared:
                        shutil.rmtree(place)
        print(tables.align(HEADER, shown))


if __name__ == "__main__":
    app.run(main)
