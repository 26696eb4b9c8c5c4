import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from market_jax import losses
from market_jax.errors import InputError

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


# one dimension; persons 1, 1, 2, 2, nobody, padding
POINTS = jnp.array([[0.0], [1.0], [1.5], [4.0], [1.1], [1.2]])
PEOPLE = {
    "pid": jnp.array([1, 1, 2, 2, 0, 1]),
    "mask": jnp.array([True, True, True, True, True, False]),
}


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        # gaps: 1 - 1.1, 1 - 0.1, 2.5 - 0.3, 2.5 - 2.8; nobody and padding are strangers to all
        (0.3, [0.2, 1.2, 2.5, 0.0, 0.0, 0.0]),
        (0.0, [*np.log1p(np.exp([-0.1, 0.9, 2.2, -0.3])), 0.0, 0.0]),
    ],
)
def test_triplet_by_hand(margin, expected):
    value = functools.partial(losses.triplet, margin=margin)
    np.testing.assert_allclose(value({"feature": POINTS}, PEOPLE), expected, rtol=1e-4, atol=1e-5)
    jitted = jax.jit(value)({"feature": POINTS}, PEOPLE)
    np.testing.assert_allclose(jitted, expected, rtol=1e-4, atol=1e-5)


def test_triplet_without_a_match_or_a_stranger_costs_nothing():
    for pids in ([1, 2, 3, 4, 5, 6], [1, 1, 1, 1, 1, 1]):
        batch = PEOPLE | {"pid": jnp.array(pids), "mask": jnp.ones(6, bool)}
        gradient = jax.grad(lambda x, b=batch: losses.triplet({"feature": x}, b).sum())(POINTS)
        assert np.abs(gradient).max() == 0
    same = jnp.zeros((6, 1))  # points that coincide have a finite gradient
    gradient = jax.grad(lambda x: losses.triplet({"feature": x}, PEOPLE).sum())(same)
    assert np.isfinite(gradient).all()


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.floats(0.0, 3.0))
def test_weighted_sum_is_the_mean_over_the_mask(mask, weight):
    values = np.arange(len(mask), dtype=np.float32) + 1
    terms = {
        "a": (lambda o, b: jnp.asarray(values), weight, None),
        "b": (lambda o, b: o["y"], 2.0, None),
    }
    total, metrics = losses.weighted_sum(terms, {"y": -values}, {"mask": np.array(mask)})
    mean = values[mask].mean() if any(mask) else 0.0
    np.testing.assert_allclose(total, (weight - 2.0) * mean, rtol=1e-5, atol=1e-5)
    assert metrics["loss"] == total
    name = "loss/a" if weight else "a"  # a term without a weight is only reported
    np.testing.assert_allclose(metrics[name], mean, rtol=1e-5)


KEYWORDS = {
    "cross_entropy": {"key": "x"},
    "cross_entropies": {"keys": ("x", "x")},
    "uncertain_cross_entropies": {"keys": ("x", "x"), "group": "x"},
    "triplet": {"key": "x"},
    "accuracy": {"keys": ("x",)},
    "squared_error": {"reduce": "sum"},
}


@pytest.mark.parametrize("name", losses.__all__)
def test_every_term_gives_a_value_per_image_eager_and_jitted(name):
    term = functools.partial(getattr(losses, name), **KEYWORDS.get(name, {}))
    rng = np.random.default_rng(0)
    images = {k: rng.random((2, 4, 3, 3), np.float32) for k in ("reconstruction", "target")}
    latent = {k: rng.normal(size=(2, 5)).astype(np.float32) for k in ("mean", "logvar")}
    outputs = {"x": LOGITS, "log_variance_x": jnp.ones(2)} | images | latent
    batch = {"x": jnp.array([1, 2]), "pid": jnp.array([1, 2]), "mask": np.ones(2, bool)}
    assert term(outputs, batch).shape == (2,)
    np.testing.assert_allclose(term(outputs, batch), jax.jit(term)(outputs, batch), rtol=1e-6)


def test_squared_error_by_hand():
    target = np.zeros((2, 4, 2, 3), np.float32)
    reconstruction = target + np.array([1, 2], np.float32)[:, None, None, None]
    outputs = {"reconstruction": reconstruction, "target": target}
    np.testing.assert_allclose(losses.squared_error(outputs, {}, reduce="sum"), [24, 96])
    np.testing.assert_allclose(losses.squared_error(outputs, {}, reduce="mean"), [1, 4])
    with pytest.raises(InputError, match="unknown reduction 'max'; known: mean, sum"):
        losses.squared_error(outputs, {}, reduce="max")


