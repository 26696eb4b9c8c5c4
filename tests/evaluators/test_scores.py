"""Scores as a file."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from market_jax.errors import InputError
from market_jax.evaluators import scores
from market_jax.evaluators.scores import Scores
from tests.test_fuzz import CHANGES, attempt, damage


def made(**changes):
    """Scores of three queries, one of which has no value."""
    found = Scores(
        path=Path("runs/made"),
        about={"by": "reid", "split": "val"},
        names=np.array(["a.jpg", "b.jpg", "\u00e9.jpg"]),
        pids=np.array([3, 3, 7]),
        values={"mAP": np.array([1 / 3, np.nan, 0.1 + 0.2]), "rank 1": np.array([1.0, 0.0, 0.0])},
        transductive=True,
    )
    return found._replace(**changes)


def test_what_is_written_is_read_to_the_last_bit(tmp_path):
    path = tmp_path / "evaluation" / "made.json"
    scores.write(path, made())
    found = scores.read(path)
    assert found.path == path
    assert (found.about, found.transductive) == (made().about, True)
    for field in ("names", "pids"):
        np.testing.assert_array_equal(getattr(found, field), getattr(made(), field))
    assert list(found.values) == ["mAP", "rank 1"]
    for key, row in made().values.items():
        np.testing.assert_array_equal(found.values[key], row)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"about": None}, "holds no scores of --task=compare: 'about' must be a dict"),
        ({"transductive": 0}, "holds no scores of --task=compare: 'transductive' must be a bool"),
        ({"pid": [3, 3]}, "its lists are not all as long as its 3 names"),
        ({"values": {}}, "its lists are not all as long as its 3 names"),
        ({"values": {"mAP": [1, 2]}}, "its lists are not all as long as its 3 names"),
        ({"values": {"mAP": [1, "one", 0]}}, "a value of its scores is no number"),
        ({"values": {"mAP": [1, [2], 0]}}, "a value of its scores is no number"),
        ({"values": {"mAP": [1, 1e999, 0]}}, "'mAP' must have finite values"),
        ({"values": {"mAP": [None, None, None]}}, "'mAP' must have finite values"),
        ({"name": [["a.jpg"], ["b.jpg"], []]}, "a value of its scores is no number"),
        ({"name": [["a.jpg"], ["b.jpg"], ["c.jpg"]]}, "its lists are not all as long"),
        ({"pid": [3, None, 7]}, "a value of its scores is no number"),
        ({"pid": [3, 1 << 70, 7]}, "a value of its scores is no number"),
    ],
)
def test_a_broken_file_is_told_by_its_name(tmp_path, changes, message):
    path = tmp_path / "made.json"
    scores.write(path, made())
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=rf"made\.json: {message}"):
        scores.read(path)


def test_damaged_files_are_read_or_refused(often, tmp_path):
    path = tmp_path / "scores.json"
    scores.write(path, made())
    content = path.read_bytes()

    def are_sound(found):
        rows = [found.names, found.pids, *found.values.values()]
        return found.pids.dtype == np.int64 and all(row.shape == (len(rows[0]),) for row in rows)

    @often(100)
    @given(CHANGES)
    def run(changes):
        path.write_bytes(damage(content, changes))
        attempt(lambda: scores.read(path), are_sound)

    run()
