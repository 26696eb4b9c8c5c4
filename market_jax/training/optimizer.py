"""Optimisers and learning-rate schedules, by name."""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from market_jax.errors import InputError
from market_jax.registry import choose
from market_jax.typing import PyTree

_OPTIMIZERS = {"adam": optax.adam, "sgd": functools.partial(optax.sgd, momentum=0.9)}


def constant(learning_rate: float, total_steps: int) -> optax.Schedule:
    """The same rate at every step."""
    return optax.constant_schedule(learning_rate)


def cosine(learning_rate: float, total_steps: int) -> optax.Schedule:
    """Half a cosine from the rate to zero at `total_steps`."""
    return optax.cosine_decay_schedule(learning_rate, max(total_steps, 1))


def exponential(learning_rate: float, total_steps: int) -> optax.Schedule:
    """A decay by the same factor at every step, to a hundredth at `total_steps`."""
    return optax.exponential_decay(learning_rate, max(total_steps, 1), 0.01)


_SCHEDULES = {"constant": constant, "cosine": cosine, "exponential": exponential}


def make_schedule(
    name: str, *, learning_rate: float, total_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """The named schedule after a linear warm-up from zero: step -> learning rate."""
    if learning_rate <= 0:
        raise InputError(f"optimizer.learning_rate is {learning_rate}; it must be above 0")
    schedule = choose(name, _SCHEDULES, "schedule")(learning_rate, total_steps - warmup_steps)
    if warmup_steps == 0:
        return schedule
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, schedule], [warmup_steps])


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
    """The optimiser's state with its `Plateau` multiplied by the factor."""

    def change(node):
        return Plateau(node.scale * factor) if isinstance(node, Plateau) else node

    return jax.tree.map(change, opt_state, is_leaf=lambda node: isinstance(node, Plateau))


def _scale_by_group(rates: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """Multiplies the updates of the parameters that a pattern finds; the first that does counts."""

    def factors(params):
        found = set()

        def factor(path, _):
            name = "/".join(str(key.key) for key in path)
            for pattern, value in rates:
                if re.search(pattern, name):
                    found.add(pattern)
                    return value
            return 1.0

        tree = jax.tree_util.tree_map_with_path(factor, params)
        for pattern, _ in rates:
            if pattern not in found:
                raise InputError(f"optimizer.rates: {pattern!r} finds no parameter of its own")
        return tree

    def update(updates, state, params=None):
        return jax.tree.map(lambda f, u: f * u, factors(updates), updates), state

    def init(params):
        factors(params)
        return optax.EmptyState()

    return optax.GradientTransformation(init, update)


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    plateau: bool = False,
    rates: Sequence[tuple[str, float]] = (),
) -> optax.GradientTransformation:
    """The named optimiser, with weight decay on kernels and clipping by the global norm.

    Args:
      name: "adam" (decoupled weight decay, so AdamW), or "sgd" (momentum 0.9, weight decay in
        the gradient).
      schedule: step -> learning rate.
      weight_decay: factor on the kernels.
      clip_norm: largest norm of the gradient; 0 does not clip.
      plateau: the rate can be lowered by `lower`.
      rates: (regular expression, factor of the rate) for parameters by their path,
        "backbone/stem/conv/kernel"; the first that is found in it counts, and 0 trains nothing.

    Raises:
      InputError: the name is unknown, or a pattern finds no parameter (when the state is made).
    """
    factory = choose(name, _OPTIMIZERS, "optimizer")
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    decay = optax.add_decayed_weights(weight_decay, mask=_kernels)
    last = [_scale_by_plateau()] if plateau else []
    last += [_scale_by_group(rates)] if rates else []
    if name == "sgd":
        return optax.chain(clip, decay, factory(schedule), *last)
    scale = factory(1.0)  # minus the direction; decay is decoupled below
    decoupled = optax.add_decayed_weights(-weight_decay, mask=_kernels)
    return optax.chain(clip, scale, decoupled, optax.scale_by_schedule(schedule), *last)
