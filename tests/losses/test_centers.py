"""The loss `center` and the hook that keeps its centres, against their paper's formulas."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from market_jax.errors import InputError
from market_jax.losses import Term
from market_jax.losses.metric_learning import center
from market_jax.training import hooks, step
from market_jax.training.state import init_state, init_variables
from tests.losses.test_persons import CENTERS, CLASSES, PEOPLE, VECTORS, compared


def test_the_centre_loss_is_half_the_squared_distance():
    rows = [0.5 * ((VECTORS[i] - CENTERS[CLASSES[i]]) ** 2).sum() if i < 6 else 0 for i in range(9)]
    for run in (center, jax.jit(center)):
        values, weights = run(compared(VECTORS))
        np.testing.assert_allclose(values, rows, rtol=1e-5)
        np.testing.assert_array_equal(weights, PEOPLE)


@pytest.mark.parametrize("collections", [None, {}, {"centers": {"part": jnp.zeros((3, 3))}}])
def test_centres_that_nothing_keeps_are_asked_for(collections):
    made = compared(VECTORS)._replace(collections=collections)
    with pytest.raises(InputError, match="'center' needs the centres of 'feature', which a hook"):
        center(made)


class Toy(nn.Module):
    """The mean colour -> a feature of 3, and 4 persons; with BatchNorm, as a second collection."""

    heads: tuple = ("head_identity",)

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.BatchNorm(use_running_average=not train)(image.mean(axis=(1, 2)))
        return {"feature": x} | {name: nn.Dense(4, name=name)(x) for name in self.heads}


def moved(centers, vectors, classes, rate):
    """Wen et al. 2016, equation 4 and the algorithm's step, in loops."""
    centers = np.array(centers, np.float64)
    for j in range(len(centers)):
        rows = [i for i, k in enumerate(classes) if k == j]
        centers[j] -= rate * sum((centers[j] - vectors[i] for i in rows), 0.0) / (1 + len(rows))
    return centers


def toy_state(rate=0.25):
    hook = hooks.centers(rate=rate)
    state = init_state(init_variables(Toy(), (4, 2), seed=0), optax.sgd(0.1), seed=0)
    return hook, hook.init(state)


def test_the_centres_begin_at_0_with_the_size_of_the_classifier():
    _, state = toy_state()
    assert set(state.collections) == {"batch_stats", "centers"}
    np.testing.assert_array_equal(state.collections["centers"]["feature"], np.zeros((4, 3)))


def test_two_hooks_keep_the_centres_of_two_features():
    _, state = toy_state()
    state = hooks.centers(features="part", classifier="head_identity").init(state)
    assert set(state.collections["centers"]) == {"feature", "part"}


def test_the_hook_moves_centres_by_the_formula():
    hook, state = toy_state()
    vectors = np.where(PEOPLE[:, None], VECTORS, np.nan)
    expected = np.zeros((4, 3))
    for update in (hook.update, jax.jit(hook.update)):
        state = update(state, compared(vectors)._replace(collections=state.collections))
        expected = moved(expected, VECTORS[:6], CLASSES[:6], 0.25)
        found = state.collections["centers"]["feature"]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        np.testing.assert_array_equal(found[3], np.zeros(3))  # nobody of this class was seen


@pytest.mark.parametrize("parts", [1, 2])
def test_centres_pass_through_the_training_step(parts):
    hook, state = toy_state()
    model, terms = Toy(), {"center": Term(center)}
    run = step.make_train_step(
        model.apply,
        step.Objective(terms, {}),
        lambda key, images: images / 255.0,
        optax.sgd(0.1),
        hooks=[hook],
        grad_accum_steps=parts,
    )
    images = np.random.default_rng(1).integers(0, 256, (4, 4, 2, 3)).astype(np.uint8)
    labels = np.array([0, 2, 2, -1])
    batch = {"image": images, "identity": labels, "mask": np.ones(4, bool)}
    mean = images.mean(axis=(1, 2)) / 255
    groups = [np.arange(part, 4, parts) for part in range(parts)]  # every parts-th row
    features = np.zeros((4, 3))
    for rows in groups:
        features[rows] = (mean[rows] - mean[rows].mean(0)) / np.sqrt(mean[rows].var(0) + 1e-5)
    state, metrics = run(state, batch)
    losses = [0.5 * (features[[i for i in r if labels[i] >= 0]] ** 2).sum(1).mean() for r in groups]
    np.testing.assert_allclose(metrics["loss/center"], np.mean(losses), rtol=1e-3)
    expected = moved(np.zeros((4, 3)), features, labels, 0.25)
    np.testing.assert_allclose(state.collections["centers"]["feature"], expected, atol=1e-4)
    state, _ = run(state, batch)
    assert set(state.collections) == {"batch_stats", "centers"}
    evaluate = step.make_evaluation_step(
        model.apply, step.Objective(terms, {}), lambda x: x / 255.0
    )
    assert np.isfinite(evaluate(state.averaged_variables, batch)["loss/center"][0])


@pytest.mark.parametrize("heads", [(), ("my_head_identity",)])
def test_centres_need_the_layer_that_classifies(heads):
    state = init_state(init_variables(Toy(heads), (4, 2), seed=0), optax.sgd(0.1), seed=0)
    with pytest.raises(InputError, match="the model has 0 layers 'head_identity' with a kernel"):
        hooks.centers().init(state)


@pytest.mark.parametrize("rate", [0.0, 1.5, float("nan")])
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(InputError, match=r"centers: rate is .*; it must be (above 0|a finite)"):
        hooks.centers(rate=rate)
