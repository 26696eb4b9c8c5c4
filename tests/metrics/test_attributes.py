import csv

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from market_jax.data.attributes import CLASSES, COLUMNS, read_mat
from market_jax.errors import InputError
from market_jax.metrics import attributes as metrics
from tests.conftest import real

PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@given(PAIRS)
def test_scores_agree_with_sklearn(pairs):
    labels, predicted = (np.array(side) for side in zip(*pairs, strict=True))
    recalls = sklearn.metrics.recall_score(
        labels, predicted, labels=np.unique(labels), average="macro", zero_division=0
    )
    assert metrics.balanced_accuracy(labels, predicted) == pytest.approx(recalls)
    f1 = sklearn.metrics.f1_score(labels, predicted, average="macro", zero_division=0)
    assert metrics.macro_f1(labels, predicted) == pytest.approx(f1)


@given(PAIRS)
def test_binary_accuracy_by_its_definition(pairs):
    labels, predicted = (np.array(side) for side in zip(*pairs, strict=True))
    per_class = [np.mean((labels == k) == (predicted == k)) for k in range(4)]
    assert metrics.binary_accuracy(labels, predicted, 4) == pytest.approx(np.mean(per_class))


def everything(value):
    return {name: np.array(value) for name in CLASSES}


def test_by_hand():
    labels = everything([0, 0, 0, 1, 1, -1])
    predicted = everything([0, 0, 1, 1, 0, 0])
    counts = {name: [1, 5] + [0] * (len(classes) - 2) for name, classes in CLASSES.items()}
    result = metrics.evaluate(labels, predicted, counts, CLASSES)
    hat = result["attributes"]["hat"]
    assert hat["images"] == 5
    assert hat["accuracy"] == pytest.approx(3 / 5)
    assert hat["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert hat["majority"] == pytest.approx(2 / 5), "the training split's majority is class 1"
    assert hat["accuracy_binary"] == pytest.approx(3 / 5)
    assert result["attributes"]["up_color"]["accuracy_binary"] == pytest.approx(1 - 2 / 9 * 2 / 5)
    mean = result["mean"]
    assert mean["accuracy_10"] == mean["accuracy_12"] == pytest.approx(3 / 5)
    assert mean["majority_12"] == pytest.approx(2 / 5)
    assert mean["balanced_accuracy_12"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    binary = (9 * 3 / 5 + (1 - 2 / 4 * 2 / 5) + (1 - 2 / 9 * 2 / 5) + (1 - 2 / 10 * 2 / 5)) / 12
    assert mean["accuracy_12_binary"] == pytest.approx(binary)


ROWS = st.lists(st.tuples(*[st.integers(-1, 2), st.integers(0, 2)] * 2), min_size=1, max_size=30)


@given(ROWS)
def test_what_images_add_has_the_metrics_for_its_mean(rows):
    """Where some labels are unknown too, and images have none."""
    first, guess, second, other = np.array(rows).T
    labels, predicted = {"hat": first, "up_color": second}, {"hat": guess, "up_color": other}
    classes = {"hat": ("a", "b", "c"), "up_color": ("a", "b", "c", "d")}
    if min(first.max(), second.max()) < 0:
        with pytest.raises(InputError, match="no image has a label"):
            metrics.per_image(labels, predicted, classes)
        return
    found = metrics.per_image(labels, predicted, classes)
    counts = {name: [1, 0, 0] for name in classes}
    mean = metrics.evaluate(labels, predicted, counts, classes)["mean"]
    assert found["accuracy"].mean() == pytest.approx(mean["accuracy_2"])
    assert found["accuracy_binary"].mean() == pytest.approx(mean["accuracy_2_binary"])
    assert found["balanced_accuracy"].mean() == pytest.approx(mean["balanced_accuracy_2"])


def test_no_labels():
    with pytest.raises(InputError, match="no image has a label of the attribute 'age'"):
        metrics.evaluate(everything([-1]), everything([0]), {}, CLASSES)


def test_official_majority_baseline():
    """Always answering the training majority on the 13,115 official test images."""
    table = read_mat(real("market1501-official/market_attribute.mat"))
    columns = {}
    for part in ("train", "test"):
        with open(real(f"market1501-official/market_{part}.csv")) as file:
            names = [line["# file"].rsplit("/", 1)[1] for line in csv.DictReader(file)]
        columns[part] = {
            key: np.array([table[int(name[:4])][key] for name in names]) for key in CLASSES
        }
    counts = metrics.count_labels(columns["train"], CLASSES)
    predicted = {k: np.full(13115, np.argmax(counts[k])) for k in CLASSES}
    result = metrics.evaluate(columns["test"], predicted, counts, CLASSES)
    assert len(COLUMNS) == 27
    percent = {k: round(100 * row["majority"], 2) for k, row in result["attributes"].items()}
    assert percent == {
        "age": 87.12, "backpack": 74.91, "bag": 75.72, "handbag": 90.53, "clothes": 88.07,
        "down": 67.02, "up": 93.53, "hair": 63.92, "hat": 97.13, "gender": 55.92,
        "up_color": 26.62, "down_color": 38.62,
    }  # fmt: skip
    assert round(100 * result["mean"]["majority_10"], 2) == 79.39
    assert round(100 * result["mean"]["majority_12"], 2) == 71.59
    for row in result["attributes"].values():
        assert row["accuracy"] == row["majority"]


def test_other_labels_are_judged_alike():
    labels = {"wheels": np.array([0, 1, 2, -1]), "roof": np.array([1, 1, 0, 0])}
    classes = {"wheels": ("2", "3", "4"), "roof": ("no", "yes")}
    counts = metrics.count_labels(labels, classes)
    assert counts == {"wheels": [1, 1, 1], "roof": [2, 2]}
    result = metrics.evaluate(labels, labels, counts, classes)
    assert result["mean"]["accuracy_2"] == 1.0
    assert set(result["mean"]) == {
        f"{key}_2{reading}" for key in ("accuracy", "majority") for reading in ("", "_binary")
    } | {"balanced_accuracy_2"}
