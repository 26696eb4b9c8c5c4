"""The training state: what one step hands to the next."""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from market_jax import devices
from market_jax.typing import Array, PyTree


class TrainState(flax.struct.PyTreeNode):
    """Everything that a restart needs, as one pytree.

    Attributes:
      step: int32, the number of steps done.
      params: the model's parameters.
      collections: every other Flax collection by name: "batch_stats" of BatchNorm, memory banks.
      opt_state: the state of the optax optimizer.
      ema: the averaged parameters; None without averaging.
      key_data: uint32 data of the root key; a step's randomness is `fold_in(key, step)`.
    """

    step: Array
    params: PyTree
    collections: dict[str, PyTree]
    opt_state: PyTree
    ema: PyTree | None
    key_data: Array

    @property
    def variables(self) -> dict[str, PyTree]:
        """The variables that `model.apply` takes in training."""
        return {"params": self.params, **self.collections}

    @property
    def averaged_variables(self) -> dict[str, PyTree]:
        """The variables for evaluation: with the averaged parameters, if there are any."""
        return {"params": self.params if self.ema is None else self.ema, **self.collections}


def split_key(seed: int) -> tuple[Array, Array]:
    """(key for the model's parameters, root key for everything random in training)."""
    init_key, root_key = jax.random.split(jax.random.key(seed))
    return init_key, root_key


def draw_variables(model: nn.Module, image_size: tuple[int, int], key: Array) -> PyTree:
    """Fresh variables of a model, not compiled: for what is traced, as by `jax.eval_shape`.

    Args:
      model: a Flax module that is called as `model(image, train=...)`.
      image_size: (height, width).
      key: of the random parameters, see `split_key`.
    """
    return model.init(key, jnp.zeros((1, *image_size, 3), jnp.float32))


def init_variables(model: nn.Module, image_size: tuple[int, int], *, seed: int) -> PyTree:
    """Fresh variables of a model: {"params": ..., "batch_stats": ..., ...}.

    Args:
      model: as for `draw_variables`.
      image_size: (height, width).
      seed: seeds the random parameters.
    """
    draw = functools.partial(draw_variables, model, image_size)
    options = devices.quick_compiler_options(jax.default_backend())
    return jax.jit(draw, compiler_options=options)(split_key(seed)[0])


def init_state(
    variables: PyTree, optimizer: optax.GradientTransformation, *, seed: int
) -> TrainState:
    """The state of step 0.

    Args:
      variables: the model's variables, freshly initialised or published.
      optimizer: the optimizer; its state is initialised here.
      seed: seeds everything random in training.
    """
    collections = {name: tree for name, tree in variables.items() if name != "params"}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        collections=collections,
        opt_state=jax.jit(optimizer.init)(variables["params"]),
        ema=None,
        key_data=jax.random.key_data(split_key(seed)[1]),
    )
