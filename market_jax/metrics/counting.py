"""Ranks by counting: the rank of a true match is 1 plus the number of images before it.

`rank_row` is the definition, in NumPy and for any type. `rank_features` computes the same from
features: compiled, a block of queries at a time, on the accelerator if there is one.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

MISSED = 2**40  # the rank of a match that is not in the answer
_BYTES = 2**25  # of distances at a time, about


def rank_row(distances: np.ndarray, true: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Ranks, from 1, of one query's true matches; ties are broken by position.

    An image with an infinite distance is not in the answer: its rank is `MISSED`.

    Args:
      distances: the query's distances [G], of any ordered type, without NaN.
      true: positions of the true matches in the gallery, int [P].
      removed: positions that are not counted, int [E].

    Returns:
      int64 [P].
    """
    ranks = np.empty(len(true), np.int64)
    left_out = distances[removed]
    for i, position in enumerate(true):
        value = distances[position]
        if value == np.inf:
            ranks[i] = MISSED + i  # ranks of a query are all different
            continue
        ranks[i] = np.count_nonzero(distances < value) + 1
        ranks[i] += np.count_nonzero(distances[:position] == value)
        ranks[i] -= np.count_nonzero(left_out < value)
        ranks[i] -= np.count_nonzero((left_out == value) & (removed < position))
    return ranks


@jax.jit
def _rank_block(query, gallery, bias, true, removed):
    """Ranks int32 [B, P] of the true matches of a block of queries; 0 where `true` is -1."""
    product = lax.dot_general(
        query, gallery, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST
    )
    distances = bias - product

    def at(positions):
        return jnp.take_along_axis(distances, jnp.maximum(positions, 0), axis=1)

    value, place = at(true)[:, :, None], true[:, :, None]
    everyone = jnp.arange(distances.shape[1], dtype=jnp.int32)
    before = _count_before(distances[:, None], everyone, value, place)
    left_out = _count_before(
        jnp.where(removed >= 0, at(removed), jnp.inf)[:, None], removed[:, None], value, place
    )
    return jnp.where(true >= 0, 1 + before - left_out, 0)


def _count_before(distances, places, value, place):
    """How many of the distances on the last axis come before a value at a place.

    One reduction of two sums: XLA fuses the comparisons into it, so that [B, P, G] is never made,
    and on a CPU it vectorises this where it does not a single sum (30 times the time).
    """
    smaller, tied = distances < value, (distances == value) & (places < place)
    zero = jnp.zeros((), jnp.int32)
    sums = lax.reduce(
        [smaller.astype(jnp.int32), tied.astype(jnp.int32)],
        [zero, zero],
        lambda a, b: [a[0] + b[0], a[1] + b[1]],
        (2,),
    )
    return sums[0] + sums[1]


def rank_features(
    query: np.ndarray,
    gallery: np.ndarray,
    bias: np.ndarray,
    true: np.ndarray,
    removed: np.ndarray,
    *,
    block: int | None = None,
) -> np.ndarray:
    """Ranks of every query's true matches by the distances `bias - query @ gallery.T`.

    Queries are taken in blocks, those with similar numbers of matches together, to save work.

    Args:
      query: features of the queries, [Q, D] float32.
      gallery: features of the gallery, [G, D] float32.
      bias: a number that is added to the distances of each gallery image, [G] float32.
      true: positions of the true matches in the gallery, int32 [Q, P]; ascending, then -1.
      removed: positions that are not counted, int32 [Q, E]; ascending, then -1.
      block: queries at a time; by default so many that distances take some 32 MiB.

    Returns:
      Ranks, int64 [Q, P]; 0 where `true` is -1.
    """
    block = block or even_block(len(query), len(gallery))
    counts = (true >= 0).sum(axis=1)
    order = np.argsort(counts, kind="stable")
    order = order[np.searchsorted(counts[order], 1) :]  # without the queries that have no match
    gallery, bias = jax.device_put((gallery, bias))
    removed = _widen(removed, _power_of_two(removed.shape[1]))
    pending = []
    for start in range(0, len(order), block):
        rows = order[start : start + block]
        width = _power_of_two(counts[rows[-1]])
        filled = np.resize(rows, block)  # the last block is as large as the others
        block_true = _widen(true[filled, :width], width)
        ranks = _rank_block(query[filled], gallery, bias, block_true, removed[filled])
        pending.append((rows, ranks))
    result = np.zeros(true.shape, np.int64)
    for rows, ranks in pending:
        width = min(ranks.shape[1], true.shape[1])
        result[rows, :width] = np.asarray(ranks)[: len(rows), :width]
    return result


def even_block(queries: int, gallery: int) -> int:
    """Queries at a time, for blocks of equal size with some 32 MiB of distances at most.

    Args:
      queries: the number of queries.
      gallery: the number of gallery images.
    """
    most = int(np.clip(_BYTES // (4 * max(gallery, 1)), 8, 1024))
    return -(-queries // max(-(-queries // most), 1))


def _power_of_two(n: int) -> int:
    """At least n and 4: few widths, so that few programs are compiled."""
    return max(4, 1 << (int(n) - 1).bit_length()) if n > 0 else 4


def _widen(positions: np.ndarray, width: int) -> np.ndarray:
    return np.pad(positions, ((0, 0), (0, width - positions.shape[1])), constant_values=-1)
