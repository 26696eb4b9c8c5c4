"""Scores as a file."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from market_jax.errors import InputError
from market_jax.evaluators import scores
from market_jax.evaluators.scores import Scores
from market_jax.tasks import compare
from tests.test_fuzz import CHANGES, attempt, damage


def made():
    """Scores of three queries, one of which has no value."""
    return Scores(
        path=Path("runs/made"),
        run="made",
        about={
            "by": "reid",
            "split": "val",
            "flip": False,
            "protocol": "market",
            "pictures": ["0", "1"],
        },
        names=np.array(["a.jpg", "b.jpg", "\u00e9.jpg"]),
        pids=np.array([3, 3, 7]),
        values={
            "mAP": np.array([1 / 3, np.nan, 0.1 + 0.2]),
            "rank 1": np.array([1.0, np.nan, 0.0]),
            "mINP": np.array([1.0, np.nan, 1e-9]),
        },
    )


def test_what_is_written_is_read_to_the_last_bit(tmp_path):
    path = tmp_path / "evaluation" / "made.json"
    scores.write(path, made())
    found = scores.read(path)
    assert (found.path, found.run, found.about) == (path, "made", made().about)
    for field in ("names", "pids"):
        np.testing.assert_array_equal(getattr(found, field), getattr(made(), field))
    assert list(found.values) == list(made().values)
    for key, row in made().values.items():
        np.testing.assert_array_equal(found.values[key], row)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"about": None}, "holds no scores of --task=compare .'about' is missing"),
        ({"run": 3}, "holds no scores of --task=compare .'run' is missing"),
        ({"pid": [3, 3]}, "'pid' must be a list of 3 values"),
        ({"values": {"mAP": [1, 0.5]}}, "'mAP' must be a list of 3 values"),
        ({"values": {"mAP": "100"}}, "'mAP' must be a list of 3 values"),
        ({"values": {"mAP": [1, "1", 0]}}, "'mAP' holds '1', which is no number"),
        ({"values": {"mAP": [1, True, 0]}}, "'mAP' holds True, which is no number"),
        ({"values": {"mAP": [1, [0.5], 0]}}, "'mAP' holds .0.5., which is no number"),
        ({"values": {"mAP": [None, 10**999, 0]}}, "'mAP' holds 10*, which is no number that fits"),
        ({"values": {"mAP": [1, 1e999, 0]}}, "'mAP' must have finite values"),
        ({"values": {"mAP": [None, None, None]}}, "'mAP' must have finite values"),
        ({"pid": [3, None, 7]}, "'pid' holds None, which is no number"),
        ({"pid": [3, 1.0, 7]}, "'pid' holds 1.0, which is no number"),
        ({"pid": [3, -(1 << 70), 7]}, "'pid' holds -1180591620717411303424, which is no number"),
        ({"name": ["a.jpg", None, "c.jpg"]}, "'name' or 'run' holds what is no text"),
        ({"run": "\ud800"}, "'name' or 'run' holds what is no text"),
        ({"name": [], "pid": [], "values": {"mAP": []}}, "'mAP' must have finite values"),
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
        attempt(lambda: compare.run([[scores.read(path)]] * 2), str.encode)

    run()
