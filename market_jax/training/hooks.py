"""What happens inside the jitted step after the parameters were updated.

A hook is two functions: `init(state) -> state` adds what the hook keeps, once, before step 0, and
`update(state, context) -> state` changes it after every step. A hook keeps its arrays in the
state (`ema`, or a collection such as "memory"), so that they survive a restart bit for bit.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from market_jax import kinds
from market_jax.errors import InputError
from market_jax.losses import Context
from market_jax.losses import memory as memory_
from market_jax.training.state import TrainState
from market_jax.typing import Array, FractionBelow1, PositiveFraction, PositiveInt, PyTree

__all__ = ["centers", "ema", "memory"]


class Hook(NamedTuple):
    """A hook; see the module's docstring.

    Attributes:
      init: state -> state, called once before step 0.
      update: (state, context) -> state, traced within the step. The context has the outputs for
        the batch, computed with the parameters before the update.
    """

    init: Callable
    update: Callable


def ema(*, decay: FractionBelow1 = 0.999) -> Hook:
    """Keeps an exponential moving average of the parameters, which is then evaluated.

    Args:
      decay: how much of the old average is kept at each step, 0 or more and below 1. Early on it is
        lower, (1 + step) / (10 + step), so that the average leaves the first parameters behind
        quickly.

    Raises:
      InputError: the decay is out of range.
    """
    decay = kinds.check("ema: decay", decay, FractionBelow1)

    def init(state: TrainState) -> TrainState:
        return state.replace(ema=jax.tree.map(lambda p: p + 0, state.params))

    def update(state: TrainState, context: Context) -> TrainState:
        share = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
        mean = jax.tree.map(lambda a, p: share * a + (1 - share) * p, state.ema, state.params)
        return state.replace(ema=mean)

    return Hook(init, update)


def centers(
    *,
    features: str = "feature",
    labels: str = "identity",
    classifier: str = "head_identity",
    rate: PositiveFraction = 0.5,
) -> Hook:
    """Keeps the centre of each class's features for the loss `center` (Wen et al. 2016).

    The centres [P, D] are in the collection "centers" under the name of the features, and begin at
    0. After a step the centre c of a class with n images x in the batch moves by
    -rate * sum(c - x) / (1 + n).

    Args:
      features: the name of the model's output [N, D].
      labels: the name of the column with the classes int [N]; unknown ones are below 0.
      classifier: the name of the layer that classifies the features; its kernel [D, P] says how
        large the centres are.
      rate: how far a centre moves, above 0 and at most 1.

    Raises:
      InputError: the rate is out of range; or, in `init`, the model has no such layer or several.
    """
    rate = kinds.check("centers: rate", rate, PositiveFraction)

    def replace(state: TrainState, array: Array) -> TrainState:
        kept = state.collections.get("centers", {}) | {features: array}
        return state.replace(collections=state.collections | {"centers": kept})

    def init(state: TrainState) -> TrainState:
        *_, width, count = _one(state.params, f"{classifier}/kernel", "centers").shape
        return replace(state, jnp.zeros((count, width)))

    def update(state: TrainState, context: Context) -> TrainState:
        old, classes = state.collections["centers"][features], context.batch[labels]
        classes = jnp.where(context.batch["mask"], classes, -1)
        return replace(state, _moved(old, context.outputs[features], classes, rate))

    return Hook(init, update)


def _moved(old: Array, vectors: Array, classes: Array, rate: float) -> Array:
    """Centres [P, D] after a batch of vectors [N, D] of classes int [N]; below 0 is none."""
    known = (classes >= 0)[:, None]
    vectors = jnp.where(known, vectors.astype(jnp.float32), 0.0)  # padding may hold anything
    own = (classes[:, None] == jnp.arange(len(old))).astype(jnp.float32)
    counts = jnp.sum(own, axis=0)[:, None]
    sums = jnp.matmul(own.T, vectors, precision="highest")
    return old - rate * (counts * old - sums) / (1 + counts)


def memory(
    *,
    features: str = "embedding",
    neck: str = "bnneck",
    momentum: FractionBelow1 = 0.1,
    hard: bool = False,
    slots: PositiveInt = 1,
) -> Hook:
    """Keeps the memory of the loss `memory`, see `market_jax.losses.memory`.

    It is the collection "memory": "bank" and "labels", empty at first, and "threshold", which a
    recipe may keep there.

    Args:
      features: the name of the model's output [N, D].
      neck: the name of the BatchNorm that gives it, whose "scale" [D] says how wide a slot is.
      momentum: how much of a slot is kept, 0 or more and below 1.
      hard: of a slot's rows only the least similar one moves it.
      slots: the number of slots, 1 or more; a recipe says how many it needs.

    Raises:
      InputError: an argument is out of range; or, in `init`, the model has no such BatchNorm or
        several.
    """
    momentum = kinds.check("memory: momentum", momentum, FractionBelow1)
    slots = kinds.check("memory: slots", slots, PositiveInt)

    def init(state: TrainState) -> TrainState:
        width = len(_one(state.params, f"{neck}/scale", "memory"))
        empty = {
            "bank": jnp.zeros((slots, width)),
            "labels": jnp.full((slots,), -1, jnp.int32),
            "threshold": jnp.full((), -1.0),
        }
        return state.replace(collections=state.collections | {"memory": empty})

    def update(state: TrainState, context: Context) -> TrainState:
        kept = state.collections["memory"]
        bank = memory_.move(
            kept["bank"], context.outputs[features], context.batch, momentum=momentum, hard=hard
        )
        return state.replace(collections=state.collections | {"memory": kept | {"bank": bank}})

    return Hook(init, update)


def _one(params: PyTree, name: str, hook: str) -> Array:
    """The one parameter of that layer and name, at any depth: "head_identity/kernel"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    paths = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    found = {path: x for path, x in paths.items() if f"/{path}".endswith(f"/{name}")}
    if len(found) != 1:
        layer, _, kind = name.rpartition("/")
        raise InputError(
            f"{hook}: the model has {len(found)} layers {layer!r} with a {kind} "
            f"({', '.join(found) or 'none'}); it must be one"
        )
    return next(iter(found.values()))


def init_all(state: TrainState, hooks: Sequence[Hook]) -> TrainState:
    """Adds to the state what every hook keeps.

    Args:
      state: the state of step 0.
      hooks: the training's hooks.
    """
    for hook in hooks:
        state = hook.init(state)
    return state


def update_all(state: TrainState, context: Context, hooks: Sequence[Hook]) -> TrainState:
    """Runs every hook's update, in order, and returns the changed state.

    Args:
      state: the state after the parameters' update.
      context: the batch, and the model's outputs for it before the update.
      hooks: the training's hooks.
    """
    for hook in hooks:
        state = hook.update(state, context)
    return state
