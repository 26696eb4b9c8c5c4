"""Transforms of features before distances: (query, gallery, *, ...) -> (query, gallery).

Each moves features, the column "feature", towards those of their neighbours. What it is given is
left as it is.
"""

from typing import Annotated

import numpy as np

from market_jax.errors import InputError
from market_jax.retrieval import distances as distances_
from market_jax.retrieval import search
from market_jax.typing import Columns, PositiveInt, Range

__all__ = [
    "alpha_query_expansion",
    "average_query_expansion",
    "database_augmentation",
    "multi_query",
]

Sides = tuple[Columns, Columns]
Exponent = Annotated[float, Range(0, 100)]  # above it rounding errors of similarities count


def _prepare(columns: Columns, metric: str) -> np.ndarray:
    """The features as the metric sees them [M, D]: for "cosine" of length one."""
    feature = np.asarray(columns["feature"], np.float32)
    return distances_.normalize(feature) if metric == "cosine" else feature


def _expand(
    features: np.ndarray, others: np.ndarray, nearest: np.ndarray, alpha: float, metric: str
) -> np.ndarray:
    """The mean of features [M, D] and their nearest others [M, k].

    Each neighbour weighs similarity ** alpha, the feature itself 1. For "cosine" the result has
    length one.
    """
    units, other_units = features, others
    if metric != "cosine":
        units, other_units = map(distances_.normalize, (features, others))
    result, total = np.array(features, np.float32), np.ones(len(features), np.float32)
    for rows in nearest.T:  # one neighbour of each at a time: [M, k, D] may not fit into memory
        similarity = np.einsum("md,md->m", units, other_units[rows])
        weight = np.maximum(similarity, 0) ** alpha
        result += weight[:, None] * others[rows]
        total += weight
    return distances_.normalize(result) if metric == "cosine" else result / total[:, None]


def alpha_query_expansion(
    query: Columns,
    gallery: Columns,
    *,
    k: PositiveInt = 10,
    alpha: Exponent = 3.0,
    metric: str = "cosine",
) -> Sides:
    """A query's feature averaged with its k nearest of the gallery, by similarity ** alpha.

    Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", 2018.

    Args:
      query: "feature" [Q, D].
      gallery: "feature" [G, D].
      k: the number of neighbours, 1 to G.
      alpha: exponent of the cosine similarity, 0 to 100; 0 weighs all alike.
      metric: by which the nearest are found.

    Raises:
      InputError: k is out of range.
    """
    left, right = _prepare(query, metric), _prepare(gallery, metric)
    if not 1 <= k <= len(right):
        raise InputError(f"k is {k}; it must be 1 to {len(right)}, the gallery's size")
    nearest = search.top_k(left, right, k, metric=metric)[1]
    return query | {"feature": _expand(left, right, nearest, alpha, metric)}, gallery


def average_query_expansion(
    query: Columns, gallery: Columns, *, k: PositiveInt = 5, metric: str = "cosine"
) -> Sides:
    """A query's feature averaged with those of its k nearest.

    Chum, Philbin, Sivic, Isard, Zisserman, "Total Recall", ICCV 2007.

    Args:
      query: "feature" [Q, D].
      gallery: "feature" [G, D].
      k: the number of neighbours, 1 to G.
      metric: by which the nearest are found.

    Raises:
      InputError: k is out of range.
    """
    return alpha_query_expansion(query, gallery, k=k, alpha=0.0, metric=metric)


def database_augmentation(
    query: Columns,
    gallery: Columns,
    *,
    k: PositiveInt = 5,
    alpha: Exponent = 3.0,
    metric: str = "cosine",
) -> Sides:
    """Every gallery feature averaged with its k nearest of the gallery, by similarity ** alpha.

    Turcot, Lowe, "Better matching with fewer features", 2009; Arandjelovic, Zisserman 2012.

    Args:
      query: "feature" [Q, D].
      gallery: "feature" [G, D].
      k: the number of neighbours, 1 to G - 1.
      alpha: exponent of the cosine similarity, 0 to 100; 0 weighs all alike.
      metric: by which the nearest are found.

    Raises:
      InputError: k is out of range.
    """
    right = _prepare(gallery, metric)
    if not 1 <= k < len(right):
        raise InputError(f"k is {k}; it must be 1 to {len(right) - 1}, less than the gallery")
    nearest = search.top_k(right, right, k + 1, metric=metric)[1]
    nearest = _without_itself(nearest, k)
    return query, gallery | {"feature": _expand(right, right, nearest, alpha, metric)}


def _without_itself(nearest: np.ndarray, k: int) -> np.ndarray:
    """Of k + 1 nearest, k that are not the image itself; [M, k]."""
    itself = nearest == np.arange(len(nearest))[:, None]
    itself[~itself.any(axis=1), -1] = True  # among equals it is not listed: the last goes
    return nearest[~itself].reshape(-1, k)


def multi_query(query: Columns, gallery: Columns, *, metric: str = "cosine") -> Sides:
    """A query's feature averaged with those of the same person from the same camera.

    That is Market-1501's multiple-query protocol: such images are known to belong to the query,
    and do not count as matches. They are taken from the gallery.

    Args:
      query: "feature" [Q, D], "pid", "camid".
      gallery: "feature" [G, D], "pid", "camid".
      metric: for "cosine" features of length one are averaged.

    Raises:
      InputError: an image's camera is not known.
    """
    for side in (query, gallery):
        if np.min(side["camid"], initial=0) < 0:
            raise InputError("multi_query needs every image's camera; some have none")
    left, right = _prepare(query, metric), _prepare(gallery, metric)
    pooled, count = left.copy(), np.ones(len(left), np.float32)
    for i, (pid, camid) in enumerate(zip(query["pid"], query["camid"], strict=True)):
        own = right[(gallery["pid"] == pid) & (gallery["camid"] == camid)]
        pooled[i] += own.sum(axis=0)
        count[i] += len(own)
    return query | {"feature": pooled / count[:, None]}, gallery
