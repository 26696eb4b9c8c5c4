"""Retrieval through clusters of the gallery, as both student reports do it.

(query, gallery, distances, **kw) -> distances [Q, G]. A query goes to the cluster with the nearest
centroid; the answer is that cluster, by distance to the query, and all else is infinitely far:
not in the answer. With `soft` above 0 all of the gallery stays in the answer, and an image's
distance is lowered by how near the query is to the image's cluster.
"""

import numpy as np

from market_jax.errors import InputError
from market_jax.retrieval import distances as distances_
from market_jax.retrieval.clustering import Agglomerative, GaussianMixture, KMeans
from market_jax.typing import Array, Columns

__all__ = ["agglomerative", "gaussian_mixture", "kmeans"]

SIZES = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 40.0)  # images of a cluster that are tried


def count_clusters(images: int, size: float) -> int:
    """How many clusters so many images make, at so many images each."""
    return max(round(images / size), 1)


def prepare(columns: Columns, metric: str) -> np.ndarray:
    """What is clustered: the features [M, D], for "cosine" of length one."""
    feature = np.asarray(columns["feature"], np.float32)
    return distances_.normalize(feature) if metric == "cosine" else feature


def _through(far: np.ndarray, labels: np.ndarray, distances: Array, soft: float) -> np.ndarray:
    """Distances through clusters.

    Args:
      far: [Q, K], of the queries from the clusters, 0 at the least.
      labels: [G], the gallery's clusters.
      distances: [Q, G], of the queries from the images.
      soft: 0 answers with the nearest cluster; up to 1, how much the others count less.
    """
    if not 0 <= soft <= 1:
        raise InputError(f"soft is {soft}; it must be 0 to 1")
    if soft == 0:
        return np.where(labels == np.argmin(far, axis=1)[:, None], distances, np.inf)
    relative = far / np.maximum(far.max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return distances * (1 - soft + soft * relative[:, labels])


def _by_centroids(query, gallery, distances, model, metric, soft):
    model.fit(prepare(gallery, metric))
    far = distances_.compute(prepare(query, metric), model.centroids_, metric)
    return _through(far, model.labels_, distances, soft)


def agglomerative(
    query: Columns,
    gallery: Columns,
    distances: Array,
    *,
    clusters: int = 0,
    threshold: float = 0.0,
    method: str = "ward",
    neighbours: int = 0,
    soft: float = 0.0,
    metric: str = "cosine",
) -> np.ndarray:
    """Through an agglomerative clustering, see `clustering.Agglomerative` and the module.

    Args:
      query: "feature" [Q, D].
      gallery: "feature" [G, D].
      distances: [Q, G].
      clusters: how many.
      threshold: or the distance above which none are joined.
      method: "ward", "average" or "complete".
      neighbours: 0 looks at all pairs.
      soft: 0 answers with one cluster; up to 1, how much the other clusters' images count less.
      metric: "cosine" clusters features of length one.
    """
    model = Agglomerative(clusters, threshold, method, neighbours)
    return _by_centroids(query, gallery, distances, model, metric, soft)


def kmeans(
    query: Columns,
    gallery: Columns,
    distances: Array,
    *,
    clusters: int = 0,
    seed: int = 0,
    soft: float = 0.0,
    metric: str = "cosine",
) -> np.ndarray:
    """Through `clustering.KMeans`; arguments as `agglomerative`."""
    return _by_centroids(query, gallery, distances, KMeans(clusters, seed), metric, soft)


def gaussian_mixture(
    query: Columns,
    gallery: Columns,
    distances: Array,
    *,
    clusters: int = 0,
    covariance: str = "diag",
    bic: bool = False,
    seed: int = 0,
    soft: float = 0.0,
    metric: str = "cosine",
) -> np.ndarray:
    """Through `clustering.GaussianMixture`: a cluster is as far as it is improbable.

    Arguments as `agglomerative`; covariance is "diag" or "tied", and bic has the Bayesian
    information criterion of the gallery, no label, choose how many clusters there are.
    """
    feature = prepare(gallery, metric)
    if bic and clusters:
        raise InputError(f"clusters is {clusters}, and bic would choose it; give one of them")
    if bic:
        clusters = sorted({count_clusters(len(feature), size) for size in SIZES})
    model = GaussianMixture(clusters, covariance, seed).fit(feature)
    far = 1 - model.posterior(prepare(query, metric))
    return _through(far, model.labels_, distances, soft)
