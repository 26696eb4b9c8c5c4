"""Which images make up a batch: pure functions of the step, so that a restart replays nothing."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from market_jax.typing import InputError

PADDING = -1


class Sampler(NamedTuple):
    """The batches of an epoch.

    Attributes:
      steps: batches in an epoch.
      indices: step -> int64 [N] rows; `PADDING` where a row only fills the batch.
    """

    steps: int
    indices: Callable[[int], np.ndarray]


def shuffled(size: int, batch_size: int, *, seed: int) -> Sampler:
    """A new permutation each epoch; the rows that do not fill the last batch are left out.

    Raises:
      InputError: the batch is larger than the split.
    """
    steps = size // batch_size
    if steps == 0:
        raise InputError(f"batch_size is {batch_size}, but the training split has {size} images")

    @functools.lru_cache(maxsize=2)
    def order(epoch):
        return np.random.default_rng([seed, epoch]).permutation(size)

    def indices(step):
        epoch, batch = divmod(int(step), steps)
        return order(epoch)[batch * batch_size : (batch + 1) * batch_size]

    return Sampler(steps, indices)


def sequential(size: int, batch_size: int) -> Sampler:
    """Every row once, in order; the last batch is filled with `PADDING`."""

    def indices(step):
        rows = np.arange(step * batch_size, (step + 1) * batch_size)
        return np.where(rows < size, rows, PADDING)

    return Sampler(-(-size // batch_size), indices)
