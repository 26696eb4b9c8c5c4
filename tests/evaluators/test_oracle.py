"""Centroids of the true persons, by hand."""

import numpy as np
import pytest

from market_jax.evaluators import oracle
from market_jax.evaluators.protocols import Protocol


def rows(pid, camid, feature):
    return {
        "pid": np.array(pid),
        "camid": np.array(camid),
        "feature": np.array(feature, np.float32),
    }


# by camera 1 the query of person 1 sees its own twin, by camera 2 another coat
GALLERY = rows(
    [1, 1, 2, 2, 3, 0, -1],
    [1, 2, 1, 2, 1, 1, 1],
    [[0, 0], [6, 0], [4, 0], [0, 2], [50, 0], [5, 0], [0, 0]],
)
QUERY = rows([1, 3], [1, 1], [[0, 0], [50, 0]])
PROTOCOL = Protocol(QUERY, GALLERY, by_camera=True)


@pytest.mark.parametrize(
    ("cameras", "distractors", "precision"),
    [
        ([1, 2, 1, 2, 1, 1, 1], True, 1 / 3),  # 6; before it 2 of person 2, and 5 of nobody
        ([1, 2, 1, 2, 1, 1, 1], False, 1 / 2),
        ([9, 9, 1, 2, 1, 1, 1], False, 1 / 2),  # 3 and 2
        ([9, 9, 9, 1, 1, 1, 1], False, 1),  # 3 and 4
    ],
)
def test_centroids_by_hand(cameras, distractors, precision):
    found = oracle.rank_centroids(
        PROTOCOL, np.array(cameras), distractors=distractors, metric="euclidean"
    )
    assert found.without_match == 1, "person 3 was seen by one camera"
    np.testing.assert_allclose(found.average_precision, [precision, np.nan])


def test_nobody_has_no_match():
    made = Protocol(rows([0, 2], [1, 1], [[5, 0], [0, 2]]), GALLERY, by_camera=True)
    found = oracle.rank_centroids(made, GALLERY["camid"], distractors=True, metric="euclidean")
    assert found.without_match == 1


def test_a_tie_is_no_match():
    tied = rows([1, 2], [2, 2], [[1, 0], [1, 0]])
    made = Protocol(rows([1], [1], [[0, 0]]), tied, by_camera=True)
    found = oracle.rank_centroids(made, tied["camid"], distractors=True, metric="euclidean")
    assert found.mAP == 0.5
