"""Settings of a retrieval, chosen on training identities and never on those that are judged."""

from collections.abc import Callable

import numpy as np

from market_jax.data import columns
from market_jax.evaluators import protocols
from market_jax.metrics import ranking
from market_jax.retrieval import centroids, clustering, distances
from market_jax.typing import Columns


def sample_identities(rows: Columns, count: int, seed: int = 0) -> Columns:
    """Whole identities, at random, until they have about as many images as asked for."""
    pids, sizes = np.unique(rows["pid"][rows["pid"] > 0], return_counts=True)
    order = np.random.default_rng(seed).permutation(len(pids))
    enough = np.searchsorted(np.cumsum(sizes[order]), count) + 1
    return columns.select(rows, np.isin(rows["pid"], pids[order[:enough]]))


def cluster_size(
    training: Columns, count: int, stage: Callable, metric: str
) -> tuple[float, dict[float, float]]:
    """The images per cluster with which retrieval through clusters has the best mAP.

    Args:
      training: features and columns of the training identities.
      count: images of the gallery that will be searched; about as many are looked at.
      stage: (query, gallery, distances, clusters=K) -> distances.
      metric: of the distances.

    Returns:
      The size, and each size's mAP (protocol "course").
    """
    protocol = protocols.course(sample_identities(training, count))
    query, gallery = protocol.query, protocol.gallery
    far = distances.compute(query["feature"], gallery["feature"], metric)
    judged = {}
    for size in centroids.SIZES:
        clusters = centroids.count_clusters(len(gallery["pid"]), size)
        found = stage(query, gallery, far, clusters=clusters)
        judged[size] = ranking.evaluate(found, **protocol.labels).mAP
    return max(judged, key=judged.get), judged


def threshold(
    training: Columns,
    count: int,
    size: float,
    metric: str = "cosine",
    method: str = "ward",
    neighbours: int = 0,
) -> float:
    """The linkage's distance at which the training identities fall into clusters of that size.

    Args:
      training: as for `cluster_size`.
      count: as for `cluster_size`.
      size: images per cluster.
      metric: as for `centroids.agglomerative`.
      method: the same.
      neighbours: the same.
    """
    gallery = protocols.course(sample_identities(training, count)).gallery
    feature = centroids.prepare(gallery, metric)
    heights = np.sort(clustering.tree(feature, method, neighbours)[:, 2])
    joined = len(gallery["pid"]) - centroids.count_clusters(len(gallery["pid"]), size)
    around = heights[max(joined - 1, 0) : joined + 1]  # the last that is joined, the next
    return float(np.mean(around))
