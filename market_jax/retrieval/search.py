"""The nearest of a gallery of any size: exact, in blocks, sharded over devices.

The gallery may be an array in memory or one mapped from a file (`store`, `np.load(path,
mmap_mode="r")`): a piece of it is held at a time.
"""

import functools
import os
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from market_jax import devices
from market_jax.errors import InputError
from market_jax.registry import choose
from market_jax.retrieval import distances
from market_jax.typing import Array

__all__ = ["build_index", "recall", "search_index", "store", "top_k"]

_GROUP = 16  # gallery images that are first looked at by their best
_PIECE = 2**24  # bytes of the gallery at a time; a CPU faults in the memory of more each time
_BLOCK = 2**25  # bytes of distances at a time
_TRAINED_ON = 2**18  # images that an approximate index learns its lists from


def _best(scores: Array, k: int) -> tuple[Array, Array]:
    """The k highest scores of each row and their positions; the first of equals first.

    The k highest lie in the k groups with the highest best: sorting out groups is less work than
    sorting out scores.
    """
    rows, size = scores.shape
    if size < 4 * k * _GROUP:
        return lax.top_k(scores, k)
    scores = jnp.pad(scores, ((0, 0), (0, -size % _GROUP)), constant_values=-jnp.inf)
    grouped = scores.reshape(rows, -1, _GROUP)
    groups = jnp.sort(lax.top_k(jnp.max(grouped, axis=-1), k)[1], axis=-1)
    candidates = jnp.take_along_axis(grouped, groups[..., None], axis=1).reshape(rows, -1)
    best, at = lax.top_k(candidates, k)
    return best, jnp.take_along_axis(groups, at // _GROUP, axis=1) * _GROUP + at % _GROUP


@functools.lru_cache(maxsize=32)
def _searcher(mesh: Mesh, k: int, metric: str):
    """Jitted (query, gallery, size) -> scores and positions [B, k], the lowest score [B], and more.

    Features come as they are, with the gallery padded to what the mesh divides. A distance is the
    query's offset less its score. The last output has the position of a row that is not finite, or
    one beyond the gallery.
    """

    def local(query, gallery, size):
        gallery = gallery.astype(jnp.float32)
        product = lax.dot_general(
            query, gallery, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST
        )
        squares = jnp.sum(gallery * gallery, axis=1)
        if metric == "cosine":
            tiny = np.finfo(np.float32).tiny
            scores = product / jnp.maximum(jnp.sqrt(squares), tiny)
        else:
            scores = 2 * product - squares
        rows = jnp.arange(len(gallery)) + lax.axis_index("data") * len(gallery)
        scores = jnp.where(rows < size, scores, -jnp.inf)
        best, at = _best(scores, min(k, scores.shape[1]))
        lowest = jnp.min(jnp.where(rows < size, scores, jnp.inf), axis=1, keepdims=True)
        bad = jnp.min(jnp.where(jnp.isfinite(squares), size, rows))
        return best, rows[at], lowest, bad[None]

    split = PartitionSpec(None, "data")
    sharded = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data"), PartitionSpec()),
        out_specs=(split, split, split, PartitionSpec("data")),
    )

    @jax.jit
    def search(query, gallery, size):
        best, at, lowest, bad = sharded(query, gallery, size)
        if mesh.size > 1:
            best, order = lax.top_k(best, k)
            at = jnp.take_along_axis(at, order, axis=1)
        return best, at, jnp.min(lowest, axis=1), jnp.min(bad)

    return search


