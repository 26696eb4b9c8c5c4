"""How well attributes are predicted, next to the score of a constant answer.

Attributes with more than two classes (age, colours) are scored in two ways: as multi-class, where a
prediction is right or wrong, and as a mean of binaries, where every class is a question of its own
and "no" is nearly always right. Published tables mix them; here both are given, also for the
majority.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from market_jax.errors import InputError

COLOR = "_color"  # how the names of labels end that are colours


def binary_accuracy(labels: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """Mean over classes of the accuracy of "is it this class?".

    A wrong prediction is wrong about two of the classes: the true one and the predicted one.

    Args:
      labels: the true labels, int [M].
      predicted: the predicted labels, int [M].
      classes: the number of classes.
    """
    return float(1.0 - 2.0 / classes * np.mean(labels != predicted))


def balanced_accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean recall over the classes that occur in the labels.

    Args:
      labels: the true labels, int [M].
      predicted: the predicted labels, int [M].
    """
    return float(np.mean([np.mean(predicted[labels == k] == k) for k in np.unique(labels)]))


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean F1 over the classes that occur in the labels or in the predictions.

    Args:
      labels: the true labels, int [M].
      predicted: the predicted labels, int [M].
    """
    scores = []
    for k in np.union1d(labels, predicted):
        right = np.sum((labels == k) & (predicted == k))
        scores.append(2.0 * right / (np.sum(labels == k) + np.sum(predicted == k)))
    return float(np.mean(scores))


def per_image(
    labels: Mapping[str, np.ndarray],
    predicted: Mapping[str, np.ndarray],
    classes: Mapping[str, Sequence[str]],
) -> dict[str, np.ndarray]:
    """What each image adds to the means over labels: their means are those of `evaluate`.

    For each label an image that is right adds the more, the fewer images have it known, or for the
    balanced accuracy the fewer are of its class.

    Args:
      labels: label -> true classes int [M]; an image is left out for a label that is below 0.
      predicted: label -> predicted classes int [M].
      classes: label -> class names, for the labels to judge.

    Returns:
      {"accuracy", "accuracy_binary", "balanced_accuracy"}: a value of each image, float [M].

    Raises:
      InputError: a label is unknown for every image.
    """
    size = len(next(iter(predicted.values())))
    values = {key: np.zeros(size) for key in ("accuracy", "accuracy_binary", "balanced_accuracy")}
    for name, names in classes.items():
        rows = np.flatnonzero(_known(labels, name))
        truth = labels[name][rows]
        right = truth == predicted[name][rows]
        counts = np.bincount(truth)
        each = size / (len(classes) * len(rows))
        values["accuracy"][rows] += each * right
        values["accuracy_binary"][rows] += each * (1.0 - 2.0 / len(names) * ~right)
        rare = size / (len(classes) * np.count_nonzero(counts) * counts[truth])
        values["balanced_accuracy"][rows] += rare * right
    return values


def count_labels(
    columns: Mapping[str, np.ndarray], classes: Mapping[str, Sequence[str]]
) -> dict[str, list[int]]:
    """Counts the images of each class: label -> counts; unknown labels are not counted.

    Args:
      columns: label -> classes int [M], -1 where unknown.
      classes: label -> class names.
    """
    return {
        name: np.bincount(columns[name][columns[name] >= 0], minlength=len(names)).tolist()
        for name, names in classes.items()
    }


def _known(labels: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Which images have a label known, bool [M]; some have."""
    known = labels[name] >= 0
    if not known.any():
        raise InputError(f"no image has a label of the attribute {name!r}")
    return known


def _means(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Means over all labels, and over those that are no colours where there are both."""
    plain = [name for name in rows if not name.endswith(COLOR)]
    groups = [names for names in (plain, list(rows)) if names]
    means = {
        f"{key}_{len(names)}{reading}": float(np.mean([rows[n][key + reading] for n in names]))
        for names in groups
        for key in ("accuracy", "majority")
        for reading in ("", "_binary")
    }
    return means | {
        f"balanced_accuracy_{len(names)}": float(
            np.mean([rows[name]["balanced_accuracy"] for name in names])
        )
        for names in groups
    }


def evaluate(
    labels: Mapping[str, np.ndarray],
    predicted: Mapping[str, np.ndarray],
    training_counts: Mapping[str, list[int]],
    classes: Mapping[str, Sequence[str]],
) -> dict[str, dict]:
    """Computes the metrics of predicted labels, and those of the majority baseline.

    Args:
      labels: label -> true classes int [M]; an image is left out for a label that is below 0.
      predicted: label -> predicted classes int [M].
      training_counts: label -> images of each class in the training split; the majority
        baseline answers the most frequent one.
      classes: label -> class names, for the labels to judge.

    Returns:
      {"attributes": {name: {"accuracy", "balanced_accuracy", "f1", "majority",
      "accuracy_binary", "majority_binary", "images"}}, "mean": {"accuracy_12",
      "accuracy_12_binary", "majority_12", "majority_12_binary", "balanced_accuracy_12",
      and the same of the 10 labels whose names do not end in "_color"}}, as fractions; 12 and 10
      are the numbers of labels.

    Raises:
      InputError: a label is unknown for every image.
    """
    rows = {}
    for name, names in classes.items():
        known = _known(labels, name)
        truth, guess = labels[name][known], predicted[name][known]
        majority = np.full_like(truth, np.argmax(training_counts[name]))
        rows[name] = {
            "accuracy": float(np.mean(truth == guess)),
            "balanced_accuracy": balanced_accuracy(truth, guess),
            "f1": macro_f1(truth, guess),
            "majority": float(np.mean(truth == majority)),
            "accuracy_binary": binary_accuracy(truth, guess, len(names)),
            "majority_binary": binary_accuracy(truth, majority, len(names)),
            "images": int(known.sum()),
        }
    return {"attributes": rows, "mean": _means(rows)}
