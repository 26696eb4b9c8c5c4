"""The arguments of a term of the loss, or of a metric."""

from collections.abc import Mapping
from typing import NamedTuple

from market_jax.typing import Array, Batch, Outputs, PyTree


class Context(NamedTuple):
    """A batch and the model's outputs for it.

    Attributes:
      outputs: the model's outputs, name -> [N, ...].
      batch: the columns of N images; "mask" is False where a row is padding.
      step: the number of steps done, int32; None in evaluation.
      collections: the state's Flax collections beside the parameters, such as memory banks.
    """

    outputs: Outputs
    batch: Batch
    step: Array | None = None
    collections: Mapping[str, PyTree] | None = None
