"""Hardest triplets of a batch (Hermans, Beyer & Leibe 2017)."""

import jax.numpy as jnp

from market_jax.typing import Array

__all__ = ["hardest", "squared_distances"]


def squared_distances(features: Array) -> Array:
    """[N, D] -> squared Euclidean distances of all pairs [N, N]."""
    squares = jnp.sum(jnp.square(features), axis=1)
    return jnp.maximum(squares[:, None] + squares - 2 * features @ features.T, 0)


def hardest(distances: Array, pids: Array) -> tuple[Array, Array]:
    """Of each image the farthest of the same person and the nearest of another: two [N].

    Args:
      distances: [N, N].
      pids: int [N]; 0 and below are nobody, who is neither a positive nor a negative of anybody.

    Returns:
      Distances; where there is no such image the first is -inf and the second inf.
    """
    itself = jnp.eye(len(pids), dtype=bool)
    somebody = (pids > 0)[:, None] & (pids > 0)
    same = (pids[:, None] == pids) & somebody
    farthest = jnp.max(jnp.where(same & ~itself, distances, -jnp.inf), axis=1)
    nearest = jnp.min(jnp.where(somebody & ~same, distances, jnp.inf), axis=1)
    return farthest, nearest
