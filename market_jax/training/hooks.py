"""What happens inside the jitted step after the parameters were updated.

A hook is two functions: `init(state) -> state` adds what the hook keeps, once, before step 0, and
`update(state, context) -> state` changes it after every step. A hook keeps its arrays in the
state (`ema`, or a collection such as "memory"), so that they survive a restart bit for bit.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from market_jax import kinds
from market_jax.losses import Context
from market_jax.training.state import TrainState
from market_jax.typing import FractionBelow1

__all__ = ["ema"]


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
        share = jax.numpy.minimum(decay, (1 + state.step) / (10 + state.step))
        mean = jax.tree.map(lambda a, p: share * a + (1 - share) * p, state.ema, state.params)
        return state.replace(ema=mean)

    return Hook(init, update)


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
