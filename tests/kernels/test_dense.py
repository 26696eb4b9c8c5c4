"""Dense layers of Transformers by the optional package, against lax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from market_jax import devices
from market_jax.kernels import convolution, dense, fused
from tests.kernels.test_fused import CLOSE, DTYPES

LAYER = (((2,), (0,)), ((), ()))


@pytest.fixture
def calls(monkeypatch):
    """The inputs' shapes of the package's calls."""
    found, convolve = [], fused.convolve

    def counted(spec, x, *rest):
        found.append(x.shape)
        return convolve(spec, x, *rest)

    monkeypatch.setattr(fused, "convolve", counted)
    return found


def draw(shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(len(shape)), shape).astype(dtype)


def outputs_and_gradients(layer, params, x):
    def total(params, x):
        y = layer.apply(params, x)
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

    (_, y), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(params, x)
    return y, gradients


def assert_close(found, expected, dtype):
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert a.dtype == b.dtype
        a, b = (np.asarray(v, np.float32) for v in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=CLOSE[dtype] * np.abs(b).max())


@pytest.mark.skipif(not convolution.has_onednn(), reason="needs the extra: pip install ./onednn")
@DTYPES
@pytest.mark.parametrize("shape", [(8, 5, 12), (1, 33, 12), (8, 3, 4, 12), (16, 1, 12)])
def test_values_and_gradients_are_those_of_lax(shape, dtype, calls):
    x = draw(shape, dtype)
    layer = nn.Dense(20, use_bias=False, dtype=dtype, dot_general=dense.dot_general)
    params = layer.init(jax.random.key(0), x)
    run = jax.jit(lambda params, x: outputs_and_gradients(layer, params, x))
    with convolution.using("lax"):
        expected = run(params, x)
    assert calls.count((shape[0], 1, np.prod(shape[1:-1]), 12)) == 1, "the init alone"
    calls.clear()
    run = jax.jit(lambda params, x: outputs_and_gradients(layer, params, x))
    assert_close(run(params, x), expected, dtype)
    assert calls
    if shape[0] % 2 == 0:
        mesh = devices.make_mesh(jax.devices())
        rows = jax.sharding.NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
        run = jax.jit(lambda params, x: outputs_and_gradients(layer, params, x))
        assert_close(run(params, jax.device_put(x, rows)), expected, dtype)


@pytest.mark.parametrize(
    ("x", "w", "numbers", "settings"),
    [
        (draw((5, 8)), draw((8, 4)), (((1,), (0,)), ((), ())), {}),
        (draw((2, 5, 8)), draw((4, 8)), (((2,), (1,)), ((), ())), {}),
        (draw((2, 5, 8)), draw((8, 4)), LAYER, {"precision": lax.Precision.HIGHEST}),
        (draw((2, 5, 8)), draw((8, 4)), LAYER, {"preferred_element_type": jnp.float32}),
        (draw((0, 5, 8)), draw((8, 4)), LAYER, {}),
        (draw((2, 5, 8), jnp.float16), draw((8, 4), jnp.float16), LAYER, {}),
    ],
)
def test_everything_else_is_laxs(x, w, numbers, settings, calls):
    found = dense.dot_general(x, w, numbers, **settings)
    np.testing.assert_array_equal(found, lax.dot_general(x, w, numbers, **settings))
    assert calls == []
