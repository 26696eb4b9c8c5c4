"""Trainings in stages: pictures that grow, a stride that changes, and a restart across a border."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax import build, experiment, fitting, runs, scripts
from market_jax.errors import InputError
from market_jax.recipes import supervised
from market_jax.training import checkpoints, writers
from tests import toys
from tests.conftest import small


class Model(nn.Module):
    """A backbone and a linear layer; it notes the sizes of the pictures that it is given."""

    backbone: nn.Module

    @nn.compact
    def __call__(self, image, train=False):
        x = self.backbone(image, train)
        return {"embedding": x, "gender": nn.Dense(2)(x)}


class Backbone(nn.Module):
    """One convolution with a stride, and the mean over places."""

    last_stride: int = 2

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.Conv(4, (3, 3), strides=self.last_stride)(image)
        if not self.is_initializing():
            SEEN.add((*image.shape[1:3], x.shape[1]))
        return jnp.mean(nn.relu(x), axis=(1, 2))


SEEN: set[tuple[int, int, int]] = set()
STAGES = {
    "second": {"until": 0.75, "image_size": (24, 12), "last_stride": 1},
    "first": {"until": 0.5, "image_size": (16, 8)},
}


def staged(synthetic, **changes):
    """A tiny network in three stages."""
    config = toys.get_config()
    config.data.dir = str(synthetic)
    config.model = {
        "name": "tests.recipes.test_stages:Model",
        "backbone": {"name": "tests.recipes.test_stages:Backbone", "last_stride": 2},
    }
    config.losses = {"gender": {"name": "cross_entropy", "logits": "gender", "weight": 1.0}}
    config.hooks, config.evaluators, config.epochs = {}, {}, 2
    config.stages = STAGES
    config.update_from_flattened_dict(changes)
    return config


class At(NamedTuple):
    """A state of which the step alone is asked."""

    step: int


def parameters(workdir):
    """The latest parameters of a run, as arrays."""
    run = runs.restore(workdir, "latest", allow_imports=True)
    return jax.tree.leaves(run.predict.variables)


def test_stages_follow_one_another_by_their_ends(synthetic):
    config = staged(synthetic)
    stages = build.stages(config)
    assert [until for until, _ in stages] == [0.5, 0.75, 1.0]
    assert [tuple(stage.data.image_size) for _, stage in stages] == [(16, 8), (24, 12), (32, 16)]
    assert [stage.model.backbone.last_stride for _, stage in stages] == [2, 1, 2]
    assert tuple(config.data.image_size) == (32, 16), "the config is left as it was"


def test_without_stages_there_is_one_round_that_never_ends(synthetic):
    training = experiment.prepare(staged(synthetic, stages={}), synthetic, None)
    this = supervised.make_rounds(training)(At(0), 0)
    assert this.steps is None
    assert this.step is None


def test_pictures_and_strides_are_those_of_the_stage(synthetic, tmp_path):
    SEEN.clear()
    supervised.fit(staged(synthetic), tmp_path / "run")
    assert {(16, 8, 8), (24, 12, 24), (32, 16, 16)} == SEEN


def test_no_picture_comes_twice_where_an_epoch_has_stages(synthetic):
    """The border does not begin the epoch anew."""
    training = experiment.prepare(staged(synthetic, epochs=1), synthetic, None)
    rounds = supervised.make_rounds(training)
    rows, first = [], 0
    for number in range(3):
        this = rounds(At(first), number)
        steps = training.plan.total_steps - first if this.steps is None else this.steps
        rows += [row for step in range(steps) for row in this.sampler.indices(step)]
        first += steps
    assert first == training.plan.total_steps
    assert len(set(rows)) == len(rows)


def test_a_restart_at_any_step_ends_the_same(synthetic, tmp_path, monkeypatch):
    """Before, at and after a border, bit for bit."""
    config = staged(synthetic)
    supervised.fit(config, tmp_path / "whole")
    lines = writers.read_metrics(tmp_path / "whole")
    total = max(line["step"] for line in lines)
    ends = [round(0.5 * total), round(0.75 * total)]
    whole = parameters(tmp_path / "whole")
    for strike in (ends[0] - 1, ends[0], ends[1] + 1):
        folder = tmp_path / str(strike)
        make = fitting._make_stop
        monkeypatch.setattr(fitting, "_make_stop", lambda asked, at=strike: lambda step: step == at)
        with pytest.raises(scripts.Stopped):
            supervised.fit(config, folder)
        assert checkpoints.steps(folder / "checkpoints")[-1] == strike
        monkeypatch.setattr(fitting, "_make_stop", make)
        supervised.fit(config, folder)
        for a, b in zip(whole, parameters(folder), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("epochs", "at", "sizes"), [(1, 1 / 3, (16, 24, 32)), (4, 5 / 8, (24, 32))]
)
def test_with_other_epochs_the_stages_are_shares_of_these(
    synthetic, tmp_path, monkeypatch, epochs, at, sizes
):
    """Of a shorter training the first stage is over where it was stopped; a longer one has more
    of the second."""
    make, seen = fitting._make_stop, []
    steps = experiment.prepare(staged(synthetic), tmp_path / "run", None).plan.total_steps
    strike, total = round(at * steps), steps * epochs // 2
    monkeypatch.setattr(fitting, "_make_stop", lambda asked: lambda step: step == strike)
    with pytest.raises(scripts.Stopped):
        supervised.fit(staged(synthetic), tmp_path / "run")
    monkeypatch.setattr(fitting, "_make_stop", make)
    plain = fitting.plain_step

    def spy(training, *args):
        run = plain(training, *args)

        def step(state, batch):
            seen.append((int(state.step), training.config.data.image_size[0]))
            return run(state, batch)

        return step

    monkeypatch.setattr(fitting, "plain_step", spy)
    supervised.fit(staged(synthetic, epochs=epochs), tmp_path / "run")
    assert [step for step, _ in seen] == list(range(strike, total))
    # one that is over has a step
    ends = {16: max(total // 2, strike + 1), 24: max(3 * total // 4, strike + 2), 32: total}
    assert [size for _, size in seen] == [
        next(size for size in sizes if step < ends[size]) for step, _ in seen
    ]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"a": {"image_size": (16, 8)}}, "stages.a has no field 'until'"),
        ({"a": {"until": 1.0}}, r"stages.a.until is 1.0; it must be above 0 and below 1"),
        ({"a": {"until": 0.5, "image_size": (0, 8)}}, "stages.a.image_size"),
        ({"a": {"until": 0.5, "size": 3}}, "unknown field of stages.a 'size'"),
        ({"a": {"until": 0.5}, "b": {"until": 0.5}}, "another stage ends there"),
        ({"a": {"until": 0.5, "last_stride": 3}}, "stages.a.last_stride"),
    ],
)
def test_a_wrong_stage_is_told(synthetic, tmp_path, stages, message):
    with pytest.raises(InputError, match=message):
        supervised.fit(staged(synthetic, stages=stages), tmp_path / "run")


def test_a_stride_needs_a_backbone(synthetic, tmp_path):
    stages = {"a": {"until": 0.5, "last_stride": 1}}
    with pytest.raises(InputError, match=r"stages\.a\.last_stride: the model has no backbone"):
        supervised.fit(small(synthetic, stages=stages), tmp_path / "run")
