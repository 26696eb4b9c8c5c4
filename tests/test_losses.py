import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_jax import losses

LOGITS = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))


def test_cross_entropy_against_its_closed_form():
    batch = {"hat": jnp.array([0, 1])}
    values = losses.cross_entropy({"hat": LOGITS}, batch, key="hat")
    np.testing.assert_allclose(values, -np.log([0.5, 0.1]), rtol=1e-6)


def test_label_smoothing_against_its_closed_form():
    batch = {"hat": jnp.array([0, 1])}
    values = losses.cross_entropy({"hat": LOGITS}, batch, key="hat", label_smoothing=0.3)
    expected = 0.7 * -np.log([0.5, 0.1]) + 0.3 * -np.asarray(LOGITS).mean(axis=1)
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_unknown_labels_cost_nothing_and_give_no_gradient():
    def total(logits):
        return jnp.sum(losses.cross_entropy({"x": logits}, {"x": jnp.array([-1, 2])}, key="x"))

    gradient = jax.grad(total)(LOGITS)
    assert np.abs(gradient[0]).max() == 0
    assert np.abs(gradient[1]).max() > 0


def test_accuracy_is_the_share_of_right_heads():
    outputs = {"a": LOGITS, "b": LOGITS}
    batch = {"a": jnp.array([0, 0]), "b": jnp.array([0, 2])}
    values = losses.accuracy(outputs, batch, keys=("a", "b"))
    np.testing.assert_allclose(values, [1.0, 0.5])


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.floats(0.0, 3.0))
def test_weighted_sum_is_the_mean_over_the_mask(mask, weight):
    values = np.arange(len(mask), dtype=np.float32) + 1
    terms = {"a": (lambda o, b: jnp.asarray(values), weight), "b": (lambda o, b: o["y"], 2.0)}
    total, metrics = losses.weighted_sum(terms, {"y": -values}, {"mask": np.array(mask)})
    mean = values[mask].mean() if any(mask) else 0.0
    np.testing.assert_allclose(total, (weight - 2.0) * mean, rtol=1e-5, atol=1e-5)
    assert metrics["loss"] == total
    name = "loss/a" if weight else "a"  # a term without a weight is only reported
    np.testing.assert_allclose(metrics[name], mean, rtol=1e-5)


@pytest.mark.parametrize("name", losses.__all__)
def test_every_term_gives_a_value_per_image_eager_and_jitted(name):
    keywords = {"cross_entropy": {"key": "x"}, "accuracy": {"keys": ("x",)}}[name]
    term = functools.partial(getattr(losses, name), **keywords)
    outputs, batch = {"x": LOGITS}, {"x": jnp.array([1, 2])}
    assert term(outputs, batch).shape == (2,)
    np.testing.assert_allclose(term(outputs, batch), jax.jit(term)(outputs, batch), rtol=1e-6)
