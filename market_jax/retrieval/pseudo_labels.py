"""Labels from distances alone: clusters by density, and which of their images to trust."""

import itertools
from typing import NamedTuple

import numpy as np
from scipy import sparse

from market_jax.errors import InputError
from market_jax.retrieval.jaccard import jaccard
from market_jax.typing import Array, Fraction, NonNegative, Positive, PositiveInt

__all__ = ["jaccard_dbscan"]

OUTLIER = -1


def dbscan(distances: sparse.csr_array, eps: float, min_samples: int = 4) -> np.ndarray:
    """Clusters by density (DBSCAN, Ester et al. 1996, by scikit-learn).

    An image with `min_samples` images within `eps` of it, itself among them, is in a cluster with
    all of these. One image alone is no cluster.

    Args:
      distances: [M, M], of near pairs; a pair without an entry is farther than `eps`.
      eps: how near is near, above 0.
      min_samples: how many images near it an image needs, 1 or more.

    Returns:
      The number of each image's cluster int64 [M], counted from 0; `OUTLIER` where it has none.

    Raises:
      InputError: eps or min_samples is out of range.
    """
    if eps <= 0 or min_samples < 1:
        raise InputError(
            f"eps is {eps} and min_samples is {min_samples}; they must be above 0, and 1 or more"
        )
    from sklearn import cluster  # slow to import

    labels = cluster.DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(
        sparse.csr_matrix(distances)
    )
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    return _renumber(np.where((labels >= 0) & (sizes[labels] > 1), labels, OUTLIER))


def reach(distances: sparse.csr_array, min_samples: int = 4) -> np.ndarray:
    """The least `eps` for which `dbscan` has an image in a cluster, were one image a cluster too.

    Args:
      distances: [M, M], of near pairs, with the diagonal.
      min_samples: as in `dbscan`.

    Returns:
      [M]; 1 where the near pairs show none.
    """
    pointers, values = distances.indptr, distances.data
    rows = [values[a:b] for a, b in itertools.pairwise(pointers)]
    # the distance within which an image has enough others
    core = np.array(
        [
            np.partition(r, min_samples - 1)[min_samples - 1] if len(r) >= min_samples else 1.0
            for r in rows
        ]
    )
    return np.minimum.reduceat(np.maximum(values, core[distances.indices]), pointers[:-1])


def _renumber(labels: np.ndarray) -> np.ndarray:
    """The same clusters, numbered from 0 without gaps."""
    result = np.full(len(labels), OUTLIER, np.int64)
    known = labels >= 0
    result[known] = np.unique(labels[known], return_inverse=True)[1]
    return result


class Clusters(NamedTuple):
    """Labels that a clustering gives.

    Attributes:
      labels: int64 [M], the clusters from 0; `OUTLIER` where an image is in none that is trusted.
      threshold: how independent a cluster had to be, see `trust`; None where nothing says it.
    """

    labels: np.ndarray
    threshold: float | None


def jaccard_dbscan(
    features: Array,
    threshold: float | None = None,
    /,
    *,
    k1: PositiveInt = 30,
    k2: PositiveInt = 6,
    eps: Positive = 0.6,
    min_samples: PositiveInt = 4,
    gap: NonNegative = 0.0,
    quantile: Fraction = 0.9,
) -> Clusters:
    """Clusters of features by the density of their Jaccard distances.

    Args:
      features: [M, D].
      threshold: of the first clustering of a training, for those after it; None for the first.
      k1: neighbours that the Jaccard distance looks at.
      k2: neighbours that an encoding is averaged over.
      eps: how near is near, above 0.
      min_samples: how many images near it an image needs.
      gap: how much tighter and looser the clusterings are that `trust` looks at; 0 trusts all.
      quantile: the share of the first clusters that are independent, 0 to 1.

    Raises:
      InputError: there are fewer images than neighbours, or the gap is not below eps.
    """
    if gap >= eps:
        raise InputError(f"gap is {gap}; it must be below eps, {eps}")
    distances = jaccard(features, k1=k1, k2=k2, below=min(eps + gap, 1.0))
    labels = dbscan(distances, eps, min_samples)
    if not gap:
        return Clusters(labels, None)
    tighter, looser = (dbscan(distances, eps + change, min_samples) for change in (-gap, gap))
    return trust(labels, tighter, looser, threshold=threshold, quantile=quantile)


def trust(
    labels: Array,
    tighter: Array,
    looser: Array,
    *,
    threshold: float | None = None,
    quantile: float = 0.9,
) -> Clusters:
    """Keeps independent clusters, and of their images the compact ones (SpCL, Ge et al. 2020).

    A cluster is independent where a looser clustering hardly changes it: of its images' values of
    1 - IoU with their looser cluster, the least is at most the threshold. An image is compact where
    a tighter clustering leaves it together with as much of the cluster as any image is left with.

    Args:
      labels: the clusters int [M]; `OUTLIER` is none.
      tighter: the clusters with a smaller eps.
      looser: the clusters with a larger eps.
      threshold: of independence; None takes it from these clusters.
      quantile: the share of the clusters that are independent where no threshold is given.

    Returns:
      The clusters that are left, of two images and more, and the threshold.
    """
    labels = np.asarray(labels)
    clustered = np.flatnonzero(labels >= 0)
    if not len(clustered):
        return Clusters(np.full(len(labels), OUTLIER, np.int64), threshold)
    own = labels[clustered]
    least_dependent = np.full(own.max() + 1, np.inf, np.float32)
    least_loose = least_dependent.copy()
    # in float32, in which a training keeps the threshold: clusters are often just at it
    dependent, loose = (
        np.float32(1 - overlap(labels, other)[clustered]) for other in (looser, tighter)
    )
    np.minimum.at(least_dependent, own, dependent)
    np.minimum.at(least_loose, own, loose)
    if threshold is None:
        ordered = np.sort(least_dependent)
        threshold = float(ordered[min(round(len(ordered) * quantile), len(ordered) - 1)])
    kept = (least_dependent[own] <= threshold) & (loose <= least_loose[own])
    kept &= np.bincount(own[kept], minlength=own.max() + 1)[own] > 1
    trusted = np.full(len(labels), OUTLIER)
    trusted[clustered[kept]] = own[kept]
    return Clusters(_renumber(trusted), threshold)


def overlap(labels: Array, others: Array) -> np.ndarray:
    """Intersection over union of each image's cluster and its cluster in another clustering.

    Args:
      labels: int [M]; an `OUTLIER` is a cluster of its own.
      others: int [M], of the same images.

    Returns:
      [M], above 0 to 1.
    """
    first, second = _alone(np.asarray(labels)), _alone(np.asarray(others))
    both = np.unique(np.stack([first, second]), axis=1, return_inverse=True)[1].ravel()
    shared = np.bincount(both)[both]
    return shared / (np.bincount(first)[first] + np.bincount(second)[second] - shared)


def _alone(labels: np.ndarray) -> np.ndarray:
    """Clusters in which each outlier is one of its own."""
    outliers = labels < 0
    first = labels.max(initial=-1) + 1
    return np.where(outliers, first + np.cumsum(outliers) - 1, labels)
