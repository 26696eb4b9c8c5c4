import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_jax.data import samplers
from market_jax.typing import InputError


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 3))
def test_an_epoch_shows_no_image_twice(size, batch_size, seed):
    if batch_size > size:
        with pytest.raises(InputError, match=f"the training split has {size} images"):
            samplers.shuffled(size, batch_size, seed=seed)
        return
    sampler = samplers.shuffled(size, batch_size, seed=seed)
    for epoch in range(2):
        steps = range(epoch * sampler.steps, (epoch + 1) * sampler.steps)
        rows = np.concatenate([sampler.indices(step) for step in steps])
        assert len(np.unique(rows)) == len(rows) == size // batch_size * batch_size


def test_order_is_a_function_of_seed_and_step():
    a, b = (samplers.shuffled(50, 8, seed=3) for _ in range(2))
    for step in (17, 2, 40):  # b is asked in another order
        a.indices(step - 1)
        np.testing.assert_array_equal(a.indices(step), b.indices(step))
    assert not np.array_equal(a.indices(0), a.indices(6))
    assert not np.array_equal(a.indices(0), samplers.shuffled(50, 8, seed=4).indices(0))


@given(st.integers(1, 40), st.integers(1, 12))
def test_sequential_shows_all_once(size, batch_size):
    sampler = samplers.sequential(size, batch_size)
    rows = np.concatenate([sampler.indices(step) for step in range(sampler.steps)])
    assert len(rows) % batch_size == 0
    np.testing.assert_array_equal(rows[rows != samplers.PADDING], np.arange(size))
