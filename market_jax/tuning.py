"""Settings of a retrieval, chosen on training identities and never on those that are judged."""

from collections.abc import Callable

import numpy as np

from market_jax.data import columns, protocols
from market_jax.metrics import ranking
from market_jax.retrieval import distances
from market_jax.typing import Columns

SIZES = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 40.0)  # images of a cluster that are tried


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
    for size in SIZES:
        clusters = max(round(len(gallery["pid"]) / size), 1)
        found = stage(query, gallery, far, clusters=clusters)
        judged[size] = ranking.evaluate(found, **protocol.labels).mAP
    return max(judged, key=judged.get), judged
