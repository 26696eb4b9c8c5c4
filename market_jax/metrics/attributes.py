"""How well attributes are predicted, beside what a constant answer would reach.

Two readings of the classes beyond two (age, colours) are in use: multi-class, where a prediction
is right or wrong, and the mean of binaries, where every class is a question of its own and "no"
is nearly always right. Published tables mix them; here both are given, for the majority too.
"""

from collections.abc import Mapping

import numpy as np

from market_jax.data.attributes import CLASSES, COLORS
from market_jax.errors import InputError


def binary_accuracy(labels: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """Mean over classes of the accuracy of "is it this class?"; labels, predicted int [M].

    A wrong answer is wrong about two of the classes: the true one and the one given.
    """
    return float(1.0 - 2.0 / classes * np.mean(labels != predicted))


def balanced_accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean recall over the classes that occur in the labels."""
    return float(np.mean([np.mean(predicted[labels == k] == k) for k in np.unique(labels)]))


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean F1 over the classes that occur in the labels or in the predictions."""
    scores = []
    for k in np.union1d(labels, predicted):
        right = np.sum((labels == k) & (predicted == k))
        scores.append(2.0 * right / (np.sum(labels == k) + np.sum(predicted == k)))
    return float(np.mean(scores))


def count_labels(columns: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
    """Attribute -> images of each class; unknown labels are not counted."""
    return {
        name: np.bincount(columns[name][columns[name] >= 0], minlength=len(classes)).tolist()
        for name, classes in CLASSES.items()
    }


def evaluate(
    labels: Mapping[str, np.ndarray],
    predicted: Mapping[str, np.ndarray],
    training_counts: Mapping[str, list[int]],
) -> dict[str, dict]:
    """Judges predictions of the 12 attributes.

    Args:
      labels: attribute -> int [M]; images with a label below 0 are left out for it.
      predicted: attribute -> int [M].
      training_counts: attribute -> images of each class in the training split; the majority
        baseline answers the most frequent one.

    Returns:
      {"attributes": {name: {"accuracy", "balanced_accuracy", "f1", "majority",
      "accuracy_binary", "majority_binary", "images"}}, "mean": {"accuracy_10",
      "accuracy_12", "accuracy_10_binary", "accuracy_12_binary", "majority_10",
      "majority_12", "majority_10_binary", "majority_12_binary"}}, fractions; the mean of 10
      leaves the colours out.

    Raises:
      InputError: an attribute has no labelled image.
    """
    rows = {}
    for name, classes in CLASSES.items():
        known = labels[name] >= 0
        if not known.any():
            raise InputError(f"no image has a label of the attribute {name!r}")
        truth, guess = labels[name][known], predicted[name][known]
        majority = np.full_like(truth, np.argmax(training_counts[name]))
        rows[name] = {
            "accuracy": float(np.mean(truth == guess)),
            "balanced_accuracy": balanced_accuracy(truth, guess),
            "f1": macro_f1(truth, guess),
            "majority": float(np.mean(truth == majority)),
            "accuracy_binary": binary_accuracy(truth, guess, len(classes)),
            "majority_binary": binary_accuracy(truth, majority, len(classes)),
            "images": int(known.sum()),
        }
    mean = {}
    for count, names in ((10, [n for n in CLASSES if n not in COLORS]), (12, list(CLASSES))):
        for key in ("accuracy", "majority"):
            for reading in ("", "_binary"):
                values = [rows[n][key + reading] for n in names]
                mean[f"{key}_{count}{reading}"] = float(np.mean(values))
    return {"attributes": rows, "mean": mean}
