"""Vectors of a batch, their pairs, and its hardest triplets (Hermans, Beyer & Leibe 2017)."""

import jax
import jax.numpy as jnp

from market_jax.typing import Array

__all__ = ["hardest", "pairs", "squared_distances", "unit_length"]


def unit_length(x: Array, axis: int = -1) -> Array:
    """Vectors divided by their length, float32; one of zeros stays so, with a finite gradient.

    Args:
      x: the vectors, [..., D].
      axis: the axis along which they lie.
    """
    x = x.astype(jnp.float32)
    squares = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))


def squared_distances(features: Array) -> Array:
    """[N, D] -> squared Euclidean distances of all pairs [N, N]."""
    squares = jnp.sum(jnp.square(features), axis=1)
    return jnp.maximum(squares[:, None] + squares - 2 * features @ features.T, 0)


def pairs(pids: Array) -> tuple[Array, Array]:
    """Which images show the same person, and which another one: two bool [N, N].

    Args:
      pids: int [N]; 0 and below are nobody, who is in no pair.

    Returns:
      Where two different images are of the same person; and where they are of two persons.
    """
    somebody = (pids > 0)[:, None] & (pids > 0)
    same = (pids[:, None] == pids) & somebody
    return same & ~jnp.eye(len(pids), dtype=bool), somebody & ~same


def hardest(distances: Array, pids: Array, meets: Array | bool = True) -> tuple[Array, Array]:
    """Of each image the farthest of the same person and the nearest of another: two [N].

    Args:
      distances: [N, N].
      pids: int [N]; 0 and below are nobody, who is neither a positive nor a negative of anybody.
      meets: which are compared, bool [N, N]; True compares all.

    Returns:
      Distances; where there is no such image the first is -inf and the second inf.
    """
    same, other = pairs(pids)
    farthest = jnp.max(jnp.where(same & meets, distances, -jnp.inf), axis=1)
    nearest = jnp.min(jnp.where(other & meets, distances, jnp.inf), axis=1)
    return farthest, nearest
