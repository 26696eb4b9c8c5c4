"""Optimizers and learning-rate schedules, by name."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from market_jax.errors import InputError
from market_jax.typing import PyTree

__all__ = ["constant", "cosine", "exponential"]


def constant(learning_rate: float, total_steps: int) -> optax.Schedule:
    """The same rate at every step.

    Args:
      learning_rate: the rate.
      total_steps: not used.
    """
    return optax.constant_schedule(learning_rate)


def cosine(learning_rate: float, total_steps: int) -> optax.Schedule:
    """Half a cosine from the rate to zero at `total_steps`.

    Args:
      learning_rate: the rate at step 0.
      total_steps: where the rate is 0.
    """
    return optax.cosine_decay_schedule(learning_rate, max(total_steps, 1))


def exponential(learning_rate: float, total_steps: int, *, end: float = 0.01) -> optax.Schedule:
    """A decay by the same factor at every step, to `end` times the rate at `total_steps`.

    Args:
      learning_rate: the rate at step 0.
      total_steps: where the rate is `end` times as large.
      end: the share that is left.
    """
    return optax.exponential_decay(learning_rate, max(total_steps, 1), end)


SCHEDULES = {"constant": constant, "cosine": cosine, "exponential": exponential}


def make_schedule(
    schedule: Callable, *, learning_rate: float, total_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """A schedule after a linear warm-up from zero: step -> learning rate.

    Args:
      schedule: (learning rate, number of steps) -> optax schedule.
      learning_rate: the highest rate.
      total_steps: of the training, warm-up among them.
      warmup_steps: of the warm-up.

    Raises:
      InputError: the rate is not above 0, or the warm-up has a negative length.
    """
    if learning_rate <= 0:
        raise InputError(f"optimizer.learning_rate is {learning_rate}; it must be above 0")
    if warmup_steps < 0:
        raise InputError("optimizer.warmup_epochs must be 0 or more")
    after = schedule(learning_rate, total_steps - warmup_steps)
    if warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])


def _kernels(params: PyTree) -> PyTree:
    """True for the arrays that weight decay applies to: kernels, not biases or BatchNorm's."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


class Plateau(NamedTuple):
    """The optimiser's state of a learning rate that is lowered where the loss stands still.

    Attributes:
      scale: factor of the scheduled rate.
    """

    scale: jax.Array


def _scale_by_plateau() -> optax.GradientTransformation:
    """Multiplies updates by the scale in its state, which `lower` changes from outside."""

    def update(updates, state, params=None):
        return jax.tree.map(lambda u: state.scale * u, updates), state

    return optax.GradientTransformation(lambda params: Plateau(jnp.ones(())), update)


def lower(opt_state: PyTree, factor: float) -> PyTree:
    """The optimiser's state with its `Plateau` multiplied by the factor.

    Args:
      opt_state: of an optimizer that was made with `plateau`.
      factor: of the learning rate.
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


def adam(schedule: optax.Schedule, *, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """Adam with decoupled weight decay on kernels (AdamW).

    Args:
      schedule: step -> learning rate.
      weight_decay: times the learning rate, taken off the kernels at each step.
    """
    decay = optax.add_decayed_weights(-weight_decay, mask=_kernels)
    return optax.chain(optax.adam(1.0), decay, optax.scale_by_schedule(schedule))


def sgd(
    schedule: optax.Schedule, *, momentum: float = 0.9, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Gradient descent with momentum; weight decay is added to the kernels' gradients.

    Args:
      schedule: step -> learning rate.
      momentum: the share of the last update that goes on.
      weight_decay: factor on the kernels.
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
    """An optimizer with clipping before it, and changes of the learning rate after it.

    Args:
      optimizer: gradients -> updates.
      clip_norm: the largest norm of the gradient; 0 does not clip.
      plateau: the rate can be lowered by `lower`.
      lr_multipliers: (regular expression, factor of the learning rate) for parameters by their
        path, "backbone/stem/conv/kernel". The first that is found in the path counts; 0 trains
        nothing, and weight decay does not move it either.

    Raises:
      InputError: a norm or factor is negative, or a pattern is broken or (when the state is made)
        finds no parameter.
    """
    if clip_norm < 0:
        raise InputError(f"optimizer.clip_norm is {clip_norm}; it must be 0 or more")
    for pattern, factor in lr_multipliers:
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f"optimizer.lr_multipliers: {pattern!r} ({error})") from None
        if factor < 0:
            raise InputError(f"optimizer.lr_multipliers: {factor} must be 0 or more")
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    last = [_scale_by_plateau()] if plateau else []
    last += [_scale_by_pattern(lr_multipliers)] if lr_multipliers else []
    return optax.chain(clip, optimizer, *last)
