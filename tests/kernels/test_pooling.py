import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax.kernels.pooling import max_pool, max_pool_with_indices, max_unpool

# PyTorch's own: small whole numbers, so nearly every window has a tie
SHAPE = (2, 5, 7, 2)
TIES = jnp.array([(7 * i * i + 3 * i) % 5 for i in range(140)], jnp.float32).reshape(SHAPE)
INDICES = [1, 8, 11, 3, 16, 14, 17, 18] * 2  # MaxPool2d((2, 3), return_indices=True)
# MaxUnpool2d((2, 3)) of 1, 2, 3, ...: flat position in [2, 5, 7, 2] -> value
UNPOOLED = {2: 1, 17: 2, 22: 3, 7: 4, 32: 5, 29: 6, 34: 7, 37: 8, 72: 9, 87: 10, 92: 11, 77: 12}
UNPOOLED |= {102: 13, 99: 14, 104: 15, 107: 16}
# the gradient of MaxPool2d(3, 2, 1) for the cotangent 1, 2, 3, ...
OVERLAPPING = """
0 0 4 0 0 0 0 10 0 0 0 0 7 0 9 0 0 24 0 0 0 0 18 0 15 0 0 24 0 0 0 0 11 0 0 0 0 14 0 0 0 0 17 0 19
0 0 20 0 22 0 0 44 0 0 0 0 18 0 0 0 0 0 0 0 0 0 24 0 0 0 0 52 0 0 0 0 58 0 0 0 0 31 0 33 0 0 96 0 0
0 0 66 0 39 0 0 72 0 0 0 0 35 0 0 0 0 38 0 0 0 0 41 0 43 0 0 44 0 46 0 0 92 0 0 0 0 42 0 0 0 0 0 0
0 0 0 48 0 0
"""


def count(shape):
    return jnp.arange(1.0, np.prod(shape) + 1).reshape(shape)


def unpooled():
    x = np.zeros(140, np.float32)
    x[list(UNPOOLED)] = list(UNPOOLED.values())
    return x.reshape(SHAPE)


def test_golden_indices_of_pytorch():
    values, indices = jax.jit(max_pool_with_indices, static_argnums=1)(TIES, (2, 3))
    np.testing.assert_array_equal(values, np.full((2, 2, 2, 2), 4.0))
    assert indices.dtype == jnp.int32
    assert indices.ravel().tolist() == INDICES, "a tie goes to the first cell, in row order"


def test_golden_unpooling_of_pytorch():
    indices = jnp.array(INDICES, jnp.int32).reshape(2, 2, 2, 2)
    x = jax.jit(max_unpool, static_argnums=(2, 3))(count((2, 2, 2, 2)), indices, (5, 7), (2, 3))
    np.testing.assert_array_equal(x, unpooled())


def test_golden_gradients_of_pytorch():
    def pull(function):
        y, gradient = jax.vjp(function, TIES)
        return gradient(count(y.shape))[0]

    np.testing.assert_array_equal(pull(lambda x: max_pool(x, (2, 3))), unpooled())
    np.testing.assert_array_equal(pull(lambda x: max_pool_with_indices(x, (2, 3))[0]), unpooled())
    overlapping = pull(lambda x: max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))))
    expected = np.array(OVERLAPPING.split(), np.float32).reshape(SHAPE)
    np.testing.assert_array_equal(overlapping, expected)


@pytest.mark.parametrize("window", [(2, 2), (3, 3), (2, 3), (5, 4)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((1, 1), (0, 1))])
def test_values_and_gradients_are_those_of_flax(window, strides, padding):
    x = jax.random.normal(jax.random.key(0), (2, 7, 9, 3))
    ours = functools.partial(max_pool, window=window, strides=strides, padding=padding)
    theirs = functools.partial(nn.max_pool, window_shape=window, strides=strides, padding=padding)

    @functools.partial(jax.jit, static_argnums=0)
    def run(pool, x):
        return pool(x), jax.grad(lambda x: jnp.sum(jnp.sin(3 * pool(x))))(x)

    for a, b in zip(run(ours, x), run(theirs, x), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_unpooling_inverts_pooling_and_its_gradient_gathers():
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 3))
    values, indices = max_pool_with_indices(x, (2, 2))
    back = max_unpool(values, indices, (5, 6), (2, 2))
    again, positions = max_pool_with_indices(jnp.where(back == 0, -jnp.inf, back), (2, 2))
    np.testing.assert_array_equal(again, values)
    np.testing.assert_array_equal(positions, indices)
    weights = count(x.shape)
    gradient = jax.grad(lambda v: jnp.sum(weights * max_unpool(v, indices, (5, 6), (2, 2))))(values)
    flat = weights.reshape(2, 30, 3)
    expected = jnp.take_along_axis(flat, indices.reshape(2, 6, 3), axis=1).reshape(gradient.shape)
    np.testing.assert_array_equal(gradient, expected)


def test_not_a_number_is_a_maximum():
    x = jnp.array([1.0, jnp.nan, 3.0, 2.0]).reshape(1, 2, 2, 1)
    values, indices = max_pool_with_indices(x, (2, 2))
    assert np.isnan(values).all()
    assert indices.item() == 1


def test_accelerators_compile_xlas_own():
    pool = jax.jit(jax.grad(lambda x: jnp.sum(max_pool(x, (2, 2)))))
    program = pool.trace(TIES).lower
    assert "select_and_scatter" in program(lowering_platforms=("cuda",)).as_text()
    assert "select_and_scatter" not in program(lowering_platforms=("cpu",)).as_text()
