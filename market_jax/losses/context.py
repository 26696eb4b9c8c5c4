"""What a term of the loss, or a metric, looks at."""

from collections.abc import Mapping
from typing import NamedTuple

from market_jax.typing import Array, Batch, Outputs, PyTree


class Context(NamedTuple):
    """A batch and what the model says of it.

    Attributes:
      outputs: of the model, name -> [N, ...].
      batch: columns of the N images; "mask" is False where a row is padding.
      step: the number of steps done, int32; None in evaluation.
      collections: the state's other Flax collections, memory banks among them.
    """

    outputs: Outputs
    batch: Batch
    step: Array | None = None
    collections: Mapping[str, PyTree] | None = None
