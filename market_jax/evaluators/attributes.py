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
    """The mean of each image's logits and those of its nearest images, by cosine.

    Images of one person share their attributes, so that neighbours who are that person correct
    each other. All judged images are known at once here, which a single answer does not have.

    Args:
      logits: label -> [M, K].
      features: [M, D].
      neighbours: how many nearest images count beside the image itself.

    Raises:
      InputError: there are fewer images than neighbours.
    """
    size = len(features)
    if not 0 <= neighbours < size:
        raise InputError(
            f"neighbours is {neighbours}; it must be 0 to {size - 1}, the other images"
        )
    nearest = search.top_k(features, features, neighbours + 1)[1]  # the image itself among them
    return {name: value[nearest].mean(axis=1) for name, value in logits.items()}


def outputs_to_judge(predict: Predictor, columns: Columns, labels: Sequence[str]) -> list[str]:
    """The labels that the model predicts.

    Args:
      predict: the model.
      columns: of images.
      labels: of the data set.

    Raises:
      InputError: there is none.
    """
    names = predict.output_names(columns)
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
    """The most likely class of every image, from one pass over the images.

    Args:
      predict: the model.
      columns: of M images.
      labels: that are predicted.
      flip: average the logits of an image and its mirror image.
      neighbours: average them over so many nearest images too.
      masks: also return the model's attention masks.

    Returns:
      Label -> class int [M], and group of labels -> mask float [M, h, w].
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
    """What `metrics.attributes.evaluate` returns as a table, in percent."""
    rows = [
        (name, *(tables.percent(row[key]) for key in _KEYS))
        for name, row in judged["attributes"].items()
    ]
    counts = sorted({int(key.split("_")[1]) for key in judged["mean"]})
    for count in counts:
        cells = [
            tables.percent(judged["mean"][f"{key}_{count}{reading}"])
            for reading in ("", "_binary")
            for key in ("accuracy", "majority")
        ]
        rows.append((f"mean of {count}", cells[0], "", "", *cells[1:]))
    return Table(HEADER, rows)


def summarize(
    columns: Columns, predicted: Mapping, label_counts: Mapping, classes: Mapping, about: Mapping
) -> Result:
    """The result of predictions.

    Args:
      columns: with the true labels.
      predicted: label -> class int [M].
      label_counts: label -> training images of each class, for the majority.
      classes: label -> class names.
      about: "judged", what the images are, and settings, for the record.
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
    """Judges the labels that the model predicts.

    Args:
      predict: the model.
      dataset: that is judged, and whose training split says what the majority is.
      split: "val", "train", "test" or "query".
      flip: average the logits of an image and its mirror image.
      neighbours: average them over so many nearest images too.
    """
    columns, classes = dataset.open(split), dataset.schema.labels
    labels = outputs_to_judge(predict, columns, list(classes))
    predicted, _ = classify(predict, columns, labels, flip=flip, neighbours=neighbours)
    counts = metrics.count_labels(dataset.open("train"), classes)
    about = {"judged": f"split {split}", "flip": flip, "neighbours": neighbours}
    return summarize(columns, predicted, counts, classes, about)
