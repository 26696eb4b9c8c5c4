"""What a training step carries from one batch to the next."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from market_jax.typing import Array, Batch, PyTree


class TrainState(flax.struct.PyTreeNode):
    """Everything that a restart needs.

    Attributes:
      step: int32, steps done.
      params: the model's parameters.
      batch_stats: running statistics of BatchNorm; {} without.
      opt_state: of the optax optimiser.
      key_data: uint32 data of the root key; a step's randomness is `fold_in(key, step)`.
    """

    step: Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    key_data: Array

    @property
    def variables(self) -> dict[str, PyTree]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create(
    model: nn.Module, batch: Batch, optimizer: optax.GradientTransformation, *, seed: int
) -> TrainState:
    """A state with fresh parameters.

    Args:
      model: called as `model(image, train=...)`.
      batch: "image" float32 [N, H, W, C]; only its shape counts.
      optimizer: initialised on the parameters.
      seed: of the parameters and of everything random in training.
    """
    init_key, root_key = jax.random.split(jax.random.key(seed))

    def initial(key, image):
        variables = model.init(key, image)
        params = variables["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(params),
            key_data=jax.random.key_data(root_key),
        )

    return jax.jit(initial)(init_key, jnp.zeros_like(batch["image"]))
