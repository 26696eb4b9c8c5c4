import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax.models import layers


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
    norm = layers.batch_norm(train=True)
    x = jax.random.normal(jax.random.key(0), (64, 3)) * 3 + 1
    y, updates = norm.apply(norm.init(jax.random.key(1), x), x, mutable=["batch_stats"])
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(axis=0), 1, atol=1e-4)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.1 * x.mean(axis=0), rtol=1e-5)
