"""A trained network for programs: `market_jax.load("small")` -> embed, attributes, same_person."""

import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from market_jax import calibration, inference, runs
from market_jax.calibration import Calibration
from market_jax.data import decoding, folders
from market_jax.data.images import ImageFiles
from market_jax.errors import InputError
from market_jax.retrieval import distances, search
from market_jax.typing import Columns, Outputs
from market_jax.weights import published

if TYPE_CHECKING:
    import pandas

Picture = str | Path | np.ndarray
Pictures = Picture | Iterable[Picture]

_CHUNK = 1024  # arrays at a time


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


class Attributes(Mapping[str, Prediction]):
    """What a network takes M pictures to show: label -> `Prediction`.

    Args:
      pictures: the pictures' paths, or "picture 0" and so on, str [M].
      predictions: label -> its prediction.
    """

    def __init__(self, pictures: np.ndarray, predictions: Mapping[str, Prediction]):
        self.pictures, self._predictions = pictures, dict(predictions)

    def __getitem__(self, label: str) -> Prediction:
        return self._predictions[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self._predictions)

    def __len__(self) -> int:
        return len(self._predictions)

    def to_dataframe(self) -> "pandas.DataFrame":
        """A pandas DataFrame with a row for each picture: labels, and "LABEL probability".

        Raises:
          InputError: pandas is not installed.

        >>> model.attributes(folder).to_dataframe()["gender"].tolist()[:1]
        ['female']
        """
        try:
            import pandas
        except ImportError:
            raise InputError("to_dataframe needs: pip install pandas") from None
        values = {}
        for label, found in self.items():
            values[label] = found.names
            values[f"{label} probability"] = found.probabilities.max(axis=1)
        return pandas.DataFrame(values, index=pandas.Index(self.pictures, name="picture"))


class SamePerson(NamedTuple):
    """Whether pairs of pictures show the same person.

    Attributes:
      distance: of each pair, float32 [M].
      same: whether it is at most the threshold, bool [M].
      calibration: the threshold, and its precision on people who were not trained on.
    """

    distance: np.ndarray
    same: np.ndarray
    calibration: Calibration


class Model:
    """A trained network.

    Pictures are a folder, a path, an array uint8 [H, W, 3] or [M, H, W, 3], or any number of paths
    or arrays of any sizes, in a list or as they come from a generator. The channels of an array are
    red, green and blue, which OpenCV has the other way round: `crop[..., ::-1]`. They are computed
    in batches of 64, 8, 4 or one, so that a program that calls often compiles four times at the
    most.

    Args:
      run: what `market_jax.runs.restore` or `market_jax.runs.published` has read.
    """

    def __init__(self, run: runs.Run):
        self.run = run

    def embed(self, pictures: Pictures, *, flip: bool = False) -> np.ndarray:
        """The embedding of each picture: float32 [M, D].

        Args:
          pictures: M pictures; a folder's and those of the folders in it are sorted by name. None
            at all give [0, D].
          flip: average the embeddings of a picture and its mirror image.

        Raises:
          InputError: a file is missing or is no picture, an array has another shape or dtype, a
            folder holds no picture, or an embedding is not finite.

        >>> model.embed(folder).shape
        (6, 12)
        """
        return self._run(pictures, ["embedding"], flip)[1]["embedding"].astype(np.float32)

    def attributes(self, pictures: Pictures, *, flip: bool = False) -> Attributes:
        """The labels that the network knows, with probabilities: label -> `Prediction`.

        Args:
          pictures: M pictures, as for `embed`.
          flip: average the logits of a picture and its mirror image.

        Raises:
          InputError: as `embed`.

        >>> found = model.attributes(folder)
        >>> found["hat"].classes
        ('no', 'yes')
        >>> found["hat"].probabilities.shape
        (6, 2)
        """
        return self.describe(pictures, flip=flip)[1]

    def describe(self, pictures: Pictures, *, flip: bool = False) -> tuple[np.ndarray, Attributes]:
        """Embeddings and attributes, in one pass.

        Args:
          pictures: M pictures, as for `embed`.
          flip: average what a picture and its mirror image give.

        Returns:
          float32 [M, D], and label -> `Prediction`.

        Raises:
          InputError: as `embed`.

        >>> embeddings, attributes = model.describe(folder)
        >>> embeddings.shape, len(attributes["hat"].names)
        ((6, 12), 6)
        """
        classes = self.run.schema.labels
        outputs = self.output_names()
        known = [label for label in classes if label in outputs]
        names, outputs = self._run(pictures, ["embedding", *known], flip)
        found = {label: _predict(outputs[label], classes[label]) for label in known}
        return outputs["embedding"].astype(np.float32), Attributes(names, found)

    def same_person(self, first: Pictures, second: Pictures) -> SamePerson:
        """Whether two pictures, or each of M pairs, show the same person.

        Args:
          first: M pictures, as for `embed`.
          second: M pictures that they are compared with, one by one.

        Raises:
          InputError: as `embed`; the numbers of pictures differ; or no evaluation has found a
            threshold for this network.

        >>> found = model.same_person(pictures[0], pictures[1])
        >>> found.distance.shape, found.same.shape
        ((1,), (1,))
        >>> 0 <= found.calibration.precision <= 1
        True
        """
        found = calibration.find(self.run)
        left, right = (self.embed(side, flip=found.flip) for side in (first, second))
        if len(left) != len(right):
            raise InputError(
                f"{len(left)} pictures are compared with {len(right)}, one by one: there must be "
                "as many"
            )
        distance = distances.of_pairs(left, right, found.metric)
        return SamePerson(distance, distance <= found.threshold, found)

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

        >>> distances, positions = model.search(pictures[0], folder, k=3)
        >>> positions.shape
        (1, 3)
        """
        sides = [x if _is_embedding(x) else self.embed(x, flip=flip) for x in (query, gallery)]
        return search.top_k(*sides, k)

    def output_names(self) -> tuple[str, ...]:
        """The names of the network's outputs: "embedding", labels and so on.

        >>> "embedding" in model.output_names()
        True
        """
        return self.run.predict.output_names(self._no_picture())

    @functools.cached_property
    def digest(self) -> str:
        """A digest of the network: of its parameters, and the pictures' size."""
        found = hashlib.sha256(str(tuple(self.run.config.data.image_size)).encode())
        for leaf in jax.tree.leaves(self.run.predict.variables):
            found.update(np.ascontiguousarray(leaf).tobytes())
        return found.hexdigest()

    def _no_picture(self) -> Columns:
        size = tuple(self.run.config.data.image_size)
        return {"image": np.zeros((1, *size, 3), np.uint8), "name": np.array(["none"])}

    def _run(
        self, pictures: Pictures, outputs: Sequence[str], flip: bool
    ) -> tuple[np.ndarray, Outputs]:
        """The pictures' names [M], and output -> float [M, ...], which is finite."""
        names, parts = [], []
        for columns in _read(pictures, tuple(self.run.config.data.image_size)):
            found = self.run.predict(columns, outputs, flip=flip)
            for values in found.values():
                inference.check_finite(values, columns["name"])
            names.append(columns["name"])
            parts.append(found)
        if not parts:
            found = self.run.predict(self._no_picture(), outputs)
            return np.empty(0, str), {name: value[:0] for name, value in found.items()}
        return np.concatenate(names), {
            name: np.concatenate([part[name] for part in parts]) for name in parts[0]
        }


