"""CTC against the sum over all paths."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.losses import Context, Term, evaluate_terms, summarize
from market_jax.losses.sequences import ctc

# tokens: nothing, hat no, hat yes, age 0 to 2
SIZES, LABELS = {"hat": 2, "age": 3}, ("hat", "age")
TOLD = [[1, 0], [0, 2], [-1, 1], [1, -1], [-1, -1]]
TOKENS = [(2, 3), (1, 5), (4,), (2,), ()]
LOGITS = np.random.default_rng(0).normal(size=(5, 4, 6))


def context(logits, told=TOLD):
    batch = {
        name: jnp.array(column) for name, column in zip(LABELS, np.transpose(told), strict=True)
    }
    outputs = {name: jnp.zeros((len(told), k)) for name, k in SIZES.items()}
    batch["mask"] = np.ones(len(told), bool)
    return Context(outputs | {"sequence": jnp.asarray(logits, jnp.float32)}, batch)


def over_all_paths(logits, tokens):
    """The probability of the paths that tell the tokens, repetitions and nothing left out."""
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    total = 0.0
    for path in itertools.product(range(shares.shape[1]), repeat=len(shares)):
        if tuple(token for token, _ in itertools.groupby(path) if token) == tokens:
            total += np.prod(shares[np.arange(len(path)), path])
    return total


def test_ctc_is_the_sum_over_paths():
    expected = [
        -np.log(over_all_paths(logits, tokens)) / len(tokens) if tokens else 0.0
        for logits, tokens in zip(LOGITS, TOKENS, strict=True)
    ]
    for run in (ctc, jax.jit(ctc, static_argnames="labels")):
        values, weights = run(context(LOGITS), labels=LABELS)
        np.testing.assert_allclose(values, expected, rtol=1e-5)
        np.testing.assert_array_equal(weights, [1, 1, 1, 1, 0])


def test_the_gradient_is_finite_and_none_where_nothing_is_known():
    terms = {"a": Term(functools.partial(ctc, labels=LABELS))}

    def total(logits):
        return summarize(terms, evaluate_terms(terms, {}, context(logits)))["loss"]

    gradient = jax.grad(total)(jnp.array(50 * LOGITS, jnp.float32))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[:4]).sum(axis=(1, 2)).min() > 0
    np.testing.assert_array_equal(gradient[4], np.zeros((4, 6)))


@pytest.mark.parametrize("shape", [(5, 1, 6), (5, 4, 7)])
def test_a_sequence_that_does_not_fit_is_named(shape):
    with pytest.raises(InputError, match="2 labels need at least as many places, and 6 tokens"):
        ctc(context(np.zeros(shape)), labels=LABELS)
