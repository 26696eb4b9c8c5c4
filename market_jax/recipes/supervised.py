"""Supervised training: one round over the labelled images, or one for each stage."""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from market_jax import build, experiment, fitting
from market_jax.data.samplers import Sampler
from market_jax.training.loop import Round
from market_jax.training.state import TrainState


def make_rounds(training: experiment.Training) -> Callable[[TrainState, int], Round]:
    """Makes the rounds: one for each stage of `build.stages`.

    Args:
      training: the data, the model and what else `experiment.prepare` has built.

    Returns:
      A function (state, number) -> round; the last round never ends.

    Raises:
      InputError: see `build.sampler`.
    """
    sampler = build.sampler(training.config, training.train)
    *before, _ = build.stages(training.config)
    ends = [max(round(until * training.plan.total_steps), 1) for until, _ in before]

    def make_round(state: TrainState, number: int) -> Round:
        first = int(state.step)  # where `epochs` has changed, ends are others now
        shuffled = Sampler(sampler.steps, lambda step: sampler.indices(first + step))
        if number >= len(before):
            return Round(training.train, shuffled)
        config = before[number][1]
        apply = build.apply(config, build.model(config.model, config.dtype))
        step = fitting.plain_step(training._replace(config=config, apply=apply))
        steps = max(ends[number] - first, 1)
        return Round(training.train, shuffled, steps, step=fitting.settle(step))

    return make_round


def fit(config: ConfigDict, workdir: Path, defaults: ConfigDict | None = None) -> None:
    """Trains an experiment in a folder, or continues the run that the folder holds.

    Args:
      config: the experiment's config.
      workdir: the folder of the run.
      defaults: the settings as the config's file has them, see `settings.check_same_run`.

    Raises:
      InputError: see `fitting.train`.
    """
    fitting.train(config, workdir, defaults, make_rounds)
