"""Chooses settings of re-ranking through clusters, on training identities only."""

from collections.abc import Callable, Mapping

import numpy as np

from market_jax import progress, registry
from market_jax.data import columns
from market_jax.errors import InputError
from market_jax.evaluators import protocols
from market_jax.metrics import ranking
from market_jax.retrieval import centroids, clustering, distances
from market_jax.retrieval.training import Training
from market_jax.typing import Columns


def sample_identities(rows: Columns, count: int, seed: int = 0) -> Columns:
    """Draws identities at random, with all their images, up to about `count` images.

    Args:
      rows: columns of the images, with "pid".
      count: the number of images.
      seed: seeds the draws.
    """
    pids, sizes = np.unique(rows["pid"][rows["pid"] > 0], return_counts=True)
    order = np.random.default_rng(seed).permutation(len(pids))
    enough = np.searchsorted(np.cumsum(sizes[order]), count) + 1
    return columns.select(rows, np.isin(rows["pid"], pids[order[:enough]]))


def cluster_size(
    training: Columns, *, count: int, rerank: Callable, metric: str
) -> tuple[float, dict[float, float]]:
    """Finds the images per cluster that give re-ranking through clusters the best mAP.

    Args:
      training: columns of the training identities, with "feature".
      count: the number of images in the gallery that will be searched; about as many
        training images are used.
      rerank: (query, gallery, distances, size=images per cluster) -> distances.
      metric: the distance between features, "cosine" or "euclidean".

    Returns:
      The best size, and size -> mAP in the protocol "course".
    """
    protocol = protocols.course(sample_identities(training, count))
    query, gallery = protocol.query, protocol.gallery
    plain = distances.compute(query["feature"], gallery["feature"], metric)
    judged = {}
    for size in progress.track(centroids.SIZES, "sizes of clusters"):
        found = rerank(query, gallery, plain, size=size)
        judged[size] = ranking.evaluate(found, **protocol.labels).mAP
    return max(judged, key=judged.get), judged


def threshold(
    training: Columns,
    *,
    count: int,
    size: float,
    metric: str = "cosine",
    method: str = "ward",
    neighbours: int = 0,
) -> float:
    """The height at which to cut the linkage tree so that clusters have a given mean size.

    Args:
      training: columns of the training identities, with "feature".
      count: the number of images in the gallery that will be searched; about as many training
        images are used.
      size: the wanted images per cluster.
      metric: the distance between features, see `centroids.agglomerative`.
      method: the linkage, see `centroids.agglomerative`.
      neighbours: the neighbours of each image that are looked at, see `centroids.agglomerative`.
    """
    gallery = protocols.course(sample_identities(training, count)).gallery
    feature = centroids.prepare(gallery, metric)
    with progress.waiting("threshold"):
        heights = np.sort(clustering.tree(feature, method, neighbours)[:, 2])
    joined = len(gallery["pid"]) - centroids.count_clusters(len(gallery["pid"]), size)
    around = heights[max(joined - 1, 0) : joined + 1]  # the last that is joined, the next
    return float(np.mean(around))


def complete(
    spec: Mapping, known: Mapping[str, Callable], training: Training, *, count: int, metric: str
) -> tuple[dict, dict]:
    """Adds to a re-ranker's spec the settings that are left to be chosen on training identities.

    If the spec of a clustering gives neither the number of clusters nor their size nor the
    linkage's threshold, the images per cluster are chosen on the training identities. With
    `learn="threshold"`, the threshold that gives these identities such clusters is used instead.

    Args:
      spec: the re-ranker's spec; its "learn" may be "clusters" or "threshold".
      known: name -> re-ranker, a function.
      training: features of the training identities, computed when they are needed.
      count: the number of images in the gallery that will be searched.
      metric: the distance between features, "cosine" or "euclidean".

    Returns:
      The completed spec, and a record of the choice, {} where nothing was chosen.

    Raises:
      InputError: `learn` is given for a re-ranker or setting that cannot be learned.
    """
    spec = dict(spec)
    learn = spec.pop("learn", None)
    rerank = registry.bind(spec, known, "re-ranker", metric=metric, training=training)
    given = {"clusters", "threshold", "size"} & spec.keys() or spec.get("bic")
    possible = {"clusters", "threshold"} & {
        name for name in ("clusters", "threshold") if registry.accepts(rerank, name)
    }
    if learn is not None and (given or learn not in possible):
        raise InputError(f"re-ranker {spec['name']!r} cannot learn {learn!r} here")
    if not possible or given:
        return spec, {}
    rows = training.features
    size, judged = cluster_size(rows, count=count, rerank=rerank, metric=metric)
    chosen = {"images_per_cluster": size, "mAP_on_training": judged}
    if learn != "threshold":
        return spec | {"size": size}, chosen
    linkage = {key: spec[key] for key in ("method", "neighbours") if key in spec}
    limit = threshold(rows, count=count, size=size, metric=metric, **linkage)
    return spec | {"threshold": limit}, chosen | {"threshold": limit}
