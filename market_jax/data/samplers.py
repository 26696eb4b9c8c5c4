"""Samplers say which images make up a batch: pure functions of the step, to restart anywhere."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from market_jax.errors import InputError

PADDING = -1


class Sampler(NamedTuple):
    """The rows of every batch.

    Attributes:
      steps: the number of batches in an epoch.
      indices: function from a step to rows, int64 [N]; `PADDING` where the batch is filled up.
    """

    steps: int
    indices: Callable[[int], np.ndarray]


def shuffled(size: int, batch_size: int, *, seed: int) -> Sampler:
    """Shuffles the images anew each epoch; those that do not fill the last batch are left out.

    Args:
      size: the number of images.
      batch_size: images in a batch.
      seed: seeds the permutations.

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


def by_identity(
    pids: np.ndarray,
    batch_size: int,
    *,
    num_instances: int,
    seed: int,
    camids: np.ndarray | None = None,
    again: bool = False,
) -> Sampler:
    """The PK sampler: batches of some persons with `num_instances` images of each.

    All persons appear once before any appears again, except those who do not fill a last batch.
    Images are drawn without replacement if a person has enough. An epoch has as many batches as
    with `shuffled`.

    Args:
      pids: the person in each image, int [M]; images with 0 and below are not used.
      batch_size: images in a batch.
      num_instances: images of each person in a batch; they stand side by side.
      seed: seeds the draws.
      camids: the camera of each image, int [M]; a person's images are then of as many cameras as
        can be. None draws them alike.
      again: whether a person may come up again in a batch, where there are too few.

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
    if again and rows_of:
        rows_of *= -(-people // len(rows_of))
    batches = len(rows_of) // people  # before a person comes up again
    if batches == 0:
        raise InputError(
            f"batch_size is {batch_size}, which takes {people} identities with {num_instances} "
            f"images each; the training split has {len(rows_of)} identities"
        )

    def draw(rng, rows):
        if camids is None or len(rows) < num_instances:
            return rng.choice(rows, num_instances, replace=len(rows) < num_instances)
        rows = rng.permutation(rows)
        return rows[_by_turns(camids[rows])[:num_instances]]

    def indices(step):
        lap, part = divmod(int(step), batches)
        order = np.random.default_rng([seed, lap]).permutation(len(rows_of))
        rng = np.random.default_rng([seed, lap, part])
        chosen = [rows_of[i] for i in order[part * people : (part + 1) * people]]
        return np.concatenate([draw(rng, rows) for rows in chosen])

    return Sampler(max(len(pids) // batch_size, 1), indices)


def _by_turns(camids: np.ndarray) -> np.ndarray:
    """The order in which the first image of each camera comes first, then the second of each."""
    order = np.argsort(camids, kind="stable")
    turn = np.empty(len(camids), np.int64)  # how many of its camera come before an image
    turn[order] = np.arange(len(camids)) - np.searchsorted(camids[order], camids[order])
    return np.argsort(turn, kind="stable")


def in_equal_parts(
    pids: np.ndarray, groups: np.ndarray, batch_size: int, *, num_instances: int, seed: int
) -> Sampler:
    """Batches with as many images of each group, those of a group side by side.

    An epoch has as many batches as all images fill.

    Args:
      pids: the person in each image, int [M].
      groups: the group of each image, as its data set, int [M].
      batch_size: images in a batch.
      num_instances: images of each person in a batch, see `by_identity`; 0 shuffles the images.
      seed: seeds the draws.

    Raises:
      InputError: the batch size is no multiple of the number of groups, or does not fit the images.
    """
    rows_of = [np.flatnonzero(groups == group) for group in np.unique(groups)] or [np.arange(0)]
    size, rest = divmod(batch_size, len(rows_of))
    if rest:
        raise InputError(
            f"batch_size is {batch_size}; it must be a multiple of {len(rows_of)}, the data sets, "
            "each of which has its part of a batch"
        )

    def make(rows: np.ndarray) -> Sampler:
        if num_instances:
            part = by_identity(pids[rows], size, num_instances=num_instances, seed=seed)
        else:
            part = shuffled(len(rows), size, seed=seed)
        return part._replace(indices=lambda step: rows[part.indices(step)])

    try:
        whole = side_by_side(*map(make, rows_of))
    except InputError as error:
        if len(rows_of) == 1:
            raise
        text = f"each of {len(rows_of)} data sets has its part of {batch_size} images: {error}"
        raise InputError(text) from None
    return whole._replace(steps=max(len(pids) // batch_size, 1))


def side_by_side(*parts: Sampler) -> Sampler:
    """Batches of several samplers in one, as many in an epoch as the first has.

    Args:
      *parts: of rows that come one after the other in a batch.
    """
    return Sampler(
        parts[0].steps, lambda step: np.concatenate([part.indices(step) for part in parts])
    )


def grouped(pids: np.ndarray, batch_size: int, *, num_instances: int, seed: int = 0) -> Sampler:
    """Every image once, in groups of one person, to validate losses that compare images.

    Up to `num_instances` images of a person stand side by side, then those of the next person.
    After all persons, the next images of each follow. Images of nobody come last.

    Args:
      pids: the person in each image, int [M]; 0 and below are nobody.
      batch_size: images in a batch; the last batch is filled with `PADDING`.
      num_instances: images of a person that stand side by side.
      seed: seeds the order of persons.

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
    """Every image once, in order; the last batch is filled with `PADDING`.

    Args:
      size: the number of images.
      batch_size: images in a batch.
    """

    def indices(step):
        rows = np.arange(step * batch_size, (step + 1) * batch_size)
        return np.where(rows < size, rows, PADDING)

    return Sampler(-(-size // batch_size), indices)


def few_sizes(size: int, batch_size: int, multiple: int = 1) -> Sampler:
    """Every image once, in order, in batches of at most four sizes, so that little is compiled.

    Full batches come first; what is left is cut into batches of 8 and a last one of 8, 4 or 1.

    Args:
      size: the number of images.
      batch_size: images in a full batch.
      multiple: of which every size is one; `batch_size` is.
    """
    one, four, eight = (min(-(-n // multiple) * multiple, batch_size) for n in (1, 4, 8))
    full, rest = divmod(size, batch_size)
    eights, rest = divmod(rest, eight)
    last = [next(n for n in (one, four, eight) if n >= rest)] if rest else []
    sizes = [batch_size] * full + [eight] * eights + last
    ends = np.cumsum(sizes, dtype=np.int64)

    def indices(step):
        rows = np.arange(ends[step] - sizes[step], ends[step])
        return np.where(rows < size, rows, PADDING)

    return Sampler(len(sizes), indices)
