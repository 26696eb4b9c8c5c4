import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from market_jax.errors import InputError
from market_jax.kernels import convolution
from market_jax.models import layers

WAYS = ["jax", "lax"]
LAYOUT = ("NHWC", "HWIO", "NHWC")


@st.composite
def problems(draw):
    """Shapes and settings of a convolution that has at least one output."""

    def pair(low, high):
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    groups, per_group, multiplier = (draw(st.integers(1, n)) for n in (4, 3, 3))
    window, rhs_dilation = pair(1, 4), pair(1, 2)
    transposed = draw(st.booleans())
    strides = (1, 1) if transposed else pair(1, 3)
    lhs_dilation = pair(1, 3) if transposed else (1, 1)
    shape = pair(1, 7)
    reach = [d * (k - 1) for d, k in zip(rhs_dilation, window, strict=True)]
    padding = [pair(0, r + 1) for r in reach]
    size = [d * (n - 1) + 1 for d, n in zip(lhs_dilation, shape, strict=True)]
    missing = [r + 1 - n - a - b for (a, b), r, n in zip(padding, reach, size, strict=True)]
    padding = [(a, b + max(0, m)) for (a, b), m in zip(padding, missing, strict=True)]
    kwargs = {
        "window_strides": strides,
        "padding": padding,
        "lhs_dilation": lhs_dilation,
        "rhs_dilation": rhs_dilation,
        "dimension_numbers": LAYOUT,
        "feature_group_count": groups,
    }
    x = (draw(st.integers(1, 3)), *shape, groups * per_group)
    return x, (*window, per_group, groups * multiplier), kwargs


def derivatives(conv, x, w):
    """The value, and the gradients for a cotangent that is different everywhere."""
    y, pull = jax.vjp(conv, x, w)
    return y, *pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


def second_derivatives(conv, x, w):
    """The gradients of the gradients' squares."""
    return jax.grad(lambda *xw: sum(jnp.sum(v**2) for v in derivatives(conv, *xw)), (0, 1))(x, w)


def compare(function, way, x, w, kwargs, atol=2e-5):
    """Holds what `function` makes of our convolution equal to what it makes of lax's."""
    theirs = functools.partial(lax.conv_general_dilated, **kwargs)
    expected = jax.jit(functools.partial(function, theirs))(x, w)
    with convolution.using(way):
        ours = functools.partial(convolution.conv_general_dilated, **kwargs)
        found = jax.jit(functools.partial(function, ours))(x, w)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        scale = 1 + np.abs(b).max(initial=0)
        np.testing.assert_allclose(a / scale, b / scale, atol=atol)


def draw_arrays(x_shape, w_shape, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0))
    return (
        jax.random.normal(key, shape, dtype)
        for key, shape in zip(keys, (x_shape, w_shape), strict=True)
    )


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=25)
@given(problem=problems())
def test_values_and_gradients_are_those_of_lax(way, problem):
    x_shape, w_shape, kwargs = problem
    compare(derivatives, way, *draw_arrays(x_shape, w_shape), kwargs)


# what has a way of its own: (map, window, strides, padding, groups, channels in and out)
SPECIAL = {
    "window larger than the map": ((2, 2), 3, 1, 1, 1, 3, 4),
    "the same, strided": ((3, 3), 5, 2, 2, 1, 3, 4),
    "padding larger than the window": ((5, 4), 1, 1, 1, 1, 3, 4),
    "1x1": ((4, 3), 1, 1, 0, 1, 3, 4),
    "1x1, strided": ((5, 4), 1, 2, 0, 1, 3, 4),
    "3x3": ((5, 4), 3, 1, 1, 1, 3, 4),
    "3x3, strided": ((6, 7), 3, 2, 1, 1, 3, 4),
    "depthwise": ((5, 4), 3, 1, 1, 6, 6, 6),
    "depthwise, strided": ((7, 6), 5, 2, 2, 6, 6, 6),
    "depthwise, rows left out": ((8, 7), 3, 2, 0, 6, 6, 6),
    "depthwise, two outputs each": ((5, 4), 3, 1, 1, 3, 3, 6),
    "a channel for each kernel": ((5, 4), 3, 1, 1, 1, 2, 1),
}


