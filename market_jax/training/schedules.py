"""Learning-rate schedules, by name: (rate, steps, steps of the warm-up) -> (step -> rate)."""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from market_jax import kinds
from market_jax.typing import Fraction, NonNegativeInt, Positive, PositiveFraction

__all__ = ["constant", "cosine", "exponential", "multistep"]


def constant(learning_rate: float, total_steps: int, warmup_steps: int = 0, /) -> optax.Schedule:
    """The same rate at every step.

    Args:
      learning_rate: the learning rate.
      total_steps: not used.
      warmup_steps: not used.
    """
    return optax.constant_schedule(learning_rate)


def cosine(
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    /,
    *,
    flat: Fraction = 0.0,
    end: Fraction = 0.0,
) -> optax.Schedule:
    """Half a cosine from the rate to `end` times the rate, after a flat part (SBS, He et al. 2020).

    FastReID's strong baseline, 60 epochs long, has `flat` of 0.5 and `end` of 0.002.

    Args:
      learning_rate: the learning rate where the cosine begins, and before.
      total_steps: the step at which the rate is `end` times the first one.
      warmup_steps: steps in the warm-up, after which the cosine begins at the earliest.
      flat: the share of the whole training, its warm-up included, after which the cosine begins,
        0 to 1.
      end: the last rate over the first one, 0 to 1.
    """
    begin = max(round(flat * total_steps), warmup_steps)
    down = optax.cosine_decay_schedule(learning_rate, max(total_steps - begin, 1), end)
    return optax.join_schedules([optax.constant_schedule(learning_rate), down], [begin])


def exponential(
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    /,
    *,
    end: PositiveFraction = 0.01,
) -> optax.Schedule:
    """Decays by the same factor at every step, to `end` times the rate at `total_steps`.

    Args:
      learning_rate: the learning rate after the warm-up.
      total_steps: the step at which the rate is `end` times the first one.
      warmup_steps: steps in the warm-up, after which the rate begins to decay.
      end: the last rate over the first one, above 0 and at most 1.
    """
    steps = max(total_steps - warmup_steps, 1)
    return optax.exponential_decay(learning_rate, steps, end, transition_begin=warmup_steps)


def multistep(
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    /,
    *,
    at: tuple[Fraction, ...] = (1 / 3, 7 / 12),
    factor: PositiveFraction = 0.1,
) -> optax.Schedule:
    """Multiplies the rate by a factor at some places, as the strong baseline does (BoT).

    The default is its training: lower after epochs 40 and 70 of 120 (Luo et al. 2019).

    Args:
      learning_rate: the learning rate before the first place.
      total_steps: steps in the whole training.
      warmup_steps: not used: a warm-up does not move the places.
      at: the places, each a share of the whole training, its warm-up included, 0 to 1.
      factor: the rate after a place over the one before, above 0 and at most 1.
    """
    places = [round(share * total_steps) for share in at]
    return lambda step: learning_rate * factor ** sum(step >= place for place in places)


SCHEDULES = {
    "constant": constant,
    "cosine": cosine,
    "exponential": exponential,
    "multistep": multistep,
}


def make_schedule(
    schedule: Callable,
    *,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    warmup_from: float = 0.0,
) -> optax.Schedule:
    """A schedule whose first steps are a linear warm-up: step -> learning rate.

    Args:
      schedule: (learning rate, steps in the whole training, steps in its warm-up) -> optax
        schedule, which counts steps from the beginning of the warm-up.
      learning_rate: the learning rate at the end of the warm-up.
      total_steps: steps in the whole training, with the warm-up.
      warmup_steps: steps in the warm-up.
      warmup_from: the learning rate at the beginning of the warm-up over that at its end, 0 to 1.

    Raises:
      InputError: the rate is not a number above 0, the warm-up has a negative length, or its
        first rate is out of range.
    """
    learning_rate = kinds.check("optimizer.learning_rate", learning_rate, Positive)
    warmup_from = kinds.check("optimizer.warmup_from", warmup_from, Fraction)
    kinds.check("steps of optimizer.warmup_epochs", warmup_steps, NonNegativeInt)
    after = schedule(learning_rate, total_steps, warmup_steps)
    if warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(warmup_from * learning_rate, learning_rate, warmup_steps)
    return lambda step: jnp.where(step < warmup_steps, warmup(step), after(step))
