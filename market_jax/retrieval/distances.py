"""Distances between features, as one matrix product.

Both metrics are `bias - query @ gallery.T` once the features are prepared, so whoever needs them
a block at a time (ranking) computes them as everybody else does. `search` has the same formulas in
its jitted step, which takes features as they are.
"""

import numpy as np

from market_jax.errors import InputError
from market_jax.registry import choose
from market_jax.typing import Array

__all__ = ["compute", "finite", "normalize", "of_pairs", "prepare", "real", "same_size"]


def real(name: str, features: Array) -> np.ndarray:
    """Features as an array, or an error: real numbers [M, D].

    Args:
      name: whose features they are, for the message.
      features: [M, D].

    Raises:
      InputError: they have another shape, or are no real numbers.
    """
    features = np.asarray(features)
    if features.ndim != 2 or features.shape[1] == 0:
        raise InputError(f"{name} features are {features.shape}; they must be [images, D]")
    if not np.issubdtype(features.dtype, np.number) or np.iscomplexobj(features):
        raise InputError(f"{name} features are {features.dtype}; they must be real numbers")
    return features


def finite(name: str, features: Array) -> np.ndarray:
    """The same, of which all are finite: [M, D] float32.

    Args:
      name: whose features they are, for the message.
      features: [M, D].

    Raises:
      InputError: they have another shape, are no real numbers, or one is not finite.
    """
    features = np.ascontiguousarray(real(name, features), np.float32)
    sums = features @ np.ones(features.shape[1], np.float32)  # one pass, not finite where one is
    if not np.isfinite(sums).all():
        row = int(np.flatnonzero(~np.isfinite(sums))[0])
        raise InputError(f"{name} features: row {row} is not finite")
    return features


def normalize(features: Array) -> np.ndarray:
    """Rows of length one: [M, D] float32; a row of zeros stays."""
    features = np.asarray(features, np.float32)
    length = np.sqrt(np.einsum("md,md->m", features, features))
    return features / np.maximum(length, np.finfo(np.float32).tiny)[:, None]


def _cosine(query: np.ndarray, gallery: np.ndarray):
    return normalize(query), normalize(gallery), np.ones(len(gallery), np.float32)


def _euclidean(query: np.ndarray, gallery: np.ndarray):
    return 2 * query, gallery, np.einsum("gd,gd->g", gallery, gallery)


_METRICS = {"cosine": _cosine, "euclidean": _euclidean}


def same_size(query: np.ndarray, gallery: np.ndarray) -> None:
    """Refuses features of different sizes.

    Args:
      query: [Q, D].
      gallery: [G, D].

    Raises:
      InputError: D differs.
    """
    if query.shape[1] != gallery.shape[1]:
        raise InputError(f"query and gallery features differ: {query.shape}, {gallery.shape}")


def prepare(query: Array, gallery: Array, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features such that `bias - query @ gallery.T` orders the gallery by the metric.

    Args:
      query: [Q, D].
      gallery: [G, D].
      metric: "cosine", 1 - cosine similarity; or "euclidean", the squared distance less the
        query's own square, which orders alike.

    Returns:
      query [Q, D], gallery [G, D], bias [G], float32.

    Raises:
      InputError: shapes do not fit, a value is not finite, or the metric is unknown.
    """
    query, gallery = finite("query", query), finite("gallery", gallery)
    same_size(query, gallery)
    return choose(metric, _METRICS, "metric")(query, gallery)


def compute(query: Array, gallery: Array, metric: str = "cosine") -> np.ndarray:
    """The whole matrix: [Q, G] float32, 1 - cosine similarity or squared Euclidean distances.

    Args:
      query: [Q, D].
      gallery: [G, D].
      metric: "cosine" or "euclidean".

    Raises:
      InputError: as `prepare`.
    """
    left, right, bias = prepare(query, gallery, metric)
    result = left @ right.T
    np.subtract(bias, result, out=result)
    if metric == "euclidean":
        result += np.einsum("qd,qd->q", left, left)[:, None] / 4
    return np.maximum(result, 0, out=result)


def of_pairs(first: Array, second: Array, metric: str = "cosine") -> np.ndarray:
    """The distance of each row of features from the same row of others: [M] float32.

    Args:
      first: [M, D].
      second: [M, D].
      metric: "cosine" or "euclidean" (squared).
    """
    if choose(metric, {"cosine": True, "euclidean": False}, "metric"):
        first, second = normalize(first), normalize(second)
        return np.maximum(1 - np.einsum("md,md->m", first, second), 0)
    difference = np.asarray(first, np.float32) - second
    return np.einsum("md,md->m", difference, difference)
