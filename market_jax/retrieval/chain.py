"""Transforms before distances and re-rankers after, by name and one after the other."""

from collections.abc import Callable, Sequence

import numpy as np

from market_jax import progress
from market_jax.errors import InputError
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

__all__ = ["RERANKERS", "TRANSFORMS", "apply", "transform_all"]

TRANSFORMS = names_of(transforms, mahalanobis)  # (query, gallery) -> (query, gallery)
RERANKERS = names_of(k_reciprocal, centroids, spatio_temporal)  # and distances -> distances


def _function(step: Callable) -> Callable:
    """The function of a step whose arguments may be bound."""
    return getattr(step, "func", step)


def _name(step: Callable) -> str:
    return getattr(_function(step), "__name__", type(step).__name__)


def _settings(function: Callable, metric: str) -> dict[str, str]:
    """The metric, for a function that has an argument of that name."""
    return {"metric": metric} if accepts(function, "metric") else {}


def _must_be_first(step: Callable) -> bool:
    return getattr(_function(step), "must_be_first", False)


def _among(query: Columns, gallery: Columns, rerank: Callable, metric: str) -> np.ndarray:
    """What a re-ranker says of all images, the queries first: [Q + G, Q + G]."""
    shared = [name for name in query if name in gallery]
    all_ = {name: np.concatenate([query[name], gallery[name]]) for name in shared}
    result = apply(all_, all_, rerankers=[rerank], metric=metric)
    np.fill_diagonal(result, 0.0)
    return result


def transform_all(
    query: Columns, gallery: Columns, transforms: Sequence[Callable], metric: str = "cosine"
) -> tuple[Columns, Columns, str]:
    """Both sides after all transforms, and the metric by which they are compared from then on.

    Args:
      query: "feature" [Q, D].
      gallery: "feature" [G, D].
      transforms: (query, gallery) -> (query, gallery). One with an attribute `metric_after` has
        made features that are compared by that metric from then on.
      metric: "cosine" or "euclidean"; handed to what has an argument of that name.
    """
    for transform in transforms:
        with progress.waiting(_name(transform)):
            query, gallery = transform(query, gallery, **_settings(transform, metric))
        metric = getattr(_function(transform), "metric_after", metric)
    return query, gallery, metric


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
      transforms: before distances, see `transform_all`.
      rerankers: (query, gallery, distances) -> distances, after. One with an attribute
        `must_be_first` reads distances as the metric's own, and says how far any two images are;
        one after it with an argument `among` is told so of all of them.
      metric: "cosine" or "euclidean"; handed to what has an argument of that name.

    Raises:
      InputError: another re-ranker comes before one that must be first; or as they do.
    """
    for rerank in rerankers[1:]:
        if _must_be_first(rerank):
            raise InputError(
                f"re-ranker {_name(rerank)!r} must be the first: it reads distances as "
                "similarities, which they are no longer after another one"
            )
    query, gallery, metric = transform_all(query, gallery, transforms, metric)
    result = distances.compute(query["feature"], gallery["feature"], metric)
    for number, rerank in enumerate(rerankers):
        settings = _settings(rerank, metric)
        if number == 1 and _must_be_first(rerankers[0]) and accepts(rerank, "among"):
            settings["among"] = _among(query, gallery, rerankers[0], metric)
        with progress.waiting(_name(rerank)):
            result = rerank(query, gallery, result, **settings)
    return result
