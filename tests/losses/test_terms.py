import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from market_jax.errors import InputError
from market_jax.losses import (
    METRICS,
    TERMS,
    Context,
    Term,
    evaluate_terms,
    summarize,
)
from market_jax.losses.classification import cross_entropies, cross_entropy
from market_jax.losses.metric_learning import triplet
from market_jax.losses.metrics import accuracy, active_dimensions
from market_jax.losses.reconstruction import kl, mmd, squared_error

LOGITS = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))


def context(outputs, batch=None, **rest):
    batch = batch or {}
    size = len(next(iter(outputs.values())))
    return Context(outputs, {"mask": np.ones(size, bool)} | batch, **rest)


def test_cross_entropy_against_its_closed_form():
    batch = {"hat": jnp.array([0, 1])}
    values, weights = cross_entropy(context({"hat": LOGITS}, batch), logits="hat")
    np.testing.assert_allclose(values, -np.log([0.5, 0.1]), rtol=1e-6)
    np.testing.assert_array_equal(weights, [1, 1])


def test_label_smoothing_against_its_closed_form():
    batch = {"hat": jnp.array([0, 1])}
    values, _ = cross_entropy(context({"part1": LOGITS}, batch), logits="part1", labels="hat",
                              label_smoothing=0.3)  # fmt: skip
    expected = 0.7 * -np.log([0.5, 0.1]) + 0.3 * -np.asarray(LOGITS).mean(axis=1)
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_unknown_labels_have_no_say_and_give_no_gradient():
    batch = {"x": jnp.array([-1, 2])}

    def total(logits):
        terms = {"x": Term(functools.partial(cross_entropy, logits="x"))}
        return summarize(terms, evaluate_terms(terms, {}, context({"x": logits}, batch)))["loss"]

    gradient = jax.grad(total)(LOGITS)
    assert np.abs(gradient[0]).max() == 0
    assert np.abs(gradient[1]).max() > 0
    np.testing.assert_allclose(total(LOGITS), -np.log(0.8), rtol=1e-5)  # not diluted


def test_several_classifications_average_over_what_is_known_of_a_row():
    batch = {"a": jnp.array([0, -1]), "b": jnp.array([1, 2]), "c": jnp.array([-1, -1])}
    outputs = {"a": LOGITS, "b": LOGITS, "c": LOGITS}
    values, weights = cross_entropies(context(outputs, batch), logits=("a", "b", "c"))
    np.testing.assert_allclose(values, [-np.log(0.5 * 0.25) / 2, -np.log(0.8)], rtol=1e-6)
    np.testing.assert_allclose(weights, [2 / 3, 1 / 3], rtol=1e-6)


def test_accuracy_is_the_share_of_right_heads_and_unknown_is_not_wrong():
    outputs = {"a": LOGITS, "b": LOGITS}
    batch = {"a": jnp.array([0, 0]), "b": jnp.array([-1, 2])}
    values, weights = accuracy(context(outputs, batch), logits=("a", "b"))
    np.testing.assert_allclose(values, [1.0, 0.5])
    np.testing.assert_allclose(weights, [0.5, 1.0])


@pytest.mark.parametrize("term", [cross_entropies, accuracy])
@pytest.mark.parametrize(("logits", "labels"), [((), ()), (("a", "b"), ("a",))])
def test_outputs_and_columns_come_in_pairs(term, logits, labels):
    with pytest.raises(
        InputError, match=r"logits is \(.*\) and labels is .*; they must be as many"
    ):
        term(context({"a": LOGITS}), logits=logits, labels=labels)


# one dimension; persons 1, 1, 2, 2, nobody, padding
POINTS = jnp.array([[0.0], [1.0], [1.5], [4.0], [1.1], [1.2]])
PEOPLE = {
    "pid": jnp.array([1, 1, 2, 2, 0, 1]),
    "mask": jnp.array([True, True, True, True, True, False]),
}


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        # gaps: 1 - 1.5, 1 - 0.5, 2.5 - 0.5, 2.5 - 3; nobody and padding are nobody's negatives
        (0.3, [0.0, 0.8, 2.3, 0.0, 0.0, 0.0]),
        (0.0, [*np.log1p(np.exp([-0.5, 0.5, 2.0, -0.5])), 0.0, 0.0]),
    ],
)
def test_triplet_by_hand(margin, expected):
    term = functools.partial(triplet, margin=margin)
    for function in (term, jax.jit(term)):
        values, weights = function(Context({"feature": POINTS}, PEOPLE))
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(weights, [1, 1, 1, 1, 0, 0])


