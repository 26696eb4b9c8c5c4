import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from market_jax.errors import InputError
from market_jax.losses import (
    METRICS,
    TERMS,
    Context,
    Term,
    annealing,
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
    with pytest.raises(InputError, match=r"label_smoothing is 2.0; it must be 0 or more"):
        cross_entropy(context({"hat": LOGITS}, batch), logits="hat", label_smoothing=2.0)


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


def constant(values, weights=None):
    """A term with given values and weights."""
    weights = np.ones(len(values)) if weights is None else weights
    return lambda context: (jnp.asarray(values), jnp.asarray(weights))


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.floats(0.0, 3.0))
def test_the_loss_is_made_of_means_over_the_mask(mask, weight):
    values = np.arange(len(mask), dtype=np.float32) + 1
    terms = {
        "a": Term(constant(values), weight),
        "b": Term(lambda c: constant(c.outputs["y"])(c), 2.0),
    }
    made = Context({"y": -values}, {"mask": np.array(mask)})
    found = summarize(terms, evaluate_terms(terms, {"m": constant(3 * values)}, made))
    mean = values[mask].mean() if any(mask) else 0.0
    np.testing.assert_allclose(found["loss"], (weight - 2.0) * mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["loss/a"], mean, rtol=1e-5)
    np.testing.assert_allclose(found["m"], 3 * mean, rtol=1e-5)


def test_what_has_no_say_may_hold_anything():
    values, weights = np.array([1.0, np.nan, np.inf, 5.0]), np.array([1.0, 0.0, 1.0, 1.0])
    terms = {"a": Term(constant(values, weights))}
    made = Context({}, {"mask": np.array([True, True, False, True])})
    assert summarize(terms, evaluate_terms(terms, {}, made))["loss"] == 3.0


def test_a_term_without_weight_is_reported_and_not_added():
    terms = {"a": Term(constant([np.nan]), 0.0), "b": Term(constant([2.0]))}
    found = summarize(terms, evaluate_terms(terms, {}, Context({}, {"mask": np.array([True])})))
    assert found["loss"] == 2.0
    assert np.isnan(found["loss/a"])


def test_sums_over_batches_give_the_whole():
    """A padded last batch weighs what its rows weigh; rows without a say weigh nothing."""
    values, weights = np.arange(6.0), np.array([1.0, 0.0, 1.0, 0.5, 1.0, 1.0])
    terms = {"a": Term(lambda c: (c.batch["v"], c.batch["w"]), 2.0)}

    def sums(rows, mask):
        batch = {"v": values[rows], "w": weights[rows], "mask": np.array(mask)}
        return evaluate_terms(terms, {}, Context({}, batch))

    whole = summarize(terms, sums(np.arange(6), [True] * 6))
    parts = [sums(np.arange(4), [True] * 4), sums([4, 5, 0, 0], [True, True, False, False])]
    added = jax.tree.map(lambda a, b: a + b, *parts)
    for name, value in summarize(terms, added).items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-6)


def test_metrics_give_no_gradient():
    def loss(x):
        terms = {"a": Term(lambda c: (c.outputs["x"] ** 2, jnp.ones(1)))}
        made = Context({"x": x}, {"mask": np.ones(1, bool)})
        found = summarize(
            terms, evaluate_terms(terms, {"m": lambda c: (c.outputs["x"], jnp.ones(1))}, made)
        )
        return found["loss"] + 100 * found["m"]

    assert jax.grad(loss)(jnp.array([3.0]))[0] == 6.0


