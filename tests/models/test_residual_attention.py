"""The Residual Attention Network against its definition, written out in plain JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax.models.backbones import residual_attention

KEY = jax.random.key(0)
MEAN, DEVIATION = np.float32([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])


def normalized(x, tree):
    params, moments = tree
    x = (x - moments["mean"]) / jnp.sqrt(moments["var"] + 1e-5)
    return x * params["scale"] + params["bias"]


def convolved(x, tree, padding=0, strides=1):
    return jax.lax.conv_general_dilated(
        x, tree[0]["kernel"], (strides,) * 2, ((padding,) * 2,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def at(tree, name):
    return tuple(part.get(name) for part in tree)


def block(x, tree, strides=1):
    """A bottleneck; its shortcut is a convolution where size or channels change."""
    around, y = x, x
    if "downsample" in tree[0]:
        around = convolved(x, at(tree, "downsample"), strides=strides)
        around = normalized(around, at(tree, "downsample_bn"))
    for i, padding, stride in ((1, 0, 1), (2, 1, strides), (3, 0, 1)):
        y = normalized(convolved(y, at(tree, f"conv{i}"), padding, stride), at(tree, f"bn{i}"))
        y = jnp.maximum(y + (around if i == 3 else 0), 0)
    return y


def halved(x):
    window, strides, padding = (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)


def enlarged(x, like):
    return jax.image.resize(x, like.shape, "bilinear")


def attention(x, tree, levels):
    def run(x, name):
        return block(x, at(tree, name))

    def seen_from(x, level):
        """The mask's map of half the size of `x`, after all that lies below."""
        down = run(halved(x), f"down{level}")
        if level == levels:
            return run(down, "bottom")
        below = enlarged(seen_from(down, level + 1), down)
        return run(below + run(down, f"skip{level}"), f"up{level}")

    x = run(x, "before")
    y = enlarged(seen_from(x, 1), x)
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


def network(image, tree):
    """Attention-56: three stages of a block and a module, and a stage of three blocks."""
    x = convolved((image - MEAN) / DEVIATION, at(tree, "conv1"), 3, 2)
    x = halved(jnp.maximum(normalized(x, at(tree, "bn1")), 0))
    for stage in (1, 2, 3):
        x = block(x, at(tree, f"block{stage}"), min(stage, 2))
        x = attention(x, at(tree, f"attention{stage}_1"), 4 - stage)
    for number in (1, 2, 3):
        x = block(x, at(tree, f"block4_{number}"), 2 if number == 1 else 1)
    return x


def test_the_network_by_hand():
    image = np.random.default_rng(1).random((2, 64, 32, 3)).astype(np.float32)
    model = residual_attention.Model(width=4)
    variables = filled(jax.eval_shape(model.init, KEY, image))
    found = jax.jit(model.apply)(variables, image)
    expected = jax.jit(network)(image, (variables["params"], variables["batch_stats"]))
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(found["map"] / scale, expected / scale, atol=1e-4)
    pooled = expected.mean(axis=(1, 2))
    np.testing.assert_allclose(found["feature"] / scale, pooled / scale, atol=1e-4)


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
