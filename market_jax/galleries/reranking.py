"""Re-ranks the nearest pictures of a gallery: those alone are looked at, not the whole of it."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from market_jax import registry
from market_jax.retrieval import chain


def bind(text: str) -> Callable:
    """A re-ranker in words, that needs nothing but the answers.

    Args:
      text: "k_reciprocal k1=20".

    Raises:
      InputError: there is no such re-ranker or argument, or it learns from training images.
    """
    spec = registry.read_words(text, chain.RERANKERS, "re-ranker")
    return registry.bind(spec, chain.RERANKERS, "re-ranker", metric=registry.LATER)


def apply(
    vector: np.ndarray, rows: Sequence[dict[str, Any]], rerankers: Sequence[Callable]
) -> list[dict[str, Any]]:
    """Rows in the order of re-ranked distances, which they get; what is not in the answer, not.

    Args:
      vector: the query's embedding, float [D].
      rows: the nearest rows, with "embedding" [D].
      rerankers: from `bind`, one after the other.
    """
    rerankers = [_with_neighbours(rerank, len(rows) + 1) for rerank in rerankers]
    query = {"feature": np.asarray(vector, np.float32)[None]}
    gallery = {"feature": np.array([row["embedding"] for row in rows], np.float32)}
    distances = chain.apply(query, gallery, rerankers=rerankers)[0]
    order = np.argsort(distances, kind="stable")
    return [rows[i] | {"distance": float(distances[i])} for i in order if np.isfinite(distances[i])]


def _with_neighbours(rerank: functools.partial, most: int) -> Callable:
    """A re-ranker that looks at no more neighbours than there are pictures."""
    parameters = inspect.signature(rerank).parameters
    fewer = {k: most for k in ("k1", "k2") if k in parameters and parameters[k].default > most}
    return functools.partial(rerank, **fewer)
