"""Schedules for a term's weight: a factor that grows from 0 to 1 in the course of training."""

from collections.abc import Callable
from typing import Annotated

import jax.numpy as jnp

from market_jax.typing import Array, Fraction, NonNegativeInt, Range

__all__ = ["cyclical", "linear", "logistic"]

Schedule = Callable[[Array], Array]


def _schedule(rise: Callable, total_steps: int, share: float) -> Schedule:
    """The rise over the share of the training that is done, cut to [0, 1]."""

    def at(step):
        if share == 0:
            return jnp.ones(())
        return jnp.clip(rise(step / max(total_steps, 1)), 0.0, 1.0)

    return at


def linear(*, total_steps: NonNegativeInt, share: Fraction = 0.5) -> Schedule:
    """Grows along a straight line.

    Args:
      total_steps: steps in the whole training.
      share: the share of the training in which the factor grows, 0 to 1; 0 is the whole weight at
        once.
    """
    return _schedule(lambda t: t / share, total_steps, share)


def logistic(*, total_steps: NonNegativeInt, share: Fraction = 0.5) -> Schedule:
    """Grows along a logistic curve, one half in its middle (Bowman et al. 2016).

    Args:
      total_steps: steps in the whole training.
      share: the share of the training in which the factor grows, 0 to 1; 0 is the whole weight at
        once.
    """

    def rise(t):
        return 1 / (1 + jnp.exp(-10 * (2 * t / share - 1)))

    return _schedule(rise, total_steps, share)


def cyclical(
    *,
    total_steps: NonNegativeInt,
    share: Fraction = 0.5,
    cycles: Annotated[int, Range(1, 1000)] = 4,
) -> Schedule:
    """Grows from 0 along a straight line in each of several cycles (Fu et al. 2019).

    Args:
      total_steps: steps in the whole training.
      share: the share of each cycle in which the factor grows, 0 to 1; 0 is the whole weight at
        once.
      cycles: the number of cycles, 1 to 1,000.
    """
    return _schedule(lambda t: t * cycles % 1.0 / share, total_steps, share)


SCHEDULES = {"cyclical": cyclical, "linear": linear, "logistic": logistic}
