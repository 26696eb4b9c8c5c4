import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from market_jax import devices, losses
from market_jax.data import transforms
from market_jax.models.attributes_cnn import Model
from market_jax.models.backbones import vit
from market_jax.training import step
from market_jax.training.hooks import Hook
from market_jax.training.state import init_state, init_variables, split_key

MODEL = Model(
    classes={"hat": 2, "age": 4}, widths=(4, 6, 8, 6), final_pool=(4, 4), head_width=8, dropout=0.2
)
LOSS = step.Objective(
    {
        name: losses.Term(functools.partial(losses.TERMS["cross_entropy"], logits=name), 0.5)
        for name in ("hat", "age")
    },
    {"accuracy": functools.partial(losses.METRICS["accuracy"], logits=("hat", "age"))},
)
TX = optax.sgd(0.03, momentum=0.9)
SLOW = optax.sgd(0.001)  # rounding does not grow in so few steps
STEPS = 20


class Still(nn.Module):
    """A model without BatchNorm and dropout."""

    classes: dict

    @nn.compact
    def __call__(self, image, train=False):
        x = jnp.mean(nn.relu(nn.Conv(4, (3, 3))(image)), axis=(1, 2))
        return {name: nn.Dense(k)(x) for name, k in self.classes.items()}


def augment(key, images):
    used = {"flip": transforms.flip, "noise": functools.partial(transforms.noise, std=0.02)}
    return transforms.augment(key, transforms.to_float(images), used)


def make_state(model=MODEL, tx=SLOW, seed=0):
    return init_state(init_variables(model, (32, 16), seed=seed), tx, seed=seed)


def test_compiled_quickly_the_first_variables_are_the_same():
    found = init_variables(MODEL, (32, 16), seed=3)
    drawn = MODEL.init(split_key(3)[0], np.zeros((1, 32, 16, 3), np.float32))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), found, drawn)


def batches(count, size=16):
    rng = np.random.default_rng(0)
    for _ in range(count):
        hat = rng.integers(0, 2, size)
        images = rng.integers(0, 120, (size, 32, 16, 3)) + 100 * hat[:, None, None, None]
        yield {
            "image": images.astype(np.uint8),
            "hat": hat,
            "age": rng.integers(0, 4, size),
            "mask": np.ones(size, bool),
        }


def train(mesh, count, model=MODEL, tx=SLOW, **settings):
    state = devices.replicate(mesh, make_state(model, tx))
    train_step = step.make_train_step(model.apply, LOSS, augment, tx, **settings)
    history = []
    for batch in batches(count):
        state, metrics = train_step(state, devices.place_batch(mesh, batch))
        history.append(float(metrics["loss"]))
    return state, history


@pytest.fixture(scope="module")
def single():
    return train(devices.make_mesh(jax.devices()[:1]), STEPS)


def assert_same_training(found, expected):
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
    states = [jax.tree.leaves((state.params, state.collections)) for state, _ in (found, expected)]
    for a, b in zip(*states, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)


def test_many_devices_give_the_single_device_result(single):
    """BatchNorm's statistics are those of the whole batch."""
    assert_same_training(train(devices.make_mesh(), STEPS), single)


def test_rematerialisation_changes_nothing_but_what_is_kept(single):
    mesh = devices.make_mesh(jax.devices()[:1])
    assert_same_training(train(mesh, STEPS, remat=True), single)
    state = make_state(tx=TX)
    programs = [
        step.make_train_step(MODEL.apply, LOSS, augment, TX, remat=remat)
        .trace(state, next(batches(1)))
        .lower(lowering_platforms=("cuda",))
        .as_text()
        for remat in (False, True)
    ]
    plain, again = (
        {name: text.count(f"stablehlo.{name}") for name in ("convolution", "rsqrt")}
        for text in programs
    )
    assert again["convolution"] == plain["convolution"], "a convolution is computed twice"
    assert again["rsqrt"] > plain["rsqrt"], "BatchNorm is not computed again"


@pytest.mark.parametrize("count", [1, 2])
def test_accumulation_averages_the_gradients_of_the_parts(count):
    """Without BatchNorm's batch statistics and randomness, parts make no difference."""
    plain = Still(classes={"hat": 2, "age": 4})
    mesh = devices.make_mesh(jax.devices()[:count])
    whole = train(mesh, 4, plain)
    assert_same_training(train(mesh, 4, plain, grad_accum_steps=4), whole)


def test_accumulation_moves_batch_statistics_part_by_part():
    mesh = devices.make_mesh(jax.devices()[:1])
    state, _ = train(mesh, 1, grad_accum_steps=2)
    mean = state.collections["batch_stats"]["BatchNorm_0"]["mean"]
    image = np.asarray(next(batches(1))["image"], np.float32) / 255
    parts = [image[i::2].mean(axis=(0, 1, 2)) for i in range(2)]
    expected = 0.9 * (0.1 * parts[0]) + 0.1 * parts[1]
    np.testing.assert_allclose(mean, expected, atol=2e-3)


