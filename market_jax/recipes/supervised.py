"""Supervised training: a single round over the labelled images, which never ends."""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from market_jax import build, experiment, fitting
from market_jax.training.loop import Round
from market_jax.training.state import TrainState


def make_rounds(training: experiment.Training) -> Callable[[TrainState, int], Round]:
    """Makes the single round.

    Args:
      training: the data, the model and what else `experiment.prepare` has built.

    Returns:
      A function (state, number) -> round, which always returns the same round.

    Raises:
      InputError: see `build.sampler`.
    """
    this = Round(training.train, build.sampler(training.config, training.train))
    return lambda state, number: this


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
