"""Attribute-filtered retrieval, by hand."""

import numpy as np
import pytest

from market_jax.evaluators import attribute_filter
from market_jax.evaluators.protocols import Protocol
from market_jax.retrieval.attribute_filter import agreements

GALLERY = {
    "pid": np.array([1, 2, 1, 3]),
    "camid": np.array([2, 2, 3, 2]),
    "feature": np.array([[3, 0], [1, 0], [2, 0], [0, 0]], np.float32),
    "predicted": np.array([[0, 1], [1, 0], [0, 0], [1, 1]]),
}
QUERY = {
    "pid": np.array([1]),
    "camid": np.array([1]),
    "feature": np.zeros((1, 2), np.float32),
    "predicted": np.array([[0, 1]]),
}


def test_agreements_are_counted():
    found = agreements(QUERY["predicted"].T, GALLERY["predicted"].T)
    np.testing.assert_array_equal(found, [[2, 0, 1, 1]])


@pytest.mark.parametrize(
    ("least", "precision", "kept"),
    [
        (0, (1 / 3 + 2 / 4) / 2, 1),  # 3, 2, then the two of person 1
        (1, (1 / 2 + 2 / 3) / 2, 3 / 4),
        (2, 1 / 2, 1 / 4),  # one of two is never found
    ],
)
def test_what_does_not_agree_is_not_found(least, precision, kept):
    made = Protocol(QUERY, GALLERY, by_camera=True)
    result, share, seconds = attribute_filter.rank_filtered(made, least, "euclidean")
    assert result.mAP == pytest.approx(precision)
    assert share == kept
    assert seconds > 0
