"""Which images make up a batch: pure functions of the step, so that a restart replays nothing."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from market_jax.errors import InputError

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

    Args:
      size: the number of images.
      batch_size: images in a batch.
      seed: of the permutations.

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


def by_identity(pids: np.ndarray, batch_size: int, *, num_instances: int, seed: int) -> Sampler:
    """The PK sampler: batches of some persons with `num_instances` images of each.

    Every person comes up once before any comes up again, but those who do not fill a last batch;
    images are drawn without replacement where a person has enough. An epoch has as many batches
    as `shuffled`'s.

    Args:
      pids: int [M]; 0 and below are nobody.
      batch_size: of images.
      num_instances: images of a person in a batch, side by side.
      seed: of the draws.

    Raises:
      InputError: the batch size is no multiple of `num_instances`, or there are too few persons.
    """
    if num_instances < 1:
        raise InputError(f"num_instances is {num_instances}; it must be 1 or more")
    people = batch_size // num_instances
    if people * num_instances != batch_size or people < 2:
        raise InputError(
            f"batch_size is {batch_size}; it must be 2 or more times num_instances, {num_instances}"
        )
    rows_of = [np.flatnonzero(pids == pid) for pid in np.unique(pids[pids > 0])]
    batches = len(rows_of) // people  # before a person comes up again
    if batches == 0:
        raise InputError(
            f"batch_size is {batch_size}, which takes {people} identities with {num_instances} "
            f"images each; the training split has {len(rows_of)} identities"
        )

    def draw(rng, rows):
        return rng.choice(rows, num_instances, replace=len(rows) < num_instances)

    def indices(step):
        lap, part = divmod(int(step), batches)
        order = np.random.default_rng([seed, lap]).permutation(len(rows_of))
        rng = np.random.default_rng([seed, lap, part])
        chosen = [rows_of[i] for i in order[part * people : (part + 1) * people]]
        return np.concatenate([draw(rng, rows) for rows in chosen])

    return Sampler(max(len(pids) // batch_size, 1), indices)


def grouped(pids: np.ndarray, batch_size: int, *, num_instances: int, seed: int = 0) -> Sampler:
    """Every row once, many persons in a batch: for the validation of losses that compare rows.

    Up to `num_instances` images of a person stand side by side, then the next person's; once all
    have come up, the next images of each follow. Rows of nobody come last.

    Args:
      pids: int [M]; 0 and below are nobody.
      batch_size: of images; the last batch is filled with `PADDING`.
      num_instances: images of a person side by side.
      seed: of the order of persons.

    Raises:
      InputError: `num_instances` is below 1.
    """
    if num_instances < 1:
        raise InputError(f"num_instances is {num_instances}; it must be 1 or more")
    pids = np.asarray(pids)
    rng = np.random.default_rng(seed)
    lap, place = np.zeros(len(pids), np.int64), np.zeros(len(pids), np.int64)
    known = np.unique(pids[pids > 0])
    for number, pid in enumerate(rng.permutation(known)):
        rows = np.flatnonzero(pids == pid)
        lap[rows], place[rows] = np.arange(len(rows)) // num_instances, number
    lap[pids <= 0] = len(pids)
    order = np.lexsort((np.arange(len(pids)), place, lap))
    plain = sequential(len(pids), batch_size)

    def indices(step):
        rows = plain.indices(step)
        return np.where(rows == PADDING, PADDING, order[rows])

    return Sampler(plain.steps, indices)


def sequential(size: int, batch_size: int) -> Sampler:
    """Every row once, in order; the last batch is filled with `PADDING`.

    Args:
      size: the number of images.
      batch_size: images in a batch.
    """

    def indices(step):
        rows = np.arange(step * batch_size, (step + 1) * batch_size)
        return np.where(rows < size, rows, PADDING)

    return Sampler(-(-size // batch_size), indices)
