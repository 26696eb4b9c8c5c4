"""Retrieval by centroids of the gallery's true persons, which no search can know.

CTL (Wieczorek et al. 2021) is known for 98.3 mAP on Market-1501, reached in this way. It is not
comparable with the mAP of single images, for three reasons, which are judged here one by one:
whoever the gallery shows is taken from the labels; distractors, who are no query's person, are left
out; and the cameras of the queries and then the gallery are read where the gallery's are meant, so
that a query's own camera is not left out of the centroid.

Here a person has one centroid for each query, without the query's camera for everybody. The
published program puts one for each of a person's query cameras into one gallery and takes out those
of the query's own person that its camera is part of; strangers keep theirs.
"""

from collections.abc import Callable

import numpy as np

from market_jax.data.datasets import Dataset
from market_jax.evaluators import reid
from market_jax.evaluators.protocols import Protocol
from market_jax.evaluators.result import Result, Table
from market_jax.metrics import ranking
from market_jax.report import tables
from market_jax.retrieval import distances

HEADER = ("gallery", "mAP", "rank 1")


def rank_centroids(
    protocol: Protocol, cameras: np.ndarray, *, distractors: bool, metric: str = "cosine"
) -> ranking.Ranking:
    """Ranks the centroids of the gallery's persons for every query, and returns the metrics.

    For each query the centroids are means over the images of other cameras than its own; a person
    without any has none. A query has one match, so that its average precision is 1 / rank.

    Args:
      protocol: queries and gallery, with "feature", "pid" and "camid"; junk (pid -1) is left out.
      cameras: what is taken for the gallery images' cameras, int [G].
      distractors: whether images of pid 0 are in the gallery, each alone; else they are left out.
      metric: the distance, "cosine" or "euclidean".

    Raises:
      InputError: no query has a match.
    """
    query, gallery = protocol.query, protocol.gallery
    pids = np.asarray(gallery["pid"])
    persons, labels = np.unique(pids[pids > 0], return_inverse=True)
    features, taken_by = gallery["feature"][pids > 0], np.asarray(cameras)[pids > 0]
    single = gallery["feature"][(pids == 0) & distractors]
    ranks = np.zeros((len(query["pid"]), 1), np.int64)
    for camera in np.unique(query["camid"]):
        elsewhere = taken_by != camera
        count = np.bincount(labels[elsewhere], minlength=len(persons))
        sums = np.zeros((len(persons), features.shape[1]), np.float32)
        np.add.at(sums, labels[elsewhere], features[elsewhere])
        known, rows = count > 0, np.flatnonzero(query["camid"] == camera)
        centroids = np.concatenate([sums[known] / count[known, None], single])
        of = np.concatenate([persons[known], np.zeros(len(single), persons.dtype)])
        if not len(of):
            continue
        gaps = distances.compute(query["feature"][rows], centroids, metric)
        own = (query["pid"][rows][:, None] == of) & (of > 0)
        nearest = np.min(np.where(own, gaps, np.inf), axis=1)
        place = 1 + np.sum((gaps <= nearest[:, None]) & ~own, axis=1)
        ranks[rows, 0] = np.where(own.any(axis=1), place, 0)
    return ranking.summarize(ranks)


def evaluate(
    predict: Callable,
    dataset: Dataset,
    *,
    split: str = "val",
    outputs: tuple[str, ...] = ("embedding",),
    metric: str = "cosine",
    flip: bool = False,
) -> Result:
    """Judges what it would be worth to know whom the gallery shows.

    Args:
      predict: the model, a `Predictor`.
      dataset: the data set.
      split: the split that is judged, by the protocol "market".
      outputs: names of the model's outputs, which are put side by side.
      metric: the distance between features, "cosine" or "euclidean".
      flip: average the features of an image and its mirror image.

    Raises:
      InputError: no image shows a known person, or the cameras are not known.
    """
    sides = reid.read_features(predict, dataset, split, outputs=outputs, flip=flip)
    made = reid.make_protocols(*sides, ("market",))["market"]
    cameras = np.asarray(made.gallery["camid"])
    misread = np.concatenate([made.query["camid"], cameras])[: len(cameras)]
    found = {
        "single images": reid.Retrieval(metric).rank(made),
        "oracle centroids": rank_centroids(made, cameras, distractors=True, metric=metric),
        "oracle centroids, no distractors": rank_centroids(
            made, cameras, distractors=False, metric=metric
        ),
        "oracle centroids, no distractors, cameras misread": rank_centroids(
            made, misread, distractors=False, metric=metric
        ),
    }
    rows = [(name, tables.percent(r.mAP), tables.percent(r.cmc[0])) for name, r in found.items()]
    absent = int(np.sum(np.asarray(made.gallery["pid"]) == 0))
    return Result(
        title=f"split {split}, protocol market: what it is worth to know whom the gallery shows",
        metrics={f"{name}/mAP": r.mAP for name, r in found.items()},
        record={name: r.to_dict() for name, r in found.items()} | {"distractors": absent},
        tables=(Table(HEADER, rows),),
        notes=(
            "Oracle centroids are made from the gallery's labels: no search has them, and their "
            "mAP, of one match a query, is not that of single images.",
            f"The gallery has {absent} distractors.",
            "Where queries are taken from the gallery, as on all splits but test, misread cameras "
            "let a query's own picture into its centroid.",
        ),
    )
