"""Searching only images whose attributes agree with the query's (APR, Lin et al. 2019)."""

import numpy as np

from market_jax.typing import Array


def agreements(query: Array, gallery: Array) -> np.ndarray:
    """In how many attributes queries and gallery images agree: int [Q, G].

    Args:
      query: the queries' classes, int [Q, A].
      gallery: the gallery's classes, int [G, A].
    """
    query, gallery = np.asarray(query), np.asarray(gallery)
    counts = np.zeros((len(query), len(gallery)), np.int16)
    for own, others in zip(query.T, gallery.T, strict=True):
        counts += own[:, None] == others
    return counts
