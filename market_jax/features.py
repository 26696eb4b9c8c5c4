"""A trained model over a split: every output of every image."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from market_jax import devices
from market_jax.data import pipeline, samplers
from market_jax.typing import Array, Columns, PyTree


def extract(
    apply: Callable,
    variables: PyTree,
    columns: Columns,
    *,
    prepare: Callable[[Array], Array],
    mesh: Mesh,
    batch_size: int,
) -> dict[str, np.ndarray]:
    """Runs the model, in evaluation mode, over all images.

    Args:
      apply: `model.apply`.
      variables: of the model.
      columns: with M images.
      prepare: uint8 [N, H, W, C] -> what the model takes.
      mesh: the devices.
      batch_size: a multiple of the number of devices.

    Returns:
      Output name -> [M, ...], in the order of the columns.
    """

    @jax.jit
    def predict(variables, images):
        return apply(variables, prepare(images))

    size = len(columns["name"])
    order = samplers.sequential(size, batch_size)
    images = {"image": columns["image"]}
    parts: list[dict[str, np.ndarray]] = []
    for batch in pipeline.batches(images, order, last=order.steps):
        placed = devices.place_batch(mesh, batch)
        parts.append(jax.device_get(predict(variables, placed["image"])))
    return {key: np.concatenate([part[key] for part in parts])[:size] for key in parts[0]}
