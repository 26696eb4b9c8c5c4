"""Optimizers and learning-rate schedules, by name."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from market_jax import kinds
from market_jax.errors import InputError
from market_jax.typing import (
    FractionBelow1,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveFraction,
    PyTree,
)

__all__ = ["constant", "cosine", "exponential"]


def constant(learning_rate: float, total_steps: int, /) -> optax.Schedule:
    """The same rate at every step.

    Args:
      learning_rate: the learning rate.
      total_steps: not used.
    """
    return optax.constant_schedule(learning_rate)


def cosine(learning_rate: float, total_steps: int, /) -> optax.Schedule:
    """Half a cosine from the rate to zero at `total_steps`.

    Args:
      learning_rate: the learning rate at step 0.
      total_steps: the step at which the rate reaches 0.
    """
    return optax.cosine_decay_schedule(learning_rate, max(total_steps, 1))


def exponential(
    learning_rate: float, total_steps: int, /, *, end: PositiveFraction = 0.01
) -> optax.Schedule:
    """Decays by the same factor at every step, to `end` times the rate at `total_steps`.

    Args:
      learning_rate: the learning rate at step 0.
      total_steps: the step at which the rate is `end` times the first one.
      end: the last rate over the first one, above 0 and at most 1.
    """
    return optax.exponential_decay(learning_rate, max(total_steps, 1), end)


SCHEDULES = {"constant": constant, "cosine": cosine, "exponential": exponential}


def make_schedule(
    schedule: Callable, *, learning_rate: float, total_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """A linear warm-up from zero, then a schedule: step -> learning rate.

    Args:
      schedule: (learning rate, number of steps) -> optax schedule.
      learning_rate: the learning rate at the end of the warm-up.
      total_steps: steps in the whole training, with the warm-up.
      warmup_steps: steps in the warm-up.

    Raises:
      InputError: the rate is not a number above 0, or the warm-up has a negative length.
    """
    learning_rate = kinds.check("optimizer.learning_rate", learning_rate, Positive)
    kinds.check("steps of optimizer.warmup_epochs", warmup_steps, NonNegativeInt)
    after = schedule(learning_rate, total_steps - warmup_steps)
    if warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])


def _kernels(params: PyTree) -> PyTree:
    """True for the arrays that weight decay applies to: kernels, not biases or BatchNorm's."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


class Plateau(NamedTuple):
    """Optimizer state for a learning rate that `lower` can reduce.

    Attributes:
      scale: factor that the scheduled rate is multiplied by.
    """

    scale: jax.Array


def _scale_by_plateau() -> optax.GradientTransformation:
    """Multiplies updates by the scale in its state, which `lower` changes from outside."""

    def update(updates, state, params=None):
        return jax.tree.map(lambda u: state.scale * u, updates), state

    return optax.GradientTransformation(lambda params: Plateau(jnp.ones(())), update)


def lower(opt_state: PyTree, factor: float) -> PyTree:
    """The optimizer state with a lower learning rate: its `Plateau` is multiplied by the factor.

    Args:
      opt_state: state of an optimizer that was made with `plateau`.
      factor: the new learning rate over the old one.
    """

    def change(node):
        return Plateau(node.scale * factor) if isinstance(node, Plateau) else node

    return jax.tree.map(change, opt_state, is_leaf=lambda node: isinstance(node, Plateau))


def _path_name(path) -> str:
    return "/".join(str(key.key) for key in path)


def _scale_by_pattern(multipliers: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """Multiplies the updates of parameters by their path; the first fitting pattern counts."""

    def factors(params):
        used = set()

        def factor(path, _):
            fitting = [m for m in multipliers if re.search(m[0], _path_name(path))]
            used.update(pattern for pattern, _ in fitting)
            return fitting[0][1] if fitting else 1.0

        tree = jax.tree_util.tree_map_with_path(factor, params)
        for pattern, _ in multipliers:
            if pattern not in used:
                raise InputError(f"optimizer.lr_multipliers: {pattern!r} finds no parameter")
        return tree

    def update(updates, state, params=None):
        return jax.tree.map(lambda f, u: f * u, factors(updates), updates), state

    def init(params):
        factors(params)
        return optax.EmptyState()

    return optax.GradientTransformation(init, update)


def adam(
    schedule: optax.Schedule, *, weight_decay: NonNegative = 0.0
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay on kernels (AdamW).

    Args:
      schedule: step -> learning rate.
      weight_decay: at each step, kernels shrink by this share times the learning rate,
        0 or more.
    """
    decay = optax.add_decayed_weights(-weight_decay, mask=_kernels)
    return optax.chain(optax.adam(1.0), decay, optax.scale_by_schedule(schedule))


def sgd(
    schedule: optax.Schedule, *, momentum: FractionBelow1 = 0.9, weight_decay: NonNegative = 0.0
) -> optax.GradientTransformation:
    """Gradient descent with momentum; weight decay is added to the kernels' gradients.

    Args:
      schedule: step -> learning rate.
      momentum: the share of the last update that is added to the next, 0 or more and
        below 1.
      weight_decay: the kernels times this, 0 or more, are added to their gradients.
    """
    decay = optax.add_decayed_weights(weight_decay, mask=_kernels)
    return optax.chain(decay, optax.sgd(schedule, momentum=momentum))


OPTIMIZERS = {"adam": adam, "sgd": sgd}


def make_optimizer(
    optimizer: optax.GradientTransformation,
    *,
    clip_norm: float = 0.0,
    plateau: bool = False,
    lr_multipliers: Sequence[tuple[str, float]] = (),
) -> optax.GradientTransformation:
    """Adds gradient clipping before an optimizer, and learning-rate changes after it.

    Args:
      optimizer: the optax optimizer.
      clip_norm: the largest norm of the gradient; 0 does not clip.
      plateau: whether `lower` can reduce the learning rate.
      lr_multipliers: pairs of a regular expression and a factor of the learning rate, for the
        parameters with that pattern in their path, such as "backbone/stem/conv/kernel". The first
        pattern that fits counts. A factor of 0 freezes parameters; weight decay leaves them too.

    Raises:
      InputError: a norm or factor is negative, or a pattern is broken or (when the state is made)
        finds no parameter.
    """
    clip_norm = kinds.check("optimizer.clip_norm", clip_norm, NonNegative)
    for pattern, factor in lr_multipliers:
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f"optimizer.lr_multipliers: {pattern!r} ({error})") from None
        kinds.check(f"optimizer.lr_multipliers: the factor of {pattern!r}", factor, NonNegative)
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    last = [_scale_by_plateau()] if plateau else []
    last += [_scale_by_pattern(lr_multipliers)] if lr_multipliers else []
    return optax.chain(clip, optimizer, *last)