def test_the_gradient_of_the_loss_is_that_of_the_plain_weighted_sum():
    rows = np.array([True, True, False])
    batch = {"x": jnp.array([0, -1, 1]), "mask": rows}
    terms = {
        "a": Term(functools.partial(cross_entropy, logits="x"), 0.7),
        "b": Term(kl, 0.2, annealing.linear(total_steps=10)),
    }
    rng = np.random.default_rng(0)
    outputs = {k: jnp.array(rng.normal(size=(3, 4)), jnp.float32) for k in ("x", "mean", "logvar")}

    def reduced(outputs):
        sums = evaluate_terms(terms, {}, Context(outputs, batch))
        return summarize(terms, sums, 2)["loss"]

    def plain(outputs):  # one labelled row; two that are not padding; a factor of 0.4
        made = Context(outputs, batch)
        return 0.7 * terms["a"].function(made)[0][0] + 0.4 * 0.2 * kl(made)[0][:2].mean()

    for gradient in (jax.grad(reduced), jax.jit(jax.grad(reduced))):
        for a, b in zip(
            *map(jax.tree.leaves, (gradient(outputs), jax.grad(plain)(outputs))), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("term", [triplet, mmd, kl, active_dimensions])
def test_padding_may_hold_anything(term):
    rng, real = np.random.default_rng(0), np.array([True, True, True, False])
    batch = {"pid": jnp.array([1, 1, 2, 2]), "mask": real}
    terms = {"a": Term(term)}

    def loss(outputs):
        return summarize(terms, evaluate_terms(terms, {}, Context(outputs, batch)))["loss"]

    names = ("feature", "mean", "logvar")
    clean = {k: jnp.array(rng.normal(size=(4, 5)), jnp.float32) for k in names}
    dirty = {k: jnp.where(real[:, None], v, jnp.nan) for k, v in clean.items()}
    np.testing.assert_allclose(loss(dirty), loss(clean), rtol=1e-6)
    for a, b in zip(
        *map(jax.tree.leaves, (jax.grad(loss)(dirty), jax.grad(loss)(clean))), strict=True
    ):
        np.testing.assert_allclose(a[real], b[real], rtol=1e-5, atol=1e-7)


def test_an_output_that_does_not_exist_is_named():
    terms = {"hat": Term(functools.partial(cross_entropy, logits="hatt", labels="hat"))}
    made = context({"hat": LOGITS}, {"hat": jnp.array([0, 1])})
    with pytest.raises(InputError, match=r"losses\.hat: there is no output or column 'hatt'"):
        evaluate_terms(terms, {}, made)


KEYWORDS = {
    "cross_entropy": {"logits": "x"},
    "cross_entropies": {"logits": ("x", "x")},
    "uncertain_cross_entropies": {"logits": ("x", "x"), "group": "x"},
    "triplet": {"features": "x"},
    "accuracy": {"logits": ("x",)},
    "squared_error": {"reduce": "sum"},
}


@pytest.mark.parametrize("name", sorted(TERMS | METRICS))
def test_every_term_gives_a_value_per_image_eager_and_jitted(name):
    term = functools.partial((TERMS | METRICS)[name], **KEYWORDS.get(name, {}))
    rng = np.random.default_rng(0)
    images = {k: rng.random((2, 4, 3, 3), np.float32) for k in ("reconstruction", "target")}
    latent = {k: rng.normal(size=(2, 5)).astype(np.float32) for k in ("mean", "logvar")}
    outputs = {"x": LOGITS, "log_variance_x": jnp.ones(2)} | images | latent
    made = context(outputs, {"x": jnp.array([1, 2]), "pid": jnp.array([1, 2])})
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


@pytest.mark.parametrize("name", annealing.SCHEDULES)
def test_a_schedule_rises_from_nothing_to_the_whole(name):
    make = annealing.SCHEDULES[name]
    factor = make(total_steps=1000, share=0.5)
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
    at_once = make(total_steps=1000, share=0.0)
    assert [float(at_once(step)) for step in (0, 1, 999)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("linear", {"share": 1.5}, "share is 1.5; it must be 0 to 1"),
        ("cyclical", {"cycles": 0}, "cycles is 0; it must be 1 or more"),
    ],
)
def test_a_schedule_out_of_range_is_refused(name, settings, message):
    with pytest.raises(InputError, match=message):
        annealing.SCHEDULES[name](**settings, total_steps=9)


def test_scheduled_weights_count_in_training_and_whole_in_evaluation():
    terms = {"kl": Term(constant([1.0, 3.0]), 3.0, annealing.linear(total_steps=10))}
    sums = evaluate_terms(terms, {}, Context({}, {"mask": np.ones(2, bool)}))
    for step, expected in ((0, 0.0), (2, 2.4), (9, 6.0)):
        np.testing.assert_allclose(summarize(terms, sums, step)["loss"], expected, rtol=1e-6)
    assert summarize(terms, sums)["loss"] == 6.0
