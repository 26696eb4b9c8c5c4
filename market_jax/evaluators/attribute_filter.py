"""What it costs and saves to search only images whose predicted attributes agree (APR)."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from market_jax import inference
from market_jax.data.datasets import Dataset
from market_jax.evaluators import attributes as attributes_
from market_jax.evaluators import reid
from market_jax.evaluators.protocols import Protocol
from market_jax.evaluators.result import Result, Table
from market_jax.metrics import ranking
from market_jax.report import tables
from market_jax.retrieval import distances
from market_jax.retrieval.attribute_filter import agreements

HEADER = ("must agree", "gallery kept", "mAP", "rank 1", "ms a query", "of all")
CLASSES = "predicted"  # the column with the predicted classes, int [M, A]


def rank_filtered(
    protocol: Protocol, least: int, metric: str = "cosine"
) -> tuple[ranking.Ranking, float, float]:
    """Ranks, for every query, what agrees with it in so many attributes.

    Args:
      protocol: queries and gallery, with "feature" and "predicted" int [M, A].
      least: in how many attributes an image must agree to be searched; 0 searches all.
      metric: the distance, "cosine" or "euclidean".

    Returns:
      The metrics, where what is left out adds nothing to the average precision; the share of the
      gallery that was searched; and seconds of a query, for choosing, comparing and sorting.
    """
    query, gallery, bias = distances.prepare(
        protocol.query["feature"], protocol.gallery["feature"], metric
    )
    found = np.full((len(query), len(gallery)), np.inf, np.float32)
    own, others = (
        np.ascontiguousarray(side[CLASSES].T.astype(np.uint8))
        for side in (protocol.query, protocol.gallery)
    )
    answers, begin = [], time.perf_counter()
    for i, feature in enumerate(query):
        chosen = slice(None)  # all
        if least:
            chosen = np.flatnonzero(agreements(own[:, i : i + 1], others)[0] >= least)
        near = bias[chosen] - gallery[chosen] @ feature
        np.argsort(near, kind="stable")
        answers.append((chosen, near))
    seconds = (time.perf_counter() - begin) / len(query)
    for row, (chosen, near) in zip(found, answers, strict=True):
        row[chosen] = near
    kept = sum(len(near) for _, near in answers)
    result = ranking.evaluate(found, **protocol.labels)
    return result, kept / found.size, seconds


def evaluate(
    predict: Callable,
    dataset: Dataset,
    *,
    split: str = "val",
    outputs: tuple[str, ...] = ("embedding",),
    labels: Sequence[str] = (),
    metric: str = "cosine",
    flip: bool = False,
) -> Result:
    """Judges retrieval by how many predicted attributes must agree, by the protocol "market".

    Args:
      predict: a model that predicts attributes, a `Predictor`.
      dataset: the data set.
      split: the split that is judged.
      outputs: names of the model's outputs, which are put side by side.
      labels: the attributes; () is all that the model predicts.
      metric: the distance between features, "cosine" or "euclidean".
      flip: average the outputs of an image and its mirror image.

    Raises:
      InputError: the model predicts no attribute, no image shows a known person, or cameras are
        not known.
    """
    known = list(dataset.schema.labels)
    names = list(labels) or attributes_.outputs_to_judge(predict, dataset.open(split), known)

    sides = []
    for name in reid.split_names(split):
        columns = dataset.open(name)
        classes, _ = attributes_.classify(predict, columns, names, flip=flip)
        features = inference.features(predict, columns, outputs, flip=flip)
        sides.append(features | {CLASSES: np.stack([classes[n] for n in names], axis=1)})
    made = reid.make_protocols(sides[0], [*sides, None][1], ("market",))["market"]
    found = {n: rank_filtered(made, n, metric) for n in range(len(names) + 1)}
    whole = found[0][2]
    rows = [
        (
            f"{least} of {len(names)}",
            *(tables.percent(value) for value in (kept, result.mAP, result.cmc[0])),
            f"{1000 * seconds:.2f}",
            f"{seconds / whole:.2f}",
        )
        for least, (result, kept, seconds) in found.items()
    ]
    record = {
        str(least): result.to_dict() | {"gallery_kept": kept, "seconds_per_query": seconds}
        for least, (result, kept, seconds) in found.items()
    }
    return Result(
        title=f"split {split}, protocol market: only images whose predicted attributes agree",
        metrics={f"{least}/mAP": result.mAP for least, (result, *_) in found.items()},
        record={"attributes": names, "by_agreement": record},
        tables=(Table(HEADER, rows),),
        notes=("What is left out is never found; times are of this machine's CPU, in NumPy.",),
    )
