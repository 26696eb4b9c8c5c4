"""Transforms before distances and re-rankers after, by name and one after the other."""

from collections.abc import Callable, Sequence

import numpy as np

from market_jax.registry import accepts, names_of
from market_jax.retrieval import (
    centroids,
    distances,
    k_reciprocal,
    mahalanobis,
    spatio_temporal,
    transforms,
)
from market_jax.typing import Columns

__all__ = ["RERANKERS", "TRANSFORMS", "apply"]

TRANSFORMS = names_of(transforms, mahalanobis)  # (query, gallery) -> (query, gallery)
RERANKERS = names_of(k_reciprocal, centroids, spatio_temporal)  # and distances -> distances


def apply(
    query: Columns,
    gallery: Columns,
    *,
    transforms: Sequence[Callable] = (),
    rerankers: Sequence[Callable] = (),
    metric: str = "cosine",
) -> np.ndarray:
    """Distances [Q, G] of a query's and a gallery's features, each step using what came before.

    Args:
      query: "feature" [Q, D].
      gallery: "feature" [G, D].
      transforms: (query, gallery) -> (query, gallery), before distances. One with an attribute
        `metric_after` has made features that are compared by that metric from then on.
      rerankers: (query, gallery, distances) -> distances, after.
      metric: "cosine" or "euclidean"; handed to what has an argument of that name.
    """

    def settings(function):
        return {"metric": metric} if accepts(function, "metric") else {}

    for transform in transforms:
        query, gallery = transform(query, gallery, **settings(transform))
        metric = getattr(getattr(transform, "func", transform), "metric_after", metric)
    result = distances.compute(query["feature"], gallery["feature"], metric)
    for rerank in rerankers:
        result = rerank(query, gallery, result, **settings(rerank))
    return result
