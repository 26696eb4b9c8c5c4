import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax.kernels import convolution
from market_jax.models import heads, layers, norms


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (1, 5, 7, 2)])
@pytest.mark.parametrize("window", [(2, 2), (1, 3)])
def test_mean_pool_is_flaxs(shape, window):
    x = jax.random.normal(jax.random.key(0), shape)
    ours = layers.mean_pool(x, window)
    np.testing.assert_allclose(ours, nn.avg_pool(x, window, window), rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(layers.mean_pool(x, window) ** 2))(x)
    expected = jax.grad(lambda x: jnp.sum(nn.avg_pool(x, window, window) ** 2))(x)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_batch_norm_has_pytorch_defaults():
    norm = norms.batch_norm(train=True)
    x = jax.random.normal(jax.random.key(0), (64, 3)) * 3 + 1
    y, updates = norm.apply(norm.init(jax.random.key(1), x), x, mutable=["batch_stats"])
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(axis=0), 1, atol=1e-4)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.1 * x.mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("shape", [(64, 3), (4, 6, 5, 3)])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_batch_norm_is_flaxs(shape, train, dtype):
    ours = norms.batch_norm(train, epsilon=1e-3, dtype=dtype)
    theirs = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-3, dtype=dtype)
    x = (2 * jax.random.normal(jax.random.key(0), shape) + 1).astype(dtype)
    variables = theirs.init(jax.random.key(1), x)
    random = jax.random.normal(jax.random.key(2), (4, 3))
    variables = jax.tree.map(lambda v, r: v + jnp.abs(r), variables, dict_like(variables, random))
    assert jax.tree.structure(ours.init(jax.random.key(1), x)) == jax.tree.structure(variables)

    def run(norm, params, x):
        def loss(params, x):
            y, updates = norm.apply(variables | {"params": params}, x, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y.astype(jnp.float32))), (y, updates)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    found, expected = (
        jax.jit(functools.partial(run, n))(variables["params"], x) for n in (ours, theirs)
    )
    atol = 1e-4 if dtype == jnp.float32 else 0.1
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=atol)


def dict_like(tree, rows):
    """The rows, in the tree's structure."""
    return jax.tree.unflatten(jax.tree.structure(tree), list(rows))


@pytest.mark.parametrize("groups", [1, 4])
def test_padding_that_is_wider_than_the_window(groups):
    """Windows that see nothing of the map are computed rightly, whatever computes the others."""
    layer = layers.Conv(4, (3, 3), padding=((0, 3), (3, 0)), feature_group_count=groups)
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))
    variables = layer.init(jax.random.key(1), x)

    def gradients(way):
        def loss(variables, x):
            return jnp.sum(jnp.sin(layer.apply(variables, x)))

        with convolution.using(way):
            return jax.jit(jax.grad(loss, argnums=(0, 1)))(variables, x)

    for a, b in zip(*map(jax.tree.leaves, (gradients("auto"), gradients("lax"))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_gradient_of_a_maximum_goes_to_its_first_place():
    x = np.zeros((2, 3, 2, 2), np.float32)
    x[0, 1, 1, 0] = x[0, 2, 0, 0] = 5
    x[1, 2, 1, 1] = 1
    found = jax.jit(jax.grad(lambda x: jnp.sum(heads.highest(x) * jnp.array([[1, 2], [3, 4]]))))(x)
    expected = np.zeros_like(x)
    expected[0, 1, 1, 0], expected[0, 0, 0, 1] = 1, 2
    expected[1, 0, 0, 0], expected[1, 2, 1, 1] = 3, 4
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(heads.highest(x), x.max(axis=(1, 2)))
