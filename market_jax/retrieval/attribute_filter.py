"""Searching only images whose attributes agree with the query's (APR, Lin et al. 2019)."""

import numpy as np

from market_jax.typing import Array


def agreements(query: Array, gallery: Array) -> np.ndarray:
    """In how many attributes queries and gallery images agree: uint8 [Q, G].

    Args:
      query: the queries' classes, int [A, Q].
      gallery: the gallery's classes, int [A, G]; it is fast where these are of one byte.
    """
    counts = np.zeros((query.shape[1], gallery.shape[1]), np.uint8)
    for own, others in zip(query, gallery, strict=True):
        counts += own[:, None] == others
    return counts
