import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_jax.errors import InputError
from market_jax.losses import (
    Context,
    Term,
    annealing,
    evaluate_terms,
    qualify,
    summarize,
)
from market_jax.losses.classification import cross_entropy
from market_jax.losses.metric_learning import triplet
from market_jax.losses.metrics import active_dimensions
from market_jax.losses.reconstruction import kl, mmd
from tests.losses.test_terms import LOGITS, context


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


def test_scheduled_weights_count_in_training_and_whole_in_evaluation():
    terms = {"kl": Term(constant([1.0, 3.0]), 3.0, annealing.linear(total_steps=10))}
    sums = evaluate_terms(terms, {}, Context({}, {"mask": np.ones(2, bool)}))
    for step, expected in ((0, 0.0), (2, 2.4), (9, 6.0)):
        np.testing.assert_allclose(summarize(terms, sums, step)["loss"], expected, rtol=1e-6)
    assert summarize(terms, sums)["loss"] == 6.0


def test_a_term_of_one_data_set():
    def term(context):
        return context.batch["x"], jnp.array([1.0, 0.5, 1.0])

    batch = {"x": jnp.array([1.0, 2.0, 4.0]), "dataset": jnp.array([0, 1, 1])}
    context = Context({}, batch | {"mask": np.ones(3, bool)})
    values, weights = qualify(term, "losses.a", datasets=2, dataset=1)(context)
    np.testing.assert_array_equal(values, [1, 2, 4])
    np.testing.assert_array_equal(weights, [0, 0.5, 1])
    np.testing.assert_array_equal(qualify(term, "losses.a")(context)[1], [1, 0.5, 1])
    with pytest.raises(InputError, match=r"losses\.a\.dataset is -1; it must be 0 or more"):
        qualify(term, "losses.a", datasets=2, dataset=-1)
    for datasets, dataset in ((1, 0), (2, 2)):
        with pytest.raises(InputError, match=rf"data\.name has {datasets} data sets"):
            qualify(term, "losses.a", datasets=datasets, dataset=dataset)


def test_another_data_sets_persons_are_no_strangers():
    points = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    of_two = {
        "pid": jnp.array([1, 1, 2, 2, 3, 3, 4, 4]),
        "dataset": jnp.array([0, 0, 0, 0, 1, 1, 1, 1]),
        "mask": np.ones(8, bool),
    }
    alone = {key: value[4:] for key, value in of_two.items()}
    expected, _ = triplet(Context({"feature": points[4:]}, alone))
    mixed, _ = triplet(Context({"feature": points}, of_two))
    assert not np.allclose(mixed[4:], expected), "a stranger of the other set is nearer"
    term = qualify(triplet, "losses.persons", datasets=2, dataset=1)
    values, weights = term(Context({"feature": points}, of_two))
    np.testing.assert_allclose(values[4:], expected, rtol=1e-5)
    np.testing.assert_array_equal(weights, [0, 0, 0, 0, 1, 1, 1, 1])
