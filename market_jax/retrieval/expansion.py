"""Stages that move features towards their neighbours', and take the distances anew."""

import numpy as np

from market_jax.errors import InputError
from market_jax.retrieval import distances as distances_
from market_jax.retrieval import search
from market_jax.typing import Array, Columns

__all__ = [
    "alpha_query_expansion",
    "average_query_expansion",
    "database_augmentation",
    "multi_query",
]


def _expand(features, others, at, weights) -> np.ndarray:
    """Features [M, D] plus the weighted sum of the others at [M, k]."""
    result = np.array(features, np.float32)
    for column, weight in zip(at.T, weights.T, strict=True):
        result += weight[:, None] * others[column]
    return distances_.normalize(result)


def alpha_query_expansion(
    query: Columns, gallery: Columns, distances: Array, *, k: int = 10, alpha: float = 3.0
) -> np.ndarray:
    """A query's feature plus its k nearest of the gallery, each weighted by similarity ** alpha.

    Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", 2018.

    Args:
      query: with "feature" [Q, D].
      gallery: with "feature" [G, D].
      distances: [Q, G], by which the nearest are found.
      k: how many, 1 to G.
      alpha: 0 weights all alike.

    Returns:
      Cosine distances [Q, G].

    Raises:
      InputError: k is out of range.
    """
    left, right = (distances_.normalize(side["feature"]) for side in (query, gallery))
    distances = np.asarray(distances)
    if not 1 <= k <= distances.shape[1]:
        raise InputError(f"k is {k}; it must be 1 to {distances.shape[1]}, the gallery's size")
    at = np.argpartition(distances, k - 1, axis=1)[:, :k]
    similarity = np.einsum("qd,qkd->qk", left, right[at])
    weights = np.maximum(similarity, 0) ** alpha
    return distances_.compute(_expand(left, right, at, weights), right)


def average_query_expansion(
    query: Columns, gallery: Columns, distances: Array, *, k: int = 5
) -> np.ndarray:
    """A query's feature averaged with those of its k nearest; else as `alpha_query_expansion`.

    Chum, Philbin, Sivic, Isard, Zisserman, "Total Recall", ICCV 2007.
    """
    return alpha_query_expansion(query, gallery, distances, k=k, alpha=0.0)


def database_augmentation(
    query: Columns, gallery: Columns, distances: Array, *, k: int = 5, alpha: float = 3.0
) -> np.ndarray:
    """Every gallery feature plus its k nearest of the gallery, weighted by similarity ** alpha.

    Turcot, Lowe, "Better matching with fewer features", 2009; Arandjelovic, Zisserman 2012.

    Args:
      query: with "feature" [Q, D].
      gallery: with "feature" [G, D].
      distances: [Q, G]; not looked at.
      k: how many, 1 to G - 1.
      alpha: 0 weights all alike.

    Returns:
      Cosine distances [Q, G].

    Raises:
      InputError: k is out of range.
    """
    right = distances_.normalize(gallery["feature"])
    if not 1 <= k < len(right):
        raise InputError(f"k is {k}; it must be 1 to {len(right) - 1}, less than the gallery")
    near, at = search.top_k(right, right, k + 1)
    weights = np.maximum(1 - near, 0) ** alpha
    weights[at == np.arange(len(right))[:, None]] = 0  # itself
    return distances_.compute(query["feature"], _expand(right, right, at, weights))


def multi_query(query: Columns, gallery: Columns, distances: Array) -> np.ndarray:
    """A query's feature averaged with those of the same person from the same camera.

    That is Market-1501's multiple-query protocol: such images are known to belong to the query,
    and do not count as matches. They are taken from the gallery.

    Args:
      query: with "feature" [Q, D], "pid", "camid".
      gallery: with "feature" [G, D], "pid", "camid".
      distances: [Q, G]; not looked at.

    Returns:
      Cosine distances [Q, G].
    """
    left, right = (distances_.normalize(side["feature"]) for side in (query, gallery))
    pooled = left.copy()
    for i, (pid, camid) in enumerate(zip(query["pid"], query["camid"], strict=True)):
        pooled[i] += right[(gallery["pid"] == pid) & (gallery["camid"] == camid)].sum(axis=0)
    return distances_.compute(pooled, right)
