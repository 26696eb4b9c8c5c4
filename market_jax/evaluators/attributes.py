"""How well a model predicts the labels of a data set."""

from collections.abc import Mapping, Sequence

import numpy as np

from market_jax.data.datasets import Dataset
from market_jax.errors import InputError
from market_jax.evaluators.result import Result, Table
from market_jax.inference import Predictor
from market_jax.metrics import attributes as metrics
from market_jax.report import tables
from market_jax.retrieval import search
from market_jax.typing import Columns

MASK = "attention_"  # how the names of outputs begin that are masks
HEADER = ("attribute", "accuracy", "balanced", "F1", "majority", "binary", "binary majority")
_KEYS = ("accuracy", "balanced_accuracy", "f1", "majority", "accuracy_binary", "majority_binary")


def average_over_neighbours(
    logits: Mapping[str, np.ndarray], features: np.ndarray, neighbours: int
) -> dict[str, np.ndarray]:
    """Averages each image's logits with those of its nearest images, by cosine.

    Images of one person share their attributes, so neighbours who are that person correct each
    other. This needs all judged images at once; an answer for a single image cannot use it.

    Args:
      logits: label -> logits [M, K].
      features: features [M, D].
      neighbours: the number of nearest images to average with, beside the image itself.

    Raises:
      InputError: `neighbours` is negative, or there are not so many other images.
    """
    size = len(features)
    if not 0 <= neighbours < size:
        raise InputError(
            f"neighbours is {neighbours}; it must be 0 to {size - 1}, the other images"
        )
    nearest = search.top_k(features, features, neighbours + 1)[1]  # the image itself among them
    return {name: value[nearest].mean(axis=1) for name, value in logits.items()}


def outputs_to_judge(predict: Predictor, columns: Columns, labels: Sequence[str]) -> list[str]:
    """Those of the data set's labels that the model predicts.

    Args:
      predict: the model, a `Predictor`.
      columns: columns of some images, to see the model's outputs.
      labels: names of the data set's labels.

    Raises:
      InputError: there are no labels, or the model predicts none of them.
    """
    names = predict.output_names(columns)
    if not labels:
        raise InputError("the images have no labels: there is nothing to judge")
    found = [label for label in labels if label in names]
    if not found:
        raise InputError(
            f"the model predicts none of the labels {', '.join(labels)}; "
            f"its outputs: {', '.join(names)}"
        )
    return found


def classify(
    predict: Predictor,
    columns: Columns,
    labels: Sequence[str],
    *,
    flip: bool = False,
    neighbours: int = 0,
    masks: bool = False,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Predicts the most likely class of every image, in one pass over the images.

    Args:
      predict: the model, a `Predictor`.
      columns: columns of M images.
      labels: names of the labels to predict.
      flip: average the logits of an image and its mirror image.
      neighbours: average the logits over this many nearest images too; 0 averages none.
      masks: also return the model's attention masks.

    Returns:
      Label -> class int [M]; and group of labels -> mask float [M, h, w], {} without `masks`.

    Raises:
      InputError: the model has no such output, an output is not finite, or there are not so many
        neighbours.
    """
    names = [*labels, *(["embedding"] if neighbours else [])]
    if masks:
        known = predict.output_names(columns)
        names += [name for name in known if name.startswith(MASK)]
    outputs = predict(columns, names, flip=flip)
    logits = {name: outputs[name] for name in labels}
    bad = [name for name, value in logits.items() if not np.isfinite(value).all()]
    if bad:
        raise InputError(f"the model's outputs are not finite: {', '.join(bad)}")
    if neighbours:
        logits = average_over_neighbours(logits, outputs["embedding"], neighbours)
    predicted = {name: np.argmax(value, axis=-1) for name, value in logits.items()}
    return predicted, {k.removeprefix(MASK): v for k, v in outputs.items() if k.startswith(MASK)}


def as_table(judged: Mapping[str, Mapping]) -> Table:
    """Formats the metrics of labels as a table, in percent.

    Args:
      judged: what `metrics.attributes.evaluate` has returned.
    """
    rows = [
        (name, *(tables.percent(row[key]) for key in _KEYS))
        for name, row in judged["attributes"].items()
    ]
    mean = judged["mean"]
    for count in sorted({int(key.split("_")[1]) for key in mean if key.startswith("accuracy")}):
        cells = [
            tables.percent(mean[f"{key}_{count}{reading}"])
            for reading in ("", "_binary")
            for key in ("accuracy", "majority")
        ]
        balanced = tables.percent(mean[f"balanced_accuracy_{count}"])
        rows.append((f"mean of {count}", cells[0], balanced, "", *cells[1:]))
    return Table(HEADER, rows)


def summarize(
    columns: Columns, predicted: Mapping, label_counts: Mapping, classes: Mapping, about: Mapping
) -> Result:
    """Judges predictions of labels.

    Args:
      columns: columns of M images, with the true labels.
      predicted: label -> class int [M].
      label_counts: label -> number of training images of each class, for the majority baseline.
      classes: label -> class names.
      about: entries for the record: "judged", which says in words what is judged, and settings.

    Raises:
      InputError: a label is unknown for every image.
    """
    chosen = {name: classes[name] for name in predicted}
    judged = metrics.evaluate(columns, predicted, label_counts, chosen)
    known = np.any([columns[name] >= 0 for name in predicted], axis=0)
    people = columns["pid"][known]
    about = {
        "judged": about["judged"],
        "images": len(people),
        "identities": len(np.unique(people)),
    } | dict(about)
    return Result(
        title="{judged}: {images} images of {identities} identities; percent".format(**about),
        metrics={f"attributes/{name}": value for name, value in judged["mean"].items()},
        record=judged | about,
        tables=(as_table(judged),),
    )


def evaluate(
    predict: Predictor,
    dataset: Dataset,
    *,
    split: str = "val",
    flip: bool = False,
    neighbours: int = 0,
) -> Result:
    """Judges how well a model predicts the labels of a data set.

    Args:
      predict: the model, a `Predictor`.
      dataset: the data set; its training split gives the majority baseline.
      split: the split that is judged: "val", "train", "test" or "query".
      flip: average the logits of an image and its mirror image.
      neighbours: average the logits over this many nearest images too; 0 averages none.

    Raises:
      InputError: the model predicts none of the labels, a label is unknown for every image, or
        `classify` fails.
    """
    columns, classes = dataset.open(split), dataset.schema.labels
    labels = outputs_to_judge(predict, columns, list(classes))
    predicted, _ = classify(predict, columns, labels, flip=flip, neighbours=neighbours)
    counts = metrics.count_labels(dataset.open("train"), classes)
    about = {"judged": f"split {split}", "flip": flip, "neighbours": neighbours}
    return summarize(columns, predicted, counts, classes, about)
