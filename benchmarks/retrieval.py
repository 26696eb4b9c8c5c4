"""What the ranking, re-ranking and search benchmarks share: arrays, processes, the table."""

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.workers import Worker
from market_jax.files import write_atomically
from market_jax.report import tables

MARKET = (3368, 15913)  # queries, gallery without junk
DIMENSIONS, IDENTITIES, CAMERAS = 512, 750, 6
DISTRACTORS = 2798 / 15913
OURS, LIMIT = "market_jax", "matrix product"
SLOW = 20.0  # seconds: what takes longer is timed once

PEER = flags.DEFINE_string("peer", None, "Python that has the peers; without it, ours alone.")
SCALES = flags.DEFINE_list("scales", ["0.25", "1", "4"], "Galleries, in Market-1501's.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Counted rounds, in which the variants alternate.")
JSON = flags.DEFINE_string("json", None, "Where to keep every measured time.")


def make_arrays(path: Path, gallery: int, seed: int = 0) -> None:
    """Made features of Market-1501's shape: identities around centres, distractors anywhere."""
    rng = np.random.default_rng(seed)
    queries = MARKET[0]
    nobody = round(DISTRACTORS * gallery)
    gallery_pids = np.concatenate(
        [rng.integers(1, IDENTITIES + 1, gallery - nobody), np.zeros(nobody, int)]
    )
    query_pids = np.arange(queries) % IDENTITIES + 1
    centers = rng.normal(size=(IDENTITIES + 1, DIMENSIONS))

    def draw(pids):
        spread = rng.normal(size=(len(pids), DIMENSIONS))
        own = np.where((pids > 0)[:, None], centers[pids], rng.normal(size=spread.shape))
        return (own + 2.5 * spread).astype(np.float32)

    np.savez(
        path,
        query=draw(query_pids),
        gallery=draw(gallery_pids),
        query_pids=query_pids,
        gallery_pids=gallery_pids,
        query_camids=rng.integers(1, CAMERAS + 1, queries),
        gallery_camids=rng.integers(1, CAMERAS + 1, gallery),
    )


def is_ours(variant: str) -> bool:
    """True for what runs in this environment."""
    return variant == LIMIT or variant.startswith(OURS)


def start(task: str, variant: str, arrays: Path) -> Worker:
    """The process of a variant."""
    program = [sys.executable, "-m", "benchmarks.retrieval_jax"]
    if not is_ours(variant):
        program = [PEER.value, str(Path(__file__).parent / "retrieval_peers.py")]
    return Worker(program, {"task": task, "variant": variant, "arrays": str(arrays)})


def measure(task: str, variants: Sequence[str], gallery: int) -> dict[str, dict]:
    """Variant -> what its process said when it was ready, and "seconds" of every round."""
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "arrays.npz"
        make_arrays(arrays, gallery)
        workers = {variant: start(task, variant, arrays) for variant in variants}
        try:
            times = {variant: [worker.ready["seconds"]] for variant, worker in workers.items()}
            for _ in range(ROUNDS.value):
                for variant, worker in workers.items():
                    if times[variant][0] < SLOW:
                        times[variant].append(worker.run())
        finally:
            for worker in workers.values():
                worker.close()
    return {v: w.ready | {"seconds": times[v][1:] or times[v]} for v, w in workers.items()}


def rows(gallery: int, result: dict[str, dict]) -> list[tuple[str, ...]]:
    """The table's lines: time, ratios to ours and to the matrix product, memory, agreement."""
    medians = {v: statistics.median(r["seconds"]) for v, r in result.items()}
    ours = result[OURS]
    lines = []
    for variant, report in result.items():
        same = ""
        if variant != LIMIT:
            gaps = [abs(report["values"][k] - ours["values"][k]) for k in ours["values"]]
            values = ", ".join(f"{k} {v:.5f}" for k, v in report["values"].items())
            same = values if max(gaps) <= 1e-5 else f"{values} (differs by {max(gaps):.1e})"
        lines.append(
            (
                f"{gallery:,}, {variant}",
                f"{medians[variant]:.3f}",
                f"{medians[variant] / medians[OURS]:.2f}",
                f"{medians[variant] / medians[LIMIT]:.2f}",
                f"{report['bytes'] / 2**30:.2f}",
                same,
            )
        )
    return lines


def run(task: str, variants: Sequence[str], largest: dict[str, float]) -> None:
    """Measures and prints.

    Args:
      task: "ranking", "reranking", "search", or a linkage.
      variants: besides ours and the matrix product.
      largest: variant -> the largest scale that it is run at; it would take too much beyond.
    """
    lines, results = [], {}
    for scale in map(float, SCALES.value):
        gallery = round(scale * MARKET[1])
        chosen = [v for v in variants if PEER.value or is_ours(v)]
        chosen = [v for v in chosen if scale <= largest.get(v, scale)]
        result = measure(task, [LIMIT, OURS, *chosen], gallery)
        results[gallery] = result
        lines += rows(gallery, result)
        print(*("  ".join(line) for line in lines[-len(result) :]), sep="\n", flush=True)
        if JSON.value:
            write_atomically(Path(JSON.value), json.dumps(results, indent=1) + "\n")
    header = ("gallery, variant", "s", "to ours", "to product", "GiB", "values")
    print(f"\n{MARKET[0]} queries x {DIMENSIONS} dimensions\n{tables.align(header, lines)}")
