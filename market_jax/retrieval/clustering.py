"""Clusterings of features: `fit(features)` sets `labels_` int [M] and `centroids_` [K, D].

Linkages and mixtures are SciPy's and scikit-learn's. What a linkage starts from, the distances of
all pairs, is made here by matrix products, in blocks.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.cluster import hierarchy

from market_jax.errors import InputError
from market_jax.registry import choose
from market_jax.retrieval import search
from market_jax.typing import Array

__all__ = ["Agglomerative", "GaussianMixture", "KMeans"]

_BLOCK = 1024  # rows of distances at a time
_METHODS = ("ward", "average", "complete")


def condensed_distances(features: Array) -> np.ndarray:
    """Euclidean distances of all pairs: float64 [M (M - 1) / 2], in SciPy's order."""
    features = np.asarray(features, np.float64)
    features = features - features.mean(axis=0)  # smaller numbers cancel less
    squares = np.einsum("md,md->m", features, features)
    size, at = len(features), 0
    result = np.empty(size * (size - 1) // 2)
    for start in range(0, size, _BLOCK):
        rows = slice(start, min(start + _BLOCK, size))
        block = squares[rows, None] + squares[start:] - 2 * features[rows] @ features[start:].T
        for i, row in enumerate(block, start=1):
            count = len(row) - i
            np.sqrt(np.maximum(row[i:], 0), out=result[at : at + count])
            at += count
    return result


def linkage(features: Array, method: str = "ward") -> np.ndarray:
    """The tree of an agglomerative clustering by Euclidean distance, in SciPy's form.

    Args:
      features: [M, D], M at least 2.
      method: "ward", "average" or "complete".

    Returns:
      [M - 1, 4]: the two that are joined, their distance, and how many images they are.
    """
    choose(method, dict.fromkeys(_METHODS), "linkage")
    return hierarchy.linkage(condensed_distances(features), method)


def neighbour_linkage(features: Array, method: str = "ward", *, neighbours: int = 30) -> np.ndarray:
    """`linkage`, but only clusters with neighbouring images are joined: for large galleries.

    Args:
      features: [M, D].
      method: as for `linkage`.
      neighbours: nearest images of each that count.
    """
    choose(method, dict.fromkeys(_METHODS), "linkage")
    from sklearn import cluster  # slow to import

    features, size = np.asarray(features, np.float64), len(features)
    count = min(neighbours + 1, size)  # the image itself is among them
    at = search.top_k(features, features, count, metric="euclidean")[1]
    model = cluster.AgglomerativeClustering(
        n_clusters=1, linkage=method, connectivity=_connect(at), compute_distances=True
    ).fit(features)
    sizes = np.ones(2 * size - 1)
    for i, (a, b) in enumerate(model.children_, start=size):
        sizes[i] = sizes[a] + sizes[b]
    return np.column_stack([model.children_, model.distances_, sizes[size:]]).astype(np.float64)


def tree(features: Array, method: str = "ward", neighbours: int = 0) -> np.ndarray:
    """`linkage`, or with neighbours above 0 `neighbour_linkage`.

    Args:
      features: [M, D].
      method: as for `linkage`.
      neighbours: 0 looks at all pairs; above it, at so many neighbours of each.
    """
    if neighbours:
        return neighbour_linkage(features, method, neighbours=neighbours)
    return linkage(features, method)


def _connect(neighbours: np.ndarray) -> sparse.csr_matrix:
    """[M, k] -> a symmetric graph; its parts are chained by their first images."""
    size, k = neighbours.shape
    rows = np.repeat(np.arange(size), k)
    graph = sparse.csr_matrix((np.ones(size * k), (rows, neighbours.ravel())), (size, size))
    parts = sparse.csgraph.connected_components(graph, directed=False)[1]
    first = np.unique(parts, return_index=True)[1]
    chain = sparse.csr_matrix((np.ones(len(first) - 1), (first[:-1], first[1:])), (size, size))
    graph = graph + chain
    return graph + graph.T


def _check(features: Array, clusters: int) -> np.ndarray:
    features = np.asarray(features)
    if features.ndim != 2 or not np.isfinite(features).all():
        raise InputError(f"features {features.shape} must be a finite [images, dimensions]")
    if not 1 <= clusters <= len(features):
        raise InputError(f"clusters is {clusters}; it must be 1 to {len(features)}, the images")
    return features


def _at_most(features: np.ndarray, clusters: int) -> int:
    """No more clusters than there are different images, so that none stays empty."""
    return min(clusters, len(np.unique(features, axis=0)))


def _centroids(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Means of the clusters 0 ... K - 1, each of which has an image."""
    sums = np.zeros((labels.max() + 1, features.shape[1]))
    np.add.at(sums, labels, features)
    return sums / np.bincount(labels)[:, None]


@dataclasses.dataclass
class Agglomerative:
    """Joins the nearest two clusters until as many are left, or until they are too far apart.

    Attributes:
      clusters: the number that are left; 0 goes by `threshold`.
      threshold: the linkage's distance above which nothing is joined.
      method: "ward", "average" or "complete".
      neighbours: 0 looks at all pairs; else see `neighbour_linkage`.
    """

    clusters: int = 0
    threshold: float = 0.0
    method: str = "ward"
    neighbours: int = 0

    def fit(self, features: Array) -> "Agglomerative":
        """[M, D]."""
        if self.clusters and self.threshold:
            raise InputError(
                f"clusters is {self.clusters} and threshold is {self.threshold}; give one of them"
            )
        features = _check(features, self.clusters if self.threshold <= 0 else 1)
        if len(features) == 1:
            self.labels_ = np.zeros(1, np.int64)
        else:
            self.labels_ = self._cut(tree(features, self.method, self.neighbours))
        self.centroids_ = _centroids(features, self.labels_)
        return self

    def _cut(self, joined: np.ndarray) -> np.ndarray:
        if self.clusters:
            return hierarchy.cut_tree(joined, n_clusters=self.clusters)[:, 0].astype(np.int64)
        return hierarchy.fcluster(joined, self.threshold, "distance").astype(np.int64) - 1


@dataclasses.dataclass
class KMeans:
    """Lloyd's algorithm from k-means++ beginnings.

    Attributes:
      clusters: the number of clusters.
      seed: of the beginnings.
      n_init: the number of beginnings, of which the best is kept.
    """

    clusters: int
    seed: int = 0
    n_init: int = 1

    def fit(self, features: Array) -> "KMeans":
        """[M, D]."""
        from sklearn import cluster

        features = _check(features, self.clusters)
        model = cluster.KMeans(
            _at_most(features, self.clusters), n_init=self.n_init, random_state=self.seed
        )
        labels = model.fit_predict(features)
        self.labels_ = np.unique(labels, return_inverse=True)[1]
        self.centroids_ = _centroids(features, self.labels_)
        return self


@dataclasses.dataclass
class GaussianMixture:
    """A mixture of Gaussians by expectation maximisation; the BIC chooses among several sizes.

    Attributes:
      clusters: the number of clusters, or several numbers to choose from.
      covariance: "diag", or "tied": one full matrix for all.
      seed: of the beginning, by K-Means.
      floor: added to the variances.
    """

    clusters: int | Sequence[int]
    covariance: str = "diag"
    seed: int = 0
    floor: float = 1e-4

    def fit(self, features: Array) -> "GaussianMixture":
        """[M, D]; sets `bic_` too: number of clusters -> BIC, of which the least is chosen."""
        from sklearn import mixture

        choose(self.covariance, dict.fromkeys(("diag", "tied")), "covariance")
        sizes = (self.clusters,) if isinstance(self.clusters, int) else tuple(self.clusters)
        if not sizes:
            raise InputError("clusters names no number")
        features = np.asarray(_check(features, max(sizes)), np.float64)
        models = {}
        for size in sizes:
            _check(features, size)
            models[size] = mixture.GaussianMixture(
                _at_most(features, size),
                covariance_type=self.covariance,
                random_state=self.seed,
                reg_covar=self.floor,
            ).fit(features)
        self.bic_ = {size: float(model.bic(features)) for size, model in models.items()}
        self._model = models[min(self.bic_, key=self.bic_.get)]
        self.labels_ = self._model.predict(features).astype(np.int64)
        self.centroids_ = self._model.means_
        return self

    def posterior(self, features: Array) -> np.ndarray:
        """[M, D] -> the probability of each cluster [M, K]."""
        return self._model.predict_proba(np.asarray(features, np.float64))
