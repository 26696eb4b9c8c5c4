"""Settings of retrieval through clusters, chosen on training identities alone."""

from collections.abc import Callable, Mapping

import numpy as np

from market_jax import registry
from market_jax.data import columns
from market_jax.errors import InputError
from market_jax.evaluators import protocols
from market_jax.metrics import ranking
from market_jax.retrieval import centroids, clustering, distances
from market_jax.retrieval.training import Training
from market_jax.typing import Columns


def sample_identities(rows: Columns, count: int, seed: int = 0) -> Columns:
    """Whole identities, at random, until they have about as many images as asked for.

    Args:
      rows: "pid" among the columns.
      count: the number of images.
      seed: of the choice.
    """
    pids, sizes = np.unique(rows["pid"][rows["pid"] > 0], return_counts=True)
    order = np.random.default_rng(seed).permutation(len(pids))
    enough = np.searchsorted(np.cumsum(sizes[order]), count) + 1
    return columns.select(rows, np.isin(rows["pid"], pids[order[:enough]]))


def cluster_size(
    training: Columns, *, count: int, rerank: Callable, metric: str
) -> tuple[float, dict[float, float]]:
    """The images per cluster with which retrieval through clusters has the best mAP.

    Args:
      training: features and columns of the training identities.
      count: images of the gallery that will be searched; about as many are looked at.
      rerank: (query, gallery, distances, clusters=K) -> distances.
      metric: of the distances.

    Returns:
      The size, and each size's mAP (protocol "course").
    """
    protocol = protocols.course(sample_identities(training, count))
    query, gallery = protocol.query, protocol.gallery
    plain = distances.compute(query["feature"], gallery["feature"], metric)
    judged = {}
    for size in centroids.SIZES:
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


def complete(
    spec: Mapping, known: Mapping[str, Callable], training: Training, *, count: int, metric: str
) -> tuple[dict, dict]:
    """A re-ranker's spec with what it leaves to be chosen, and a record of the choice.

    Where a clustering is told neither how many clusters there are nor their size nor the
    linkage's threshold, the images per cluster are chosen on the training identities;
    `learn="threshold"` takes the threshold that cuts these identities so.

    Args:
      spec: of the re-ranker; "learn" may be "clusters" or "threshold".
      known: name -> re-ranker.
      training: the training identities.
      count: images of the gallery that will be searched.
      metric: of the distances.

    Raises:
      InputError: `learn` is given for what cannot learn it.
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
