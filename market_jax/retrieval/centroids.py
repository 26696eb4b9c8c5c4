"""Retrieval through clusters of the gallery, as both reports do it that this project began with.

Re-rankers: (query, gallery, distances, *, ...) -> distances [Q, G]. A query goes to the cluster
with the nearest centroid; the answer is that cluster, by distance to the query, and all else is
infinitely far: not in the answer. With `soft` above 0 all of the gallery stays in the answer, and
an image's distance is lowered by how near the query is to the image's cluster.
"""

import numpy as np

from market_jax.errors import InputError
from market_jax.retrieval import distances as distances_
from market_jax.retrieval.clustering import Agglomerative, GaussianMixture, KMeans
from market_jax.typing import Array, Columns, Fraction, NonNegative, NonNegativeInt, Seed

__all__ = ["agglomerative", "gaussian_mixture", "kmeans"]

SIZES = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 40.0)  # images of a cluster that are tried


def count_clusters(images: int, size: float) -> int:
    """The number of clusters, at least one.

    Args:
      images: how many images there are.
      size: images of a cluster, on average.
    """
    return max(round(images / size), 1)


def prepare(columns: Columns, metric: str) -> np.ndarray:
    """What is clustered: float32 [M, D].

    Args:
      columns: "feature" [M, D].
      metric: "cosine" makes features of length one; "euclidean" leaves them.
    """
    feature = np.asarray(columns["feature"], np.float32)
    return distances_.normalize(feature) if metric == "cosine" else feature


def _check_size(size: float, clusters: int, images: int) -> int:
    """The number of clusters: as given, or by their size."""
    if 0 < size < 1:
        raise InputError(f"size is {size}; it must be 1 or more, or 0 where clusters is given")
    if size and clusters:
        raise InputError(f"size is {size} and clusters is {clusters}; give one of them")
    return count_clusters(images, size) if size else clusters


def _through(
    centroid_distances: np.ndarray, labels: np.ndarray, distances: Array, soft: float
) -> np.ndarray:
    """Distances through clusters.

    Args:
      centroid_distances: [Q, K], of the queries from the clusters, 0 at the least.
      labels: [G], the gallery's clusters.
      distances: [Q, G], of the queries from the images.
      soft: 0 answers with the nearest cluster; up to 1, how much the others count less.
    """
    if soft == 0:
        nearest = np.argmin(centroid_distances, axis=1)
        return np.where(labels == nearest[:, None], distances, np.inf)
    farthest = centroid_distances.max(axis=1, keepdims=True)
    relative = centroid_distances / np.maximum(farthest, np.finfo(np.float32).tiny)
    factor, is_near = 1 - soft + soft * relative[:, labels], np.isfinite(distances)
    return np.where(is_near, np.where(is_near, distances, 0) * factor, np.inf)


def _by_centroids(query, gallery, distances, model, metric, soft):
    model.fit(prepare(gallery, metric))
    centroid_distances = distances_.compute(prepare(query, metric), model.centroids_, metric)
    return _through(centroid_distances, model.labels_, distances, soft)


def agglomerative(
    query: Columns,
    gallery: Columns,
    distances: Array,
    *,
    clusters: NonNegativeInt = 0,
    size: NonNegative = 0.0,
    threshold: NonNegative = 0.0,
    method: str = "ward",
    neighbours: NonNegativeInt = 0,
    soft: Fraction = 0.0,
    metric: str = "cosine",
) -> np.ndarray:
    """Through an agglomerative clustering, see `clustering.Agglomerative` and the module.

    Args:
      query: "feature" [Q, D].
      gallery: "feature" [G, D].
      distances: [Q, G].
      clusters: the number of clusters.
      size: or how many images they have on average, 1 or more.
      threshold: or the distance above which none are joined.
      method: "ward", "average" or "complete".
      neighbours: 0 looks at all pairs of images; above it, at so many neighbours of each.
      soft: 0 answers with one cluster; up to 1, how much the other clusters' images count less.
      metric: "cosine" clusters features of length one.
    """
    clusters = _check_size(size, clusters, len(gallery["feature"]))
    model = Agglomerative(clusters, threshold, method, neighbours)
    return _by_centroids(query, gallery, distances, model, metric, soft)


def kmeans(
    query: Columns,
    gallery: Columns,
    distances: Array,
    *,
    clusters: NonNegativeInt = 0,
    size: NonNegative = 0.0,
    seed: Seed = 0,
    soft: Fraction = 0.0,
    metric: str = "cosine",
) -> np.ndarray:
    """Through `clustering.KMeans`.

    Args:
      query: "feature" [Q, D].
      gallery: "feature" [G, D].
      distances: [Q, G].
      clusters: the number of clusters.
      size: or how many images they have on average, 1 or more.
      seed: of the beginnings.
      soft: as for `agglomerative`.
      metric: "cosine" clusters features of length one.
    """
    clusters = _check_size(size, clusters, len(gallery["feature"]))
    return _by_centroids(query, gallery, distances, KMeans(clusters, seed), metric, soft)


def gaussian_mixture(
    query: Columns,
    gallery: Columns,
    distances: Array,
    *,
    clusters: NonNegativeInt = 0,
    size: NonNegative = 0.0,
    covariance: str = "diag",
    bic: bool = False,
    seed: Seed = 0,
    soft: Fraction = 0.0,
    metric: str = "cosine",
) -> np.ndarray:
    """Through `clustering.GaussianMixture`: a cluster is as far as it is improbable.

    Args:
      query: "feature" [Q, D].
      gallery: "feature" [G, D].
      distances: [Q, G].
      clusters: the number of clusters.
      size: or how many images they have on average, 1 or more.
      covariance: "diag" or "tied".
      bic: the Bayesian information criterion of the gallery, no label, chooses the number.
      seed: of the beginning.
      soft: as for `agglomerative`.
      metric: "cosine" clusters features of length one.
    """
    clusters = _check_size(size, clusters, len(gallery["feature"]))
    feature = prepare(gallery, metric)
    if bic and clusters:
        raise InputError(f"clusters is {clusters}, and bic would choose it; give one of them")
    if bic:
        clusters = sorted({count_clusters(len(feature), each) for each in SIZES})
    model = GaussianMixture(clusters, covariance, seed).fit(feature)
    improbability = 1 - model.posterior(prepare(query, metric))
    return _through(improbability, model.labels_, distances, soft)