def test_kl_against_its_integral():
    mean, std = 0.7, 0.4
    x = np.linspace(-8, 8, 200_001)
    q = norm.pdf(x, mean, std)
    integral = np.trapezoid(np.where(q > 0, q * (norm.logpdf(x, mean, std) - norm.logpdf(x)), 0), x)
    outputs = {"mean": np.array([[mean, 0.0]]), "logvar": np.array([[2 * np.log(std), 0.0]])}
    np.testing.assert_allclose(losses.kl(outputs, {}), [integral], rtol=1e-6)


def gaussians(n, dimensions, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    return {
        "mean": rng.normal(shift, 0.8, (n, dimensions)),
        "logvar": rng.normal(-1.0, 0.3, (n, dimensions)),
    }


def test_mmd_against_its_integrals():
    outputs, dimensions = gaussians(4, 3, shift=0.5), 3
    x = np.linspace(-9, 9, 1201)
    kernel = np.exp(-((x[:, None] - x) ** 2) / (2 * dimensions))
    std = np.exp(outputs["logvar"] / 2)

    def density(mean, std):
        values = norm.pdf(x, mean, std)
        return values / values.sum()

    def expected(p, q):  # over independent dimensions, of which the kernel is a product
        return np.prod([a @ kernel @ b for a, b in zip(p, q, strict=True)])

    rows = zip(outputs["mean"], std, strict=True)
    q = [[density(m, s) for m, s in zip(*row, strict=True)] for row in rows]
    prior = [density(0, 1)] * dimensions
    among = np.mean([expected(q[i], q[j]) for i in range(4) for j in range(4) if i != j])
    across = np.mean([expected(row, prior) for row in q])
    value = among + expected(prior, prior) - 2 * across
    found = losses.mmd(outputs, {"mask": np.ones(4, bool)})
    np.testing.assert_allclose(found, np.full(4, value), rtol=1e-5)


def test_mmd_vanishes_where_the_posterior_is_the_prior_and_ignores_padding():
    prior = {"mean": np.zeros((8, 5)), "logvar": np.zeros((8, 5))}
    np.testing.assert_allclose(losses.mmd(prior, {"mask": np.ones(8, bool)}), 0, atol=1e-6)
    outputs, mask = gaussians(6, 5), np.arange(6) < 4
    padded = losses.mmd(outputs, {"mask": mask})
    alone = losses.mmd({k: v[:4] for k, v in outputs.items()}, {"mask": np.ones(4, bool)})
    np.testing.assert_allclose(padded[:4], alone, rtol=1e-5)
    assert losses.mmd(outputs, {"mask": np.arange(6) < 1})[0] == 0, "one image says nothing"


def test_active_dimensions_by_hand():
    mean = np.array([[0.0, 1.0, 0.5], [0.0, -1.0, 0.5], [9.0, 9.0, 9.0]])
    found = losses.active_dimensions({"mean": mean}, {"mask": np.array([True, True, False])})
    np.testing.assert_allclose(found, 1)


@pytest.mark.parametrize("name", ["linear", "logistic", "cyclical"])
def test_annealing_rises_from_nothing_to_the_whole(name):
    factor = losses.anneal(name, total_steps=1000, share=0.5, cycles=4)
    values = np.array([float(factor(step)) for step in range(1000)])
    assert values[0] < 0.01
    assert values.max() == pytest.approx(1.0, abs=0.01)
    if name == "cyclical":
        np.testing.assert_allclose(values[[0, 250, 500, 750]], 0, atol=1e-6)
        np.testing.assert_allclose(values[[125, 249, 999]], 1)
    else:
        assert np.all(np.diff(values) >= 0)
        assert values[250] == pytest.approx(0.5, abs=0.01)
        assert values[500] > 0.99
    at_once = losses.anneal(name, total_steps=1000, share=0.0)
    assert [float(at_once(step)) for step in (0, 1, 999)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "stairs"}, "unknown annealing 'stairs'"),
        ({"name": "linear", "share": 1.5}, "share is 1.5; it must be 0 to 1"),
        ({"name": "cyclical", "cycles": 0}, "cycles is 0; it must be 1 or more"),
    ],
)
def test_annealing_that_does_not_exist(settings, message):
    with pytest.raises(InputError, match=message):
        losses.anneal(**settings, total_steps=9)


def test_annealed_weights_count_in_training_and_whole_in_evaluation():
    terms = {"kl": (lambda o, b: o["y"], 3.0, losses.anneal("linear", total_steps=10))}
    outputs, mask = {"y": jnp.array([1.0, 3.0])}, np.ones(2, bool)
    for step, expected in ((0, 0.0), (2, 2.4), (9, 6.0)):
        batch = {"mask": mask, "step": np.full(2, step)}
        assert losses.weighted_sum(terms, outputs, batch)[0] == pytest.approx(expected)
    assert losses.weighted_sum(terms, outputs, {"mask": mask})[0] == 6.0
