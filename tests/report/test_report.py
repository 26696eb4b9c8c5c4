import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from market_jax.data.attributes import CLASSES
from market_jax.errors import InputError
from market_jax.report import curves, predictions, ranked_lists, tables

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


QUERIES, GALLERY = ["000001.jpg", "000000.jpg"], ["000007.jpg", "000008.jpg", "000009.jpg"]


def test_answers_file():
    text = predictions.reid_txt(QUERIES, [GALLERY[::-1], GALLERY[:1]], GALLERY)
    assert text == "000000.jpg: 000007.jpg\n000001.jpg: 000009.jpg, 000008.jpg, 000007.jpg\n"
    assert predictions.check_reid_txt(text, QUERIES, GALLERY) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("000000.jpg: 000007.jpg\n", "1 queries have no line, '000001.jpg' the first"),
        ("000000.jpg 000007.jpg\n", "line 1: '000000.jpg 000007.jpg' is not"),
        ("000000.jpg: \n", "line 1: .* is not 'query: name, name, ...'"),
        ("000005.jpg: 000007.jpg\n", "line 1: '000005.jpg' is no query"),
        ("000000.jpg: 000007.jpg\n" * 2, "line 2: '000000.jpg' is no query, or comes twice"),
        ("000000.jpg: 000007.jpg, 000007.jpg\n", "line 1: .* names an image twice"),
        ("000000.jpg: 000007.jpg, 000001.jpg\n", "line 1: '000001.jpg' is not in the gallery"),
    ],
)
def test_answers_that_are_wrong(text, message):
    with pytest.raises(InputError, match=message):
        predictions.check_reid_txt(text, QUERIES, GALLERY)


def test_queries_that_are_shown():
    chosen = ranked_lists.choose_queries(np.array([0.5, np.nan, 0.1, 1.0, 0.2, 0.9]), 1)
    assert {k: v.tolist() for k, v in chosen.items()} == {
        "Worst queries": [2],
        "Median queries": [0],
        "Best queries": [3],
    }
    few = ranked_lists.choose_queries(np.array([np.nan, 0.3]), 5)
    assert [v.tolist() for v in few.values()] == [[1], [1], [1]]


def test_answers_of_the_page_say_what_counts():
    rows = {
        "pid": np.array([1, 1, 2, -1, 1]),
        "camid": np.array([1, 1, 1, 1, 2]),
        "name": np.array(["a&b.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]),
    }

    def answers(distances):
        return ranked_lists.answers(
            (rows, 0),
            rows,
            np.array(distances),
            pictures=(lambda name: np.zeros((8, 4, 3), np.uint8), lambda name: gallery),
            count=3,
            by_camera=True,
        )

    gallery = np.ones((8, 4, 3), np.uint8)
    shown = answers([0.0, 0.1, 0.2, 0.05, 0.3])
    assert [a.picture.max() for a in shown] == [0, 1, 1, 1], (
        "of the query's side, and the gallery's"
    )
    assert [a.kind for a in shown] == ["query", "left", "left", "wrong"]
    assert [a.name for a in shown] == ["a&b.jpg", "a&b.jpg", "b.jpg", "c.jpg"], (
        "junk is passed over"
    )
    near = answers([0, 1, np.inf, 0, np.inf])
    assert [a.name for a in near[1:]] == ["a&b.jpg", "b.jpg"], "the answer ends there"
    text = ranked_lists.page(
        "<title>",
        ["said & done"],
        ("a", "b"),
        [("x", "1.0")],
        {"ranking": np.array([0.5, 1.0])},
        {"L": [shown]},
    )
    assert "&lt;title&gt;" in text
    assert "said &amp; done" in text
    assert text.count("data:image/jpeg;base64,") == 4
    assert text.count("<svg") == 1
    assert not re.search(r"""(src|href)=["']?(http|//)""", text), "all is in the page"
