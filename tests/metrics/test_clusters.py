import numpy as np
import pytest

from market_jax.metrics.clusters import agreement


def test_pictures_without_a_cluster_lower_the_coverage_alone():
    truth = np.array([1, 1, 2, 2, 3, 3, 0, -1])
    whole = agreement(np.array([0, 0, 1, 1, 2, 2, 0, 5]), truth)
    assert whole == {"coverage": 1.0, "nmi": pytest.approx(1), "ari": pytest.approx(1)}
    half = agreement(np.array([0, 0, 1, -1, -1, -1, 0, 5]), truth)
    assert half == {"coverage": 0.5, "nmi": pytest.approx(1), "ari": pytest.approx(1)}
    mixed = agreement(np.array([0, 1, 0, 1, 2, 2, 2, 2]), truth)
    assert mixed["coverage"] == 1
    assert mixed["ari"] < mixed["nmi"] < 1


def test_where_nobody_is_known_or_clustered_nothing_is_said():
    assert agreement(np.array([0, 0]), np.array([0, -1])) == {}
    assert agreement(np.array([-1, -1]), np.array([1, -2])) == {"coverage": 0.0}
