"""The Residual Attention Network against its definition, written out in plain JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax.models.backbones import residual_attention

KEY = jax.random.key(0)


def normalized(x, tree):
    params, moments = tree
    x = (x - moments["mean"]) / np.sqrt(moments["var"] + 1e-5)
    return x * params["scale"] + params["bias"]


def convolved(x, tree, padding=0, strides=1):
    return jax.lax.conv_general_dilated(
        x, tree[0]["kernel"], (strides,) * 2, ((padding,) * 2,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def at(tree, name):
    return tuple(part.get(name) for part in tree)


def block(x, tree):
    """A bottleneck that changes neither size nor channels."""
    y = x
    for i, padding in ((1, 0), (2, 1), (3, 0)):
        y = normalized(convolved(y, at(tree, f"conv{i}"), padding), at(tree, f"bn{i}"))
        y = jnp.maximum(y + (x if i == 3 else 0), 0)
    return y


def halved(x):
    window, strides, padding = (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)


def enlarged(x, like):
    return jax.image.resize(x, like.shape, "bilinear")


def attention_of_three_levels(x, tree):
    def run(x, name):
        return block(x, at(tree, name))

    x = run(x, "before")
    down1 = run(halved(x), "down1")
    down2 = run(halved(down1), "down2")
    bottom = run(run(halved(down2), "down3"), "bottom")
    up2 = run(enlarged(bottom, down2) + run(down2, "skip2"), "up2")
    y = enlarged(run(enlarged(up2, down1) + run(down1, "skip1"), "up1"), x)
    for number in (1, 2):
        y = jnp.maximum(normalized(y, at(tree, f"mask_bn{number}")), 0)
        y = convolved(y, at(tree, f"mask{number}"))
    trunk = run(run(x, "trunk1"), "trunk2")
    return run(trunk / (1 + jnp.exp(-y)) + trunk, "after")


def filled(variables):
    """Variables without a zero, and variances above 0."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        drawn = rng.uniform(0.5, 1.5, leaf.shape) if leaf.ndim == 1 else rng.normal(size=leaf.shape)
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim == 4 else 1
        return jnp.asarray(scale * drawn, jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, variables)


def test_a_module_by_hand():
    x = np.maximum(np.random.default_rng(1).normal(size=(2, 16, 8, 8)), 0).astype(np.float32)
    module = residual_attention.Attention(2, 3)
    variables = filled(jax.eval_shape(lambda k: module.init(k, x, False), KEY))
    found = jax.jit(module.apply, static_argnums=2)(variables, x, False)
    expected = attention_of_three_levels(x, (variables["params"], variables["batch_stats"]))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize(("depth", "millions"), [(56, 31.9), (92, 51.3)])
def test_the_papers_number_of_parameters(depth, millions):
    model = residual_attention.Model(depth, classes={"imagenet": 1000})
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    outputs, variables = jax.eval_shape(model.init_with_output, KEY, x)
    assert outputs["map"].shape == (1, 7, 7, 2048)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count / 1e6 == pytest.approx(millions, rel=0.03), "Table 2 of the paper"


@pytest.mark.parametrize("size", [(33, 17), (64, 32)])
def test_any_size_of_picture(size):
    model = residual_attention.Model(width=4, last_stride=1)
    x = jax.ShapeDtypeStruct((1, *size, 3), np.float32)
    outputs, _ = jax.eval_shape(model.init_with_output, KEY, x)
    assert outputs["feature"].shape == (1, 128)
