"""Optimizers, by name, and what is put around them."""

import re
from collections.abc import Sequence
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
    PyTree,
)


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


def frozen_parameters(model) -> list[str]:
    """Regular expressions for the parameters that a model, or its backbone, says are never trained.

    Those of a backbone begin with ^ and are meant for its copies in `models.parts` too.

    Args:
      model: a Flax module, which may have a method `frozen_parameters`, as its `backbone` may.
    """
    own, inner = (
        getattr(part, "frozen_parameters", tuple)()
        for part in (model, getattr(model, "backbone", None))
    )
    return [*own, *(f"^(backbone|branch_[^/]+)/{path.removeprefix('^')}" for path in inner)]


class Frozen(NamedTuple):
    """Optimizer state where some parameters are frozen in the first steps.

    Attributes:
      count: int32, the number of steps done.
      inner: states of two optimizers: "late", of those parameters, and "free", of all others.
    """

    count: jax.Array
    inner: PyTree


def _hold(held: jax.Array, old: PyTree, new: PyTree) -> PyTree:
    """The old state of an optimizer where it is held, else the new; schedules are counted on."""

    def is_schedule(node):
        return isinstance(node, optax.ScaleByScheduleState)

    def choose(old, new):
        return new if is_schedule(new) else jnp.where(held, old, new)

    return jax.tree.map(choose, old, new, is_leaf=is_schedule)


def _freeze_first(
    clip: optax.GradientTransformation,
    optimizer: optax.GradientTransformation,
    steps: int,
    pattern: str,
) -> optax.GradientTransformation:
    """Clips and optimizes, but leaves the parameters with a pattern in their path for some steps.

    They have a state of their own, which begins when they do: with one count of steps for all, Adam
    would take their young moments for old ones and move by several times the learning rate.
    """

    def labels(tree):
        def label(path, _):
            return "late" if re.search(pattern, _path_name(path)) else "free"

        return jax.tree_util.tree_map_with_path(label, tree)

    both = optax.partition({"late": optimizer, "free": optimizer}, labels)

    def init(params):
        if "late" not in jax.tree.leaves(labels(params)):
            raise InputError(f"optimizer.freeze_epochs: {pattern!r} finds no parameter")
        return Frozen(jnp.zeros((), jnp.int32), both.init(params).inner_states)

    def update(updates, state, params=None):
        held = state.count < steps

        def leave(tree):
            return jax.tree.map(
                lambda label, x: jnp.where(held, 0, x) if label == "late" else x, labels(tree), tree
            )

        clipped, _ = clip.update(leave(updates), optax.EmptyState())
        updates, new = both.update(clipped, optax.PartitionState(state.inner), params)
        late = _hold(held, state.inner["late"], new.inner_states["late"])
        inner = new.inner_states | {"late": late}
        return leave(updates), Frozen(optax.safe_increment(state.count), inner)

    return optax.GradientTransformation(init, update)


def adam(
    schedule: optax.Schedule, *, weight_decay: NonNegative = 0.0, coupled: bool = False
) -> optax.GradientTransformation:
    """Adam with weight decay on kernels: decoupled (AdamW), or coupled as in PyTorch's `Adam`.

    PyTorch's decays biases and BatchNorm's parameters too, and so does BoT, with 5e-4; here they
    are left.

    Args:
      schedule: step -> learning rate.
      weight_decay: at each step, kernels shrink by this share times the learning rate,
        0 or more.
      coupled: whether the kernels times `weight_decay` are instead added to their gradients,
        before Adam's moments.
    """
    if coupled:
        decay = optax.add_decayed_weights(weight_decay, mask=_kernels)
        return optax.chain(decay, optax.adam(1.0), optax.scale_by_schedule(schedule))
    decay = optax.add_decayed_weights(-weight_decay, mask=_kernels)
    return optax.chain(optax.adam(1.0), decay, optax.scale_by_schedule(schedule))


def sgd(
    schedule: optax.Schedule,
    *,
    momentum: FractionBelow1 = 0.9,
    nesterov: bool = False,
    weight_decay: NonNegative = 0.0,
) -> optax.GradientTransformation:
    """Gradient descent with momentum; weight decay is added to the kernels' gradients.

    Args:
      schedule: step -> learning rate.
      momentum: the share of the last update that is added to the next, 0 or more and
        below 1.
      nesterov: whether the gradient is taken where the momentum leads (Nesterov).
      weight_decay: the kernels times this, 0 or more, are added to their gradients.
    """
    decay = optax.add_decayed_weights(weight_decay, mask=_kernels)
    return optax.chain(decay, optax.sgd(schedule, momentum=momentum, nesterov=nesterov))


OPTIMIZERS = {"adam": adam, "sgd": sgd}


def make_optimizer(
    optimizer: optax.GradientTransformation,
    *,
    clip_norm: float = 0.0,
    plateau: bool = False,
    lr_multipliers: Sequence[tuple[str, float]] = (),
    freeze_steps: int = 0,
    freeze_pattern: str = "^(backbone/|branch_)",
) -> optax.GradientTransformation:
    """Adds gradient clipping before an optimizer, and learning-rate changes after it.

    Args:
      optimizer: the optax optimizer.
      clip_norm: the largest norm of the gradient; 0 does not clip.
      plateau: whether `lower` can reduce the learning rate.
      lr_multipliers: pairs of a regular expression and a factor of the learning rate, for the
        parameters with that pattern in their path, such as "backbone/stem/conv/kernel". The first
        pattern that fits counts. A factor of 0 freezes parameters; weight decay leaves them too.
      freeze_steps: for so many first steps (FastReID: 1,000 to 2,000) the parameters with
        `freeze_pattern` in their path and their moments stay; BatchNorm's averages go on.
      freeze_pattern: a regular expression; by default of the backbone, and of the copies of its
        last stage in `models.parts`.

    Raises:
      InputError: a norm, factor or number is negative, or a pattern is broken or (when the state
        is made) finds no parameter.
    """
    kinds.check("steps of optimizer.freeze_epochs", freeze_steps, NonNegativeInt)
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
    if freeze_steps:
        return optax.chain(_freeze_first(clip, optimizer, freeze_steps, freeze_pattern), *last)
    return optax.chain(clip, optimizer, *last)