def test_training_learns():
    _, history = train(devices.make_mesh(jax.devices()[:1]), 40, tx=TX)
    assert np.mean(history[-5:]) < 0.8 * np.mean(history[:3])


def test_the_same_seed_gives_the_same_parameters(single):
    again, _ = train(devices.make_mesh(jax.devices()[:1]), STEPS)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(single[0]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(again.step) == STEPS


def test_the_state_is_donated():
    mesh = devices.make_mesh(jax.devices()[:1])
    state = devices.replicate(mesh, make_state(tx=TX))
    train_step = step.make_train_step(MODEL.apply, LOSS, augment, TX)
    train_step(state, devices.place_batch(mesh, next(batches(1))))
    assert jax.tree.leaves(state.params)[0].is_deleted()


def test_evaluation_counts_each_image_once():
    """A padded last batch weighs what its images weigh."""
    mesh = devices.make_mesh(jax.devices()[:1])
    state = make_state(tx=TX)
    evaluation = step.make_evaluation_step(MODEL.apply, LOSS, transforms.to_float)
    (batch,) = batches(1)
    whole = step.evaluate(evaluation, LOSS, state.variables, [devices.place_batch(mesh, batch)])
    parts = []
    for rows in (np.arange(12), np.r_[12:16, np.zeros(8, int)]):
        part = {key: value[rows] for key, value in batch.items()}
        part["mask"] = np.arange(12) < (12 if len(parts) == 0 else 4)
        parts.append(devices.place_batch(mesh, part))
    split = step.evaluate(evaluation, LOSS, state.variables, parts)
    assert split.keys() == whole.keys()
    for name, value in whole.items():
        assert split[name] == pytest.approx(value, rel=1e-5)


def test_state_of_another_seed_differs():
    a, b = (make_state(tx=TX, seed=seed) for seed in (0, 1))
    kernels = [s.params["Conv_0"]["kernel"] for s in (a, b)]
    assert not np.allclose(*kernels)


class Remembering(nn.Module):
    """A model with a collection of its own: the mean colour of the last batch."""

    @nn.compact
    def __call__(self, image, train=False):
        last = self.variable("memory", "last", jnp.zeros, (3,))
        color = jnp.mean(image, axis=(0, 1, 2))
        if train and not self.is_initializing():
            last.value = color
        x = jnp.mean(image, axis=(1, 2))
        return {"hat": nn.Dense(2)(x) + last.value.sum(), "age": nn.Dense(4)(x)}


@pytest.mark.parametrize("parts", [1, 2])
def test_every_collection_is_carried_from_step_to_step(parts):
    mesh = devices.make_mesh(jax.devices()[:1])
    state, _ = train(mesh, 2, Remembering(), grad_accum_steps=parts)
    assert sorted(state.variables) == ["memory", "params"]
    assert np.all(np.asarray(state.collections["memory"]["last"]) > 0.1)


@pytest.mark.parametrize("parts", [1, 2])
def test_hooks_see_the_batch_in_its_order_after_the_update(parts):
    """A hook that keeps the sum of logits by label in a collection."""

    def update(state, context):
        bank = state.collections["bank"]["sums"]
        sums = jnp.zeros_like(bank).at[context.batch["hat"]].add(context.outputs["age"])
        return state.replace(collections=state.collections | {"bank": {"sums": bank + sums}})

    def init(state):
        bank = {"bank": {"sums": jnp.zeros((2, 4))}}
        return state.replace(collections=state.collections | bank)

    hook, still = Hook(init, update), Still(classes={"hat": 2, "age": 4})
    state = hook.init(make_state(still, TX))
    settings = {"hooks": [hook], "grad_accum_steps": parts}
    plain = step.make_train_step(still.apply, LOSS, lambda k, x: x / 255.0, TX, **settings)
    (batch,) = batches(1)
    outputs = still.apply(state.variables, batch["image"] / np.float32(255))["age"]
    expected = [np.asarray(outputs)[batch["hat"] == k].sum(axis=0) for k in (0, 1)]
    state, _ = plain(state, batch)
    np.testing.assert_allclose(state.collections["bank"]["sums"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_blocks_of_a_transformer_are_computed_again_one_by_one(lora_rank):
    """Else what all of them compute again would be kept at once."""
    model = vit.Model(
        "tiny", 4, patch_stride=4, classes={"hat": 2, "age": 4}, lora_rank=lora_rank, drop_path=0.5
    )
    state, batch = make_state(model), next(batches(1, 64))
    results, sizes = [], []
    for remat in (False, True):
        train_step = step.make_train_step(model.apply, LOSS, augment, SLOW, remat=remat)
        built = train_step.lower(state, batch).compile()
        sizes.append(built.memory_analysis().temp_size_in_bytes)
        results.append(built(make_state(model), batch))
    assert sizes[1] < sizes[0] / 2
    (first, metrics), (second, others) = results
    np.testing.assert_allclose(metrics["loss"], others["loss"], rtol=1e-5)
    for a, b in zip(*(jax.tree.leaves(s.params) for s in (first, second)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
