"""A trained model over a split: every output of every image; and features kept in a file."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from market_jax import devices
from market_jax.data import pipeline, samplers
from market_jax.typing import Array, Columns, Outputs, PyTree


def extract(
    apply: Callable,
    variables: PyTree,
    columns: Columns,
    *,
    prepare: Callable[[Array], Array],
    mesh: Mesh,
    batch_size: int,
    keep: Callable[[Outputs], Outputs] = lambda outputs: outputs,
) -> dict[str, np.ndarray]:
    """Runs the model, in evaluation mode, over all images.

    Args:
      apply: `model.apply`.
      variables: of the model.
      columns: with M images.
      prepare: uint8 [N, H, W, C] -> what the model takes.
      mesh: the devices.
      batch_size: a multiple of the number of devices.
      keep: the model's outputs -> what is kept of them, or made of them.

    Returns:
      Output name -> [M, ...], in the order of the columns.
    """

    @jax.jit
    def predict(variables, images):
        return keep(apply(variables, prepare(images)))

    size = len(columns["name"])
    order = samplers.sequential(size, batch_size)
    images = {"image": columns["image"]}
    parts: list[dict[str, np.ndarray]] = []
    for batch in pipeline.batches(images, order, last=order.steps):
        placed = devices.place_batch(mesh, batch)
        parts.append(jax.device_get(predict(variables, placed["image"])))
    return {key: np.concatenate([part[key] for part in parts])[:size] for key in parts[0]}


def cached(path: Path, key: dict, make: Callable[[], Columns]) -> Columns:
    """The columns in a file, if it was written for the same key; else made anew, and written.

    Args:
      path: of the .npz, which appears whole, by a rename.
      key: what the columns follow from: the checkpoint, the data, the settings; JSON.
      make: () -> columns.
    """
    path, text = Path(path), json.dumps(key, sort_keys=True)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["key"]) == text:
                return {name: stored[name] for name in stored.files if name != "key"}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        pass  # missing, or broken: it can be made again
    columns = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
    try:
        np.savez(temporary, key=text, **columns)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return columns
