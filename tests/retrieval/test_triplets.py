"""Hardest triplets, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax.retrieval.triplets import hardest, squared_distances

POINTS = jnp.array([[0.0], [1.0], [5.0], [0.1], [0.2]])


@pytest.mark.parametrize("function", [hardest, jax.jit(hardest)])
def test_nobody_is_neither_positive_nor_negative(function):
    farthest, nearest = function(squared_distances(POINTS), jnp.array([1, 1, 2, 0, -1]))
    np.testing.assert_allclose(farthest, [1, 1, -np.inf, -np.inf, -np.inf])
    np.testing.assert_allclose(nearest, [25, 16, 16, np.inf, np.inf])
