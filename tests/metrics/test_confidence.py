import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.metrics import confidence


def test_interval_is_that_of_the_mean_of_independent_identities():
    rng = np.random.default_rng(1)
    values = rng.normal(0.5, 0.1, 400)
    low, high = confidence.interval(values, np.arange(400))
    half = 1.96 * values.std() / np.sqrt(400)
    np.testing.assert_allclose([low, high], values.mean() + np.array([-half, half]), atol=0.002)


def test_ten_copies_of_an_identity_teach_nothing_more():
    values, pids = np.random.default_rng(2).random(50), np.arange(50)
    once = confidence.interval(values, pids)
    assert confidence.interval(np.tile(values, 10), np.tile(pids, 10)) == pytest.approx(once)


def test_values_that_are_not_known_do_not_count():
    values = np.array([0.2, 0.4, np.nan, 0.8])
    assert confidence.interval(values, [1, 2, 3, 4]) == confidence.interval(
        values[[0, 1, 3]], [1, 2, 4]
    )
    with pytest.raises(InputError, match="0 values of 2"):
        confidence.interval([np.nan, np.nan], [1, 2])
    with pytest.raises(InputError, match="3 identities"):
        confidence.interval([0.1, 0.2], [1, 2, 3])


def test_a_difference_is_found_and_none_is_not():
    rng = np.random.default_rng(3)
    first, pids = rng.random(300), np.repeat(np.arange(100), 3)
    better = confidence.compare(first, first + 0.05 + rng.normal(0, 0.05, 300), pids)
    assert better.p_value < 0.01
    assert better.low < 0.05 < better.high
    same = confidence.compare(first, first + rng.normal(0, 0.05, 300), pids)
    assert same.p_value > 0.05
    assert same.low < 0 < same.high
    assert confidence.compare(first, first, pids).p_value == 1.0
