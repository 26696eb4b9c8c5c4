"""A trained network for programs: `market_jax.load("runs/x")` -> embed, predict, search."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from market_jax import inference, runs
from market_jax.data import decoding, filenames
from market_jax.errors import InputError
from market_jax.retrieval import search
from market_jax.typing import Columns
from market_jax.weights import published

Pictures = np.ndarray | str | Path | Sequence[str | Path | np.ndarray]


class Prediction(NamedTuple):
    """The prediction of one label for M pictures.

    Attributes:
      names: the most likely class of each picture, str [M].
      probabilities: float32 [M, K].
      classes: the names of the K classes.
    """

    names: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]


class Model:
    """A trained network.

    Args:
      run: what `market_jax.runs.restore` or `market_jax.runs.published` has read.
    """

    def __init__(self, run: runs.Run):
        self.run = run

    def read(self, pictures: Pictures) -> Columns:
        """Reads pictures into the columns "image" and "name".

        Args:
          pictures: a folder; a picture's path, or several; an array uint8 [M, H, W, 3]; or
            several arrays [H, W, 3] of any size.

        Raises:
          InputError: a file is missing or is no picture, or an array has another shape or dtype.
        """
        size = tuple(self.run.config.data.image_size)
        if isinstance(pictures, str | Path):
            path = Path(pictures)
            pictures = _pictures_of(path) if path.is_dir() else [path]
        if not len(pictures):
            raise InputError("no picture is given")
        images, names = [], []
        for number, picture in enumerate(pictures):
            name = str(picture) if isinstance(picture, str | Path) else f"picture {number}"
            images.append(decoding.resize(_as_array(picture, name), size))
            names.append(name)
        return {"image": np.stack(images), "name": np.array(names)}

    def embed(self, pictures: Pictures, *, flip: bool = False) -> np.ndarray:
        """The embedding of each picture: float32 [M, D].

        Args:
          pictures: M pictures, see `read`.
          flip: average the embeddings of a picture and its mirror image.

        Raises:
          InputError: as `read`; or an embedding is not finite.
        """
        columns = self.read(pictures)
        return inference.features(self.run.predict, columns, flip=flip)["feature"]

    def predict(self, pictures: Pictures, *, flip: bool = False) -> dict[str, Prediction]:
        """The labels of each picture that the network knows: label -> `Prediction`.

        Args:
          pictures: M pictures, see `read`.
          flip: average the logits of a picture and its mirror image.

        Raises:
          InputError: as `read`.
        """
        columns, classes = self.read(pictures), self.run.schema.labels
        names = self.run.predict.output_names(columns)
        known = [label for label in classes if label in names]
        logits = self.run.predict(columns, known, flip=flip)
        return {label: _predict(logits[label], classes[label]) for label in known}

    def search(
        self, query: Pictures, gallery: Pictures, k: int = 10, *, flip: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the k pictures of a gallery that are most like each query.

        Args:
          query: Q pictures, or their embeddings float [Q, D].
          gallery: G pictures, or their embeddings float [G, D].
          k: the number of answers to each query, 1 to G.
          flip: average the embeddings of a picture and its mirror image.

        Returns:
          Cosine distances float32 [Q, k], ascending, and positions in the gallery int64 [Q, k].
        """
        sides = [x if _is_embedding(x) else self.embed(x, flip=flip) for x in (query, gallery)]
        return search.top_k(*sides, k)


def _pictures_of(folder: Path) -> list[Path]:
    """The pictures of a folder, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.is_file() and filenames.is_image(p.name))


def _is_embedding(x: Pictures) -> bool:
    return isinstance(x, np.ndarray) and x.ndim == 2


def _as_array(picture: str | Path | np.ndarray, name: str) -> np.ndarray:
    """A picture as uint8 [H, W, 3]."""
    if isinstance(picture, str | Path):
        return decoding.read(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise InputError(
            f"{name} is {picture.dtype} {picture.shape}; it must be uint8 [height, width, 3]"
        )
    return picture


def _predict(logits: np.ndarray, classes: tuple[str, ...]) -> Prediction:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
    names = np.asarray(classes)[np.argmax(logits, axis=1)]
    return Prediction(names, probabilities, tuple(classes))


def load(run: str | Path, *, checkpoint: str = "best", allow_imports: bool = False) -> Model:
    """Loads a trained network; see `market_jax.load`.

    Args:
      run: the folder of a run; or the name of a published network, or its .safetensors file. What
        is a folder, or has a slash and another ending, is taken for a run.
      checkpoint: "best", "latest" or a step; a published network has one.
      allow_imports: whether the run may name code outside market_jax, which is imported then.

    Raises:
      InputError: there is no such run, checkpoint or network, or it names code outside market_jax.
    """
    path = Path(run).expanduser()
    is_file = str(run).endswith(published.SUFFIX)
    if path.is_dir() or ("/" in str(run) and not is_file):
        return Model(runs.restore(run, checkpoint, cache=False, allow_imports=allow_imports))
    if checkpoint != "best":
        raise InputError(f"checkpoint is {checkpoint!r}; a published network, {run}, has only one")
    return Model(runs.published(run, cache=False, allow_imports=allow_imports))