def test_triplet_without_a_match_or_a_stranger_has_no_say():
    def total(x, batch):
        return triplet(Context({"feature": x}, batch))[0].sum()

    for pids in ([1, 2, 3, 4, 5, 6], [1, 1, 1, 1, 1, 1], [1, 1, 0, 0, -1, -1]):
        batch = PEOPLE | {"pid": jnp.array(pids), "mask": jnp.ones(6, bool)}
        assert np.abs(jax.grad(total)(POINTS, batch)).max() == 0
        assert triplet(Context({"feature": POINTS}, batch))[1].sum() == 0
    same = jnp.zeros((6, 1))  # points that coincide have a finite gradient
    assert np.isfinite(jax.grad(total)(same, PEOPLE)).all()


KEYWORDS = {
    "cross_entropy": {"logits": "x"},
    "cross_entropies": {"logits": ("x", "x")},
    "triplet": {"features": "x"},
    "weighted_triplet": {"features": "x"},
    "multi_similarity": {"features": "x"},
    "center": {"features": "x", "labels": "x"},
    "circle_softmax": {"logits": "x"},
    "cosine_softmax": {"logits": "x", "scale": 1.0},
    "focal_cross_entropies": {"logits": ("x", "x")},
    "weighted_cross_entropies": {"logits": ("x", "x"), "ratios": {"x": (0.2, 0.3, 0.5)}},
    "accuracy": {"logits": ("x",)},
    "centroid_triplet": {"features": "x"},
    "memory": {"features": "x"},
    "ctc": {"labels": ("x",)},
    "squared_error": {"reduce": "sum"},
}


@pytest.mark.parametrize("name", sorted(TERMS | METRICS))
def test_every_term_gives_a_value_per_image_eager_and_jitted(name):
    term = functools.partial((TERMS | METRICS)[name], **KEYWORDS.get(name, {}))
    rng = np.random.default_rng(0)
    images = {k: rng.random((2, 4, 3, 3), np.float32) for k in ("reconstruction", "target")}
    latent = {k: rng.normal(size=(2, 5)).astype(np.float32) for k in ("mean", "logvar")}
    outputs = {"x": LOGITS, "sequence": jnp.ones((2, 2, 4))} | images | latent
    batch = {"x": jnp.array([1, 2]), "pid": jnp.array([1, 2]), "slot": jnp.array([0, 1])}
    kept = {"centers": {"x": jnp.zeros((3, 3))}}
    kept["memory"] = {"bank": jnp.eye(3), "labels": jnp.arange(3)}
    made = context(outputs, batch, collections=kept)
    eager, jitted = term(made), jax.jit(term)(made)
    for a, b in zip(eager, jitted, strict=True):
        assert a.shape == (2,)
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_squared_error_by_hand():
    target = np.zeros((2, 4, 2, 3), np.float32)
    reconstruction = target + np.array([1, 2], np.float32)[:, None, None, None]
    outputs = {"reconstruction": reconstruction, "target": target}
    np.testing.assert_allclose(squared_error(context(outputs), reduce="sum")[0], [24, 96])
    np.testing.assert_allclose(squared_error(context(outputs), reduce="mean")[0], [1, 4])
    with pytest.raises(InputError, match="unknown reduction 'max'; known: mean, sum"):
        squared_error(context(outputs), reduce="max")


def test_kl_against_its_integral():
    mean, std = 0.7, 0.4
    x = np.linspace(-8, 8, 200_001)
    q = norm.pdf(x, mean, std)
    integral = np.trapezoid(np.where(q > 0, q * (norm.logpdf(x, mean, std) - norm.logpdf(x)), 0), x)
    outputs = {"mean": np.array([[mean, 0.0]]), "logvar": np.array([[2 * np.log(std), 0.0]])}
    np.testing.assert_allclose(kl(context(outputs))[0], [integral], rtol=1e-6)


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
    found = mmd(context(outputs))[0]
    np.testing.assert_allclose(found, np.full(4, value), rtol=1e-5)


def test_mmd_vanishes_where_the_posterior_is_the_prior_and_ignores_padding():
    prior = {"mean": np.zeros((8, 5)), "logvar": np.zeros((8, 5))}
    np.testing.assert_allclose(mmd(context(prior))[0], 0, atol=1e-6)
    outputs, mask = gaussians(6, 5), np.arange(6) < 4
    padded = mmd(context(outputs, {"mask": mask}))[0]
    alone = mmd(context({k: v[:4] for k, v in outputs.items()}))[0]
    np.testing.assert_allclose(padded[:4], alone, rtol=1e-5)
    assert mmd(context(outputs, {"mask": np.arange(6) < 1}))[0][0] == 0, "one image says nothing"


def test_active_dimensions_by_hand():
    mean = np.array([[0.0, 1.0, 0.5], [0.0, -1.0, 0.5], [9.0, 9.0, 9.0]])
    found = active_dimensions(context({"mean": mean}, {"mask": np.array([True, True, False])}))[0]
    np.testing.assert_allclose(found, 1)
