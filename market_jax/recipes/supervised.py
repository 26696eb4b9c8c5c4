"""Supervised training: one round over the labelled images, which never ends."""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from market_jax import build, experiment
from market_jax.training.loop import Round
from market_jax.training.state import TrainState


def make_rounds(training: experiment.Training) -> Callable[[TrainState, int], Round]:
    """The single round.

    Args:
      training: what is trained.

    Returns:
      (state, number) -> the round, always the same.
    """
    this = Round(training.train, build.sampler(training.config, training.train))
    return lambda state, number: this


def fit(config: ConfigDict, workdir: Path, defaults: ConfigDict | None = None) -> None:
    """Trains the experiment in a folder, or goes on with the run that is there.

    Args:
      config: of the experiment.
      workdir: the folder.
      defaults: the settings as the config's file has them, see `settings.check_same_run`.

    Raises:
      InputError: see `experiment.train`.
    """
    experiment.train(config, workdir, defaults, make_rounds)
