import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from market_jax.data.attributes import CLASSES
from market_jax.report import curves, predictions, tables
from market_jax.typing import InputError

NAMES = ["000002.jpg", "000000.jpg"]
PREDICTED = {name: np.array([0, len(classes) - 1]) for name, classes in CLASSES.items()}


def test_predictions_file():
    lines = predictions.classification_csv(NAMES, PREDICTED).splitlines()
    assert lines[0].startswith(
        "id,age,backpack,bag,handbag,clothes,down,up,hair,hat,gender,upblack"
    )
    assert len(lines[0].split(",")) == 28
    assert lines[1] == "000000.jpg,4" + ",2" * 9 + ",1" * 17, "sorted, multicolor is all ones"
    assert lines[2] == "000002.jpg,1" + ",1" * 9 + ",2" + ",1" * 7 + ",2" + ",1" * 8


@given(st.data())
def test_every_prediction_is_valid(data):
    predicted = {
        name: np.array(data.draw(st.lists(st.integers(0, len(c) - 1), min_size=3, max_size=3)))
        for name, c in CLASSES.items()
    }
    text = predictions.classification_csv(["c", "a", "b"], predicted)
    assert predictions.check_classification_csv(text) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("id,age", "name,age"), "row 1: the header must be id,age"),
        (lambda t: "", "row 1: the header"),
        (lambda t: t.replace("000000.jpg,4,", "000000.jpg,5,"), "row 2: .*'age' has value 5"),
        (lambda t: t.replace("000000.jpg,4,", "000000.jpg,4.0,"), "row 2: '4.0' is not an integer"),
        (lambda t: t.replace("000000.jpg,4,", "000000.jpg,0,"), "row 2: .*'age' has value 0"),
        (lambda t: t.replace("000000.jpg", "000002.jpg"), "row 3: '000002.jpg' after"),
        (lambda t: t.replace("000000.jpg", "000009.jpg"), "row 3: '000002.jpg' after"),
        (lambda t: t.replace("000000.jpg,4,", "000000.jpg,"), "row 2: 27 columns"),
        (lambda t: t[:-2] + "2\n", "row 3: .* are both 2"),
    ],
)
def test_schema(change, message):
    text = change(predictions.classification_csv(NAMES, PREDICTED))
    with pytest.raises(InputError, match=message):
        predictions.check_classification_csv(text)


def test_predictions_refuse_bad_labels_and_names():
    with pytest.raises(InputError, match="'hat' is 7"):
        predictions.classification_csv(NAMES, PREDICTED | {"hat": np.array([7, 0])})
    with pytest.raises(InputError, match="sorted and each once"):
        predictions.classification_csv(["a.jpg", "a.jpg"], PREDICTED)


def test_table_is_aligned():
    text = tables.align(("name", "value"), [("a", "10.00"), ("longer", "5.00")])
    assert text.splitlines() == [
        "name    value",
        "-------------",
        "a       10.00",
        "longer   5.00",
    ]
    assert tables.percent(0.79871) == "79.87"


def test_curves(tmp_path):
    lines = [{"step": 1, "train/loss": 2.0, "train/accuracy": 0.5}]
    curves.draw(lines, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists(), "nothing to draw before the first evaluation"
    lines += [{"step": 1, "val/loss": 2.5, "val/accuracy": 0.4}]
    curves.draw(lines, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert np.asarray(image.convert("L")).std() > 5