def _read(pictures: Pictures, size: tuple[int, int]) -> Iterator[Columns]:
    """Yields the columns "image" and "name": of files at once, of arrays some at a time."""
    if isinstance(pictures, str | Path):
        path = Path(pictures)
        pictures = [path]
        if path.is_dir():
            pictures = [path / name for name in folders.pictures_of(path, dropped=[])]
    elif isinstance(pictures, np.ndarray) and pictures.ndim == 3:
        pictures = [pictures]
    if isinstance(pictures, Sequence) and all(isinstance(p, str | Path) for p in pictures):
        names = np.array([str(path) for path in pictures])
        if len(names):
            yield {"image": ImageFiles(names, size), "name": names}
        return
    numbered = enumerate(pictures)
    while chunk := list(itertools.islice(numbered, _CHUNK)):
        names = [str(p) if isinstance(p, str | Path) else f"picture {i}" for i, p in chunk]
        arrays = (_as_array(p, name) for (_, p), name in zip(chunk, names, strict=True))
        yield {"image": decoding.resize_all(arrays, size, len(chunk)), "name": np.array(names)}


def _is_embedding(x: Pictures) -> bool:
    return isinstance(x, np.ndarray) and x.ndim == 2


def _as_array(picture: Picture, name: str) -> np.ndarray:
    """A picture as uint8 [H, W, 3]."""
    if isinstance(picture, str | Path):
        return decoding.read(picture)
    if not isinstance(picture, np.ndarray):
        raise InputError(f"{name} is a {type(picture).__name__}; it must be a path or an array")
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise InputError(
            f"{name} is {picture.dtype} {picture.shape}; it must be uint8 [height, width, 3], RGB"
        )
    if not picture.size:
        raise InputError(f"{name} is {picture.shape}: it has no pixel")
    return picture


def _predict(logits: np.ndarray, classes: tuple[str, ...]) -> Prediction:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
    names = np.asarray(classes)[np.argmax(logits, axis=1)]
    return Prediction(names, probabilities, tuple(classes))


def load(run: str | Path, *, checkpoint: str = "best", allow_imports: bool = False) -> Model:
    """Loads a trained network; see `market_jax.load`.

    Args:
      run: the folder of a run; or the name of a published network, its .safetensors file, or
        "hf:OWNER/NAME/FILE.safetensors" on the Hugging Face Hub. What is a folder, or has a slash
        and is no such file, is taken for a run.
      checkpoint: "best", "latest" or a step; a published network has one.
      allow_imports: whether the run may name code outside market_jax, which is imported then.

    Raises:
      InputError: there is no such run, checkpoint or network, or it names code outside market_jax.
    """
    path = Path(run).expanduser()
    if path.is_dir() or ("/" in str(run) and not published.is_file(run)):
        return Model(runs.restore(run, checkpoint, cache=False, allow_imports=allow_imports))
    if checkpoint != "best":
        raise InputError(f"checkpoint is {checkpoint!r}; a published network, {run}, has only one")
    return Model(runs.published(run, cache=False, allow_imports=allow_imports))
