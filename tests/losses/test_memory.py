"""The loss `memory` and its hook, against the programs of Cluster Contrast and SpCL, in loops."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from market_jax.errors import InputError
from market_jax.losses import Context
from market_jax.losses.memory import memory, move
from market_jax.training import hooks
from market_jax.training.state import init_state, init_variables

RNG = np.random.default_rng(0)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


BANK = unit(RNG.normal(size=(7, 3))).astype(np.float32)
LABELS = np.array([0, 1, 1, 2, 2, 2, -1])  # two known persons' centroids and a cluster, one is free
VECTORS = RNG.normal(size=(6, 3)).astype(np.float32)
SLOTS = np.array([0, 2, 5, 2, -1, 3])
REAL = np.arange(6) < 5
COUNTED = [1, 1, 1, 1, 0, 0]  # no slot; padding


def context(vectors=VECTORS, labels=LABELS):
    batch = {"slot": jnp.array(SLOTS), "mask": jnp.array(REAL)}
    kept = {"bank": jnp.array(BANK), "labels": jnp.array(labels)}
    return Context({"embedding": jnp.asarray(vectors)}, batch, None, {"memory": kept})


def expected(labels, temperature=0.05):
    """Cross-entropy of the classes' mean logits, row by row."""
    values = []
    for vector, slot in zip(VECTORS, SLOTS, strict=True):
        cosines = BANK @ unit(vector) / temperature
        classes = sorted(set(labels[labels >= 0].tolist()))
        logits = np.array([cosines[labels == k].mean() for k in classes])
        own = logits[classes.index(labels[slot])] if slot >= 0 else 0
        values.append(np.log(np.exp(logits).sum()) - own)
    return np.array(values) * COUNTED


@pytest.mark.parametrize("labels", [LABELS, np.array([0, 1, 2, 3, 4, 5, -1])])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_loss_is_the_cross_entropy_of_mean_cosines(labels, compiled):
    run = jax.jit(memory) if compiled else memory
    values, weights = run(context(labels=labels))
    np.testing.assert_array_equal(weights, COUNTED)
    np.testing.assert_allclose(values, expected(labels), rtol=1e-5)
    other, _ = memory(context(labels=labels), temperature=0.5)
    np.testing.assert_allclose(other, expected(labels, 0.5), rtol=1e-5)


def test_what_padding_holds_reaches_no_gradient():
    def total(vectors):
        values, weights = memory(context(vectors))
        return jnp.sum(values * weights)

    broken = jnp.asarray(VECTORS).at[4:].set(jnp.nan)
    gradient = jax.grad(total)(broken)
    np.testing.assert_allclose(gradient[:4], jax.grad(total)(jnp.asarray(VECTORS))[:4], rtol=1e-6)
    assert np.isfinite(gradient).all()
    assert not gradient[4:].any()


def test_a_zero_vector_has_a_gradient():
    values = jax.grad(lambda x: jnp.sum(memory(context(x))[0]))(jnp.zeros((6, 3)))
    assert np.isfinite(values).all()


def test_without_a_memory_the_hook_is_asked_for():
    with pytest.raises(InputError, match="the loss 'memory' needs a memory, which a hook keeps"):
        memory(context()._replace(collections={}))


def test_the_rows_move_their_slots_one_after_the_other():
    bank = BANK.copy()
    for vector, slot in zip(VECTORS[:4], SLOTS[:4], strict=True):
        bank[slot] = unit(0.2 * bank[slot] + 0.8 * unit(vector))
    made = context()
    for run in (move, jax.jit(move, static_argnames=("momentum", "hard"))):
        moved = run(
            made.collections["memory"]["bank"], VECTORS, made.batch, momentum=0.2, hard=False
        )
        np.testing.assert_allclose(moved, bank, rtol=1e-5)


def test_the_least_similar_row_alone_moves_its_slot():
    bank, rows = BANK.copy(), {0: [0], 2: [1, 3], 5: [2]}
    for slot, members in rows.items():
        hardest = min(members, key=lambda i: unit(VECTORS[i]) @ BANK[slot])
        bank[slot] = unit(0.1 * bank[slot] + 0.9 * unit(VECTORS[hardest]))
    made = context()
    moved = move(made.collections["memory"]["bank"], VECTORS, made.batch, momentum=0.1, hard=True)
    np.testing.assert_allclose(moved, bank, rtol=1e-5)


def test_of_equal_rows_the_first_moves_the_slot_once():
    batch = {"slot": jnp.zeros(3, jnp.int32), "mask": jnp.ones(3, bool)}
    moved = move(jnp.array(BANK), np.tile(VECTORS[:1], (3, 1)), batch, momentum=0.5, hard=True)
    np.testing.assert_allclose(moved[0], unit(0.5 * BANK[0] + 0.5 * unit(VECTORS[0])), rtol=1e-5)


class Toy(nn.Module):
    """The mean colour after a BNNeck."""

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.BatchNorm(use_running_average=not train, name="bnneck")(image.mean(axis=(1, 2)))
        return {"embedding": x}


def first_state(model):
    return init_state(init_variables(model, (4, 2), seed=0), optax.sgd(0.1), seed=0)


@pytest.mark.parametrize("hard", [False, True])
def test_the_hook_keeps_a_memory_of_the_size_that_is_asked_for(hard):
    hook = hooks.memory(momentum=0.2, hard=hard, slots=7)
    state = hook.init(first_state(Toy()))
    kept = state.collections["memory"]
    assert kept["bank"].shape == (7, 3)
    assert kept["labels"].tolist() == [-1] * 7
    filled = kept | {"bank": jnp.array(BANK), "labels": jnp.array(LABELS, jnp.int32)}
    state = state.replace(collections=state.collections | {"memory": filled})
    after = jax.jit(hook.update)(state, context())
    expected = move(jnp.array(BANK), VECTORS, context().batch, momentum=0.2, hard=hard)
    np.testing.assert_allclose(after.collections["memory"]["bank"], expected, rtol=1e-5)
    np.testing.assert_array_equal(after.collections["memory"]["labels"], LABELS)
    assert set(after.collections) == {"batch_stats", "memory"}


class Bare(nn.Module):
    """No BatchNorm."""

    @nn.compact
    def __call__(self, image, train=False):
        return {"embedding": nn.Dense(3)(image.mean(axis=(1, 2)))}


def test_a_memory_needs_the_batchnorm_before_it():
    with pytest.raises(InputError, match="memory: the model has 0 layers 'bnneck' with a scale"):
        hooks.memory().init(first_state(Bare()))


@pytest.mark.parametrize(("name", "value"), [("momentum", 1.0), ("momentum", -0.1), ("slots", 0)])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(InputError, match=f"memory: {name} is {value}; it must be"):
        hooks.memory(**{name: value})
