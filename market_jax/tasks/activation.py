"""--task=activation: where the last map of a network is active, over the crops."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from market_jax import kinds
from market_jax.data import columns as columns_
from market_jax.errors import InputError
from market_jax.files import write_atomically
from market_jax.inference import Predictor
from market_jax.report import attention, pictures
from market_jax.runs import Run
from market_jax.tasks import inputs
from market_jax.typing import Columns, Outputs, PositiveInt

NEEDS = "reid"  # what the newest run must be able to do
PAGE = "activation.html"
_ROW = 8  # crops beside each other in a PNG


def measure(outputs: Outputs) -> Outputs:
    """How active each place of the map is (Zagoruyko & Komodakis 2017); traced.

    Args:
      outputs: "map" [N, h, w, D].

    Returns:
      "activation": [N, h, w], the sum of the squares of all channels, of length 1 in each image.
    """
    energy = jnp.sum(jnp.square(outputs["map"].astype(jnp.float32)), axis=-1)
    length = jnp.sqrt(jnp.sum(jnp.square(energy), axis=(1, 2), keepdims=True))
    return {"activation": energy / jnp.maximum(length, 1e-12)}


def activations(predict: Predictor, columns: Columns) -> np.ndarray:
    """The activation maps of images, float32 [M, h, w].

    Args:
      predict: the network, a `Predictor`; a `Descriptor` has no map.
      columns: columns of M images.

    Raises:
      InputError: there is no map.
    """
    names = predict.output_names(columns) if isinstance(predict, Predictor) else ["features"]
    if "map" not in names:
        raise InputError(
            f"there is no output 'map', [images, rows, columns, channels], to show; the outputs: "
            f"{', '.join(names)}"
        )
    return predict(columns, ["activation"], derive=measure)["activation"]


def _choose(run: Run, what: inputs.Judged, count: int) -> Columns:
    """Some of the images, spread evenly over them, with their pictures decoded."""
    what.check()
    if what.images:
        folder, size = Path(what.images), run.config.data.image_size
        columns = inputs.read_folder(folder, size, named=False, skip_bad=what.skip_bad)
    else:
        columns = inputs.data_of(run).open(what.split)
    last = len(columns["name"]) - 1
    rows = np.unique(np.linspace(0, last, min(count, last + 1)).round().astype(int))
    return columns_.in_memory(columns_.select(columns, rows))


def _draw_rows(images: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """One picture: rows of crops, and below each its map over it."""
    overlaid = np.stack([attention.overlay(*pair) for pair in zip(images, maps, strict=True)])
    rows = []
    for first in range(0, len(images), _ROW):
        rows += [side[first : first + _ROW] / 255 for side in (images, overlaid)]
    return pictures.grid(rows)


def run(
    run: Run,
    *,
    split: str = "val",
    images: str | None = None,
    skip_bad: bool = False,
    count: int = 16,
    output: str | None = None,
) -> str:
    """Writes a page with crops and where the last map of the network is active in them.

    Args:
      run: a trained run whose network has a map: any backbone, with heads or without.
      split: Whose images are shown: val, holdout, train, test or query.
      images: Show this folder of crops, of any name, instead of a split.
      skip_bad: Leave bad pictures of --images out and list them.
      count: How many images are shown, spread evenly over all, which are sorted by name.
      output: Where it is written: PAGE.html, or one picture, NAME.png; by default
        evaluation/activation.html of the run.

    Returns:
      The text for the terminal.
    """
    inputs.need_network(run, "activation")
    path = Path(output).expanduser() if output else run.evaluation / PAGE
    if path.suffix not in (".html", ".png"):
        raise InputError(f"--output is {output!r}; it must end in .html or .png")
    count = kinds.check("--count", count, PositiveInt)
    what = inputs.Judged(split, images, skip_bad=skip_bad)
    columns = _choose(run, what, count)
    shown, maps = columns["image"], activations(run.predict, columns)
    rows, width = maps.shape[1:]
    title = f"Activation of {run.workdir.name}, {what.name}"
    about = f"{len(maps)} images; the map has {rows} rows and {width} columns"
    if path.suffix == ".png":
        write_atomically(path, pictures.encode(_draw_rows(shown, maps)))
    else:
        crops = zip(columns["name"].tolist(), shown, maps, strict=True)
        write_atomically(path, attention.activation_page(title, [f"{about}."], list(crops)))
    return f"{title}: {about}\n\nwritten to {path}"