def top_k(
    query: Array,
    gallery: Array,
    k: int,
    *,
    metric: str = "cosine",
    mesh: Mesh | None = None,
    farthest: bool = False,
    piece: int | None = None,
) -> tuple[np.ndarray, ...]:
    """The k nearest of the gallery for each query, exactly.

    Args:
      query: [Q, D].
      gallery: [G, D], any array that gives rows when sliced.
      k: the number of answers, at most G.
      metric: "cosine" or "euclidean" (squared).
      mesh: the devices that share the gallery; by default all of this process.
      farthest: also return the distance of the farthest image of the gallery.
      piece: gallery images at a time; by default some 16 MiB.

    Returns:
      Distances float32 [Q, k], ascending, and positions int64 [Q, k]; the first in the gallery
      of equals first. With `farthest`, also [Q].

    Raises:
      InputError: k is not 1 to G, or features do not fit, are not finite, or are too large to be
        squared.
    """
    size = len(gallery)
    if not 1 <= k <= size:
        raise InputError(f"k is {k}; it must be 1 to {size}, the size of the gallery")
    query = distances.finite("query", query)
    if choose(metric, {"cosine": True, "euclidean": False}, "metric"):
        query, offset = distances.normalize(query), np.ones(len(query), np.float32)
    else:
        offset = np.einsum("qd,qd->q", query, query)
    mesh = mesh or devices.make_mesh(jax.local_devices())
    piece = max(piece or _PIECE // (4 * query.shape[-1]), k)
    found = None
    for start in range(0, size, piece):
        rows = distances.real("gallery", gallery[start : min(start + piece, size)])
        distances.same_size(query, rows)
        room = min(_few_sizes(max(len(rows), k)), piece)
        best, at, lowest, bad = _search_piece(query, rows, room, k, metric, mesh)
        if bad < len(rows):
            raise InputError(f"gallery features: row {start + bad} is not finite, or too large")
        near, far = (np.maximum(offset - side.T, 0).T for side in (best, lowest))
        new = (near, at + start, far)
        found = new if found is None else _merge(found, new, k)
    return found if farthest else found[:2]


def _few_sizes(size: int) -> int:
    """The power of two from there on: of few sizes, little is compiled."""
    return 1 << max(size - 1, 0).bit_length()


def _merge(found, new, k):
    """The k nearest of two pieces; at equal distances those of the first come first."""
    values, positions = (np.concatenate(pair, axis=1) for pair in zip(found[:2], new, strict=False))
    order = np.argsort(values, axis=1, kind="stable")[:, :k]
    near, at = (np.take_along_axis(a, order, axis=1) for a in (values, positions))
    return near, at, np.maximum(found[2], new[2])


def _search_piece(query, gallery, room, k, metric, mesh):
    """What `_searcher` says of a piece of the gallery, filled up to a size, for all queries."""
    if gallery.dtype not in (np.float16, np.float32):
        gallery = gallery.astype(np.float32)
    size, missing = len(gallery), room + -room % mesh.size - len(gallery)
    if missing:
        gallery = np.pad(gallery, ((0, missing), (0, 0)))
    gallery = jax.device_put(gallery, NamedSharding(mesh, PartitionSpec("data")))
    block = min(int(np.clip(_BLOCK // (4 * room), 8, 1024)), _few_sizes(len(query)))
    search = _searcher(mesh, k, metric)
    parts = []
    for start in range(0, len(query), block):
        rows = np.resize(np.arange(start, min(start + block, len(query))), block)
        parts.append(search(query[rows], gallery, size))
    *sides, bad = zip(*jax.device_get(parts), strict=True)
    best, at, lowest = (np.concatenate(side)[: len(query)] for side in sides)
    return best, at.astype(np.int64), lowest, min(bad)


def recall(found: Array, exact: Array) -> float:
    """The share of the exact nearest that an approximate search has found.

    Args:
      found: positions [Q, any].
      exact: positions [Q, k].
    """
    hits = [len(np.intersect1d(f, e)) for f, e in zip(found, exact, strict=True)]
    return float(np.mean(hits)) / np.shape(exact)[1]


def store(
    path: Path, blocks: Iterable[np.ndarray], shape: tuple[int, int], dtype: str = "float32"
) -> np.ndarray:
    """Writes features to a .npy file a block at a time, which appears whole, by a rename.

    Args:
      path: where the file is written.
      blocks: [m, D] each.
      shape: (M, D) of all.
      dtype: float32, or float16 to halve the file.

    Returns:
      The features, mapped from the file: [M, D].

    Raises:
      InputError: the blocks do not make up the shape.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        mapped = np.lib.format.open_memmap(temporary, "w+", np.dtype(dtype), tuple(shape))
        done = 0
        for block in blocks:
            if block.shape[1:] != (shape[1],) or done + len(block) > shape[0]:
                raise InputError(f"{path}: a block {block.shape} after {done} rows of {shape}")
            mapped[done : done + len(block)] = block
            done += len(block)
        if done != shape[0]:
            raise InputError(f"{path}: {done} rows were given; the shape is {tuple(shape)}")
        mapped.flush()
        del mapped
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


def build_index(
    gallery: Array, kind: str = "IVF1024,Flat", *, metric: str = "cosine", probes: int = 16
):
    """An approximate index of the gallery, by faiss (Johnson, Douze, Jegou 2017).

    It learns from some images of the gallery, drawn at random, and takes the gallery in pieces.

    Args:
      gallery: [G, D], any array that gives rows when sliced or indexed.
      kind: what faiss's `index_factory` knows: "IVF1024,Flat", "HNSW32", "IVF4096,PQ64", ...
      metric: "cosine" or "euclidean".
      probes: lists that an IVF index looks into.

    Returns:
      The index, for `search_index`.

    Raises:
      InputError: faiss is not installed, or refuses the kind or the gallery.
    """
    try:
        import faiss
    except ImportError:
        raise InputError("approximate search needs: pip install 'market_jax[faiss]'") from None
    cosine = choose(metric, {"cosine": True, "euclidean": False}, "metric")
    kinds = faiss.METRIC_INNER_PRODUCT if cosine else faiss.METRIC_L2

    def rows(at) -> np.ndarray:
        some = np.ascontiguousarray(gallery[at], np.float32)
        return distances.normalize(some) if cosine else some

    size, dimensions = gallery.shape
    sample = np.random.default_rng(0).permutation(size)[:_TRAINED_ON]
    piece = max(_PIECE // (4 * dimensions), 1)
    try:
        index = faiss.index_factory(dimensions, kind, kinds)
        index.train(rows(np.sort(sample)))
        for start in range(0, size, piece):
            index.add(rows(slice(start, start + piece)))
    except RuntimeError as error:
        raise InputError(f"faiss makes no index {kind!r}: {error}") from None
    if isinstance(index, faiss.IndexIVF):
        index.nprobe = probes
    return index


def search_index(index, query: Array, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest by an approximate index; positions are -1 where it found fewer.

    Args:
      index: of `build_index`.
      query: [Q, D].
      k: the number of answers.
    """
    query = np.ascontiguousarray(query, np.float32)
    if index.metric_type == 0:  # inner product
        similarity, at = index.search(distances.normalize(query), k)
        return 1 - similarity, at
    return index.search(query, k)
