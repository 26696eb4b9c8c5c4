"""Masks that weigh a map, by hand."""

import itertools

import jax
import numpy as np
import pytest

from market_jax.models.attention import MASKS, ResidualAttention, StageAttention


@pytest.mark.parametrize("mask", MASKS)
def test_masks_sum_as_they_say(mask):
    """Source B's own leaves 1 + mask at 1, to a part in a thousand: the attention does nothing."""
    x = jax.random.normal(jax.random.key(0), (3, 4, 2, 128))
    block = ResidualAttention(mask)
    (weighed, found), _ = jax.jit(block.init_with_output)(jax.random.key(1), x)
    np.testing.assert_allclose(weighed, x * (1 + found), rtol=1e-5)
    found = np.asarray(found)
    assert (found >= 0).all()
    assert (found <= 1).all()
    if mask == "softmax_all":
        np.testing.assert_allclose(found.sum(axis=(1, 2, 3)), 1, rtol=1e-4)
        assert found.max() < 2e-3
    elif mask == "softmax":
        np.testing.assert_allclose(found.sum(axis=(1, 2)), 1, rtol=1e-4)
    else:
        assert found.std() > 0.02, "every place is weighed alike"


def test_a_mask_between_stages_begins_near_one():
    x = jax.random.normal(jax.random.key(0), (2, 8, 4, 16))
    weighed = StageAttention().init_with_output(jax.random.key(1), x)[0]
    np.testing.assert_allclose(weighed, x * (1 + jax.nn.sigmoid(-3.0)), rtol=1e-5)


def shaken(variables):
    """Variables none of which does nothing, in NumPy: scales of 1 and biases of 0 are moved."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda v: np.asarray(v) + 0.2 * rng.random(v.shape), variables)


def window_sums(x, kernel):
    """A convolution with a border of zeros, place by place: [H, W, C] -> [H, W, D]."""
    size = kernel.shape[0]
    wide = np.pad(x, ((size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    at = itertools.product(range(x.shape[0]), range(x.shape[1]))
    sums = [np.einsum("ijc,ijcd->d", wide[i : i + size, j : j + size], kernel) for i, j in at]
    return np.reshape(sums, (*x.shape[:2], -1))


def normalized(x, kind, variables):
    """BatchNorm by its running statistics."""
    params, seen = (variables[part][kind] for part in ("params", "batch_stats"))
    return (x - seen["mean"]) / np.sqrt(seen["var"] + 1e-5) * params["scale"] + params["bias"]


def test_source_bs_mask_by_hand():
    x = np.asarray(jax.random.normal(jax.random.key(0), (1, 4, 2, 6)))
    block = ResidualAttention("sigmoid", (5, 3))
    variables = shaken(jax.jit(block.init)(jax.random.key(1), x))
    params, y = variables["params"], x[0]
    for number in range(4):  # the first two are transposed, which with stride 1 is the same
        layer = params[f"Conv_{number}"]
        y = window_sums(y, layer["kernel"]) + layer["bias"]
        y = np.tanh(normalized(y, f"BatchNorm_{number}", variables))
    weighed, mask = jax.jit(block.apply)(variables, x)
    np.testing.assert_allclose(mask[0], 1 / (1 + np.exp(-y)), rtol=1e-4)
    np.testing.assert_allclose(weighed[0], x[0] * (1 + np.asarray(mask)[0]), rtol=1e-5)


def test_a_mask_between_stages_by_hand():
    x = np.asarray(jax.random.normal(jax.random.key(0), (1, 4, 6, 12)))
    block = StageAttention(reduction=1)
    variables = shaken(jax.jit(block.init)(jax.random.key(1), x))
    params = variables["params"]

    def unit(y, number):
        y = window_sums(y, params[f"Conv_{number}"]["kernel"])
        return np.maximum(normalized(y, f"BatchNorm_{number}", variables), 0)

    y = unit(x[0], 0)
    wide = np.pad(y, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    places = [[wide[i : i + 3, j : j + 3].max((0, 1)) for j in (0, 2, 4)] for i in (0, 2)]
    down = unit(np.array(places), 1)

    def double(rows):  # along the first axis: a quarter of the farther row, the last as it is
        near = np.pad(rows, ((1, 1), (0, 0), (0, 0)), mode="edge")
        pairs = [0.25 * near[:-2] + 0.75 * rows, 0.75 * rows + 0.25 * near[2:]]
        return np.stack(pairs, axis=1).reshape(-1, *rows.shape[1:])

    up = double(double(down).swapaxes(0, 1)).swapaxes(0, 1)
    mask = window_sums(y + up, params["mask"]["kernel"]) + params["mask"]["bias"]
    found = jax.jit(block.apply)(variables, x)
    np.testing.assert_allclose(found[0], x[0] * (1 + 1 / (1 + np.exp(-mask))), rtol=1e-4)