def special(name):
    shape, window, stride, padding, groups, inputs, outputs = SPECIAL[name]
    kwargs = {
        "window_strides": (stride, stride),
        "padding": [(padding, padding)] * 2,
        "dimension_numbers": LAYOUT,
        "feature_group_count": groups,
    }
    return (2, *shape, inputs), (window, window, inputs // groups, outputs), kwargs


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SPECIAL)
def test_second_derivatives_of_what_has_a_way_of_its_own(name, way):
    x_shape, w_shape, kwargs = special(name)
    x, w = draw_arrays(x_shape, w_shape)
    compare(second_derivatives, way, x, w, kwargs, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["window larger than the map", "3x3", "1x1", "depthwise"])
def test_bfloat16_to_its_own_rounding(name, way):
    x_shape, w_shape, kwargs = special(name)
    compare(derivatives, way, *draw_arrays(x_shape, w_shape, jnp.bfloat16), kwargs, atol=2e-2)


def lowered(platform, way="jax", shape=(2, 2, 2, 3)):
    """The program of a layer's gradient for a platform."""
    layer = layers.conv(4, 3)
    x = jnp.zeros(shape)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    with convolution.using(way):
        gradient = jax.jit(jax.grad(lambda v, x: jnp.sum(layer.apply(v, x) ** 2)))
        return gradient.trace(variables, x).lower(lowering_platforms=(platform,)).as_text()


def find_convolutions(program):
    """What each convolution of a program is, without the names of its operands."""
    return re.findall(r"stablehlo.convolution\(.*?\) (.*)", program)


def test_accelerators_compile_xlas_own():
    barrier = "optimization_barrier"
    assert barrier in lowered("cpu"), "the window is larger than the map"
    for platform in ("cuda", "tpu"):
        ours, theirs = lowered(platform), lowered(platform, "lax")
        assert barrier not in ours
        assert find_convolutions(ours) == find_convolutions(theirs)


@pytest.mark.skipif(not convolution.has_onednn(), reason="needs the extra: pip install ./onednn")
def test_the_package_computes_layers_on_a_cpu_alone(monkeypatch):
    call, shape = "market_jax_Forward", (2, 4, 4, 3)
    assert call in lowered("cpu", "onednn", shape)
    assert call in lowered("cpu", "auto", shape)
    assert call not in lowered("cpu", "jax", shape)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert call not in lowered("cuda", "auto", shape)
    assert call not in lowered("cuda", "onednn", shape)


def test_a_dtype_that_the_package_does_not_compute_here(monkeypatch):
    """Older CPUs have no bfloat16 in oneDNN: chosen by itself, the package is left out."""
    monkeypatch.setattr(convolution, "has_onednn", lambda: True)
    monkeypatch.setattr(convolution, "onednn_computes", lambda dtype: dtype == jnp.float32)
    assert convolution.is_fused(jnp.float32)
    assert not convolution.is_fused(jnp.bfloat16)
    with (
        convolution.using("onednn"),
        pytest.raises(InputError, match="'onednn', which does not compute bfloat16 on this CPU"),
    ):
        convolution.is_fused(jnp.bfloat16)


def test_an_unknown_way_is_refused():
    with (
        pytest.raises(InputError, match="convolution is 'mkl'; known: auto, onednn, jax, lax"),
        convolution.using("mkl"),
    ):
        pass


@pytest.mark.parametrize("strides", [1, 2])
def test_transposed_layer_is_flaxs_with_pytorchs_padding(strides):
    x = jax.random.normal(jax.random.key(0), (2, 4, 3, 5))
    ours = layers.conv_transpose(6, 3, strides)
    padding = [(1, strides)] * 2
    theirs = nn.ConvTranspose(6, (3, 3), strides=(strides, strides), padding=padding)
    variables = ours.init(jax.random.key(1), x)
    y = ours.apply(variables, x)
    assert y.shape == (2, 4 * strides, 3 * strides, 6)
    np.testing.assert_allclose(y, theirs.apply(variables, x), atol=1e-5)
