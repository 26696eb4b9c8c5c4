"""Schedules for a term's weight: a factor that grows from 0 to 1 in the course of training."""

from collections.abc import Callable

import jax.numpy as jnp

from market_jax.errors import InputError
from market_jax.typing import Array

__all__ = ["cyclical", "linear", "logistic"]

Schedule = Callable[[Array], Array]


def _schedule(rise: Callable, total_steps: int, share: float) -> Schedule:
    """The rise over the share of the training that is done, cut to [0, 1]."""
    if not 0 <= share <= 1:
        raise InputError(f"the schedule's share is {share}; it must be 0 to 1")

    def at(step):
        if share == 0:
            return jnp.ones(())
        return jnp.clip(rise(step / max(total_steps, 1)), 0.0, 1.0)

    return at


def linear(*, total_steps: int, share: float = 0.5) -> Schedule:
    """Grows along a straight line.

    Args:
      total_steps: steps in the whole training.
      share: the share of the training in which the factor grows, 0 to 1; 0 is the whole weight at
        once.

    Raises:
      InputError: share is outside [0, 1].
    """
    return _schedule(lambda t: t / share, total_steps, share)


def logistic(*, total_steps: int, share: float = 0.5) -> Schedule:
    """Grows along a logistic curve, one half in its middle (Bowman et al. 2016).

    Args:
      total_steps: steps in the whole training.
      share: the share of the training in which the factor grows, 0 to 1; 0 is the whole weight at
        once.

    Raises:
      InputError: share is outside [0, 1].
    """

    def rise(t):
        return 1 / (1 + jnp.exp(-10 * (2 * t / share - 1)))

    return _schedule(rise, total_steps, share)


def cyclical(*, total_steps: int, share: float = 0.5, cycles: int = 4) -> Schedule:
    """Grows from 0 along a straight line in each of several cycles (Fu et al. 2019).

    Args:
      total_steps: steps in the whole training.
      share: the share of each cycle in which the factor grows, 0 to 1; 0 is the whole weight at
        once.
      cycles: the number of cycles, 1 or more.

    Raises:
      InputError: share is outside [0, 1], or cycles below 1.
    """
    if cycles < 1:
        raise InputError(f"the schedule's cycles is {cycles}; it must be 1 or more")
    return _schedule(lambda t: t * cycles % 1.0 / share, total_steps, share)


SCHEDULES = {"cyclical": cyclical, "linear": linear, "logistic": logistic}
