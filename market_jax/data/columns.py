"""A split of a prepared dataset as columns: arrays with one entry per image.

Columns are "image" uint8 [M, H, W, 3], "name", "pid", "camid", "sequence", "frame", and one
int32 array for each of the 12 attributes. Where the images do not fit in memory "image" is
a `StoredImages`, which is indexed in the same way.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from market_jax.data.attributes import ATTRIBUTES, CLASSES
from market_jax.data.folders import METADATA, decode_image, resize
from market_jax.errors import InputError
from market_jax.typing import Columns

_CHUNK = 1024  # records parsed at a time


@dataclasses.dataclass(frozen=True)
class StoredImages:
    """Images on disk, read by random access: `images[indices]` -> uint8 [n, H, W, 3]."""

    source: Sequence[Any]
    rows: np.ndarray  # positions in the source
    image_size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        images = np.empty((len(indices), *self.image_size, 3), np.uint8)
        records = self.source.__getitems__([int(i) for i in self.rows[indices]])
        for i, record in enumerate(records):
            where = record["name"].decode()
            images[i] = resize(decode_image(record["image"], where), self.image_size)
        return images

    def take(self, indices: np.ndarray) -> "StoredImages":
        """The images at `indices`, still on disk."""
        return dataclasses.replace(self, rows=self.rows[indices])


def find_dataset(directory: Path) -> Path | None:
    """The folder of the prepared dataset in or one or two folders below `directory`."""
    for pattern in (".", "*", "*/*"):
        found = [p.parent for p in sorted(directory.glob(f"{pattern}/dataset_info.json"))]
        found = [p for p in found if not _is_unfinished(p.relative_to(directory))]
        if len(found) > 1:
            raise InputError(
                f"{directory}: holds several datasets, name one: {', '.join(map(str, found))}"
            )
        if found:
            return found[0]
    return None


def _is_unfinished(path: Path) -> bool:
    """Whether a folder is one that a preparation writes aside."""
    return any(part.startswith(".") or "incomplete" in part for part in path.parts)


def open_split(
    directory: Path, split: str, *, image_size: tuple[int, int], in_memory: bool = True
) -> Columns:
    """Opens a split of a prepared dataset, its rows sorted by name.

    Args:
      directory: written by `data_prep`.
      split: "train", "test" or "query".
      image_size: (height, width); other pictures are resized.
      in_memory: decode once and keep; False, or too little memory, reads by random access.

    Returns:
      The columns.

    Raises:
      InputError: there is no such dataset or split, or the size is not two numbers.
    """
    if len(image_size) != 2 or min(image_size) < 1:
        raise InputError(f"data.image_size is {image_size}; it must be (height, width)")
    found = find_dataset(Path(directory))
    if found is None:
        raise InputError(f"{directory}: there is no prepared dataset here (see data_prep)")
    builder = tfds.builder_from_directory(found)
    if split not in builder.info.splits:
        raise InputError(
            f"{found}: there is no split {split!r}; known: {', '.join(sorted(builder.info.splits))}"
        )
    check_vocabulary(builder.info.features["attributes"], found)
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    size = len(source)
    keep = in_memory and _fits(size * image_size[0] * image_size[1] * 3)
    rows, metadata, images = np.arange(size), [], []
    for start in range(0, size, _CHUNK):
        for record in source.__getitems__(rows[start : start + _CHUNK].tolist()):
            content = record.pop("image")
            metadata.append(record)
            if keep:
                image = decode_image(content, record["name"].decode())
                images.append(resize(image, image_size))
    columns: Columns = {"name": np.array([r["name"].decode() for r in metadata])}
    for key in METADATA:
        columns[key] = np.array([r[key] for r in metadata], np.int32)
    for key in ATTRIBUTES:
        columns[key] = np.array([r["attributes"][key] for r in metadata], np.int32)
    columns["image"] = np.stack(images) if keep else StoredImages(source, rows, image_size)
    return select(columns, np.argsort(columns["name"], kind="stable"))


def check_vocabulary(features, where: Path) -> None:
    """Raises an `InputError` unless the dataset's classes are those of this version."""
    stored = {name: tuple(features[name].names) for name in features}
    if stored != CLASSES:
        raise InputError(f"{where}: prepared with another attribute vocabulary; prepare it anew")


def _fits(size_in_bytes: int) -> bool:
    """Whether an array takes at most half of the memory that is free now."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return True
    return size_in_bytes <= free // 2


def fingerprint(directory: Path) -> str:
    """A digest of a folder's file names, sizes and times: another one where the data changed."""
    files = sorted(p for p in Path(directory).iterdir() if p.is_file())
    state = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(repr(state).encode()).hexdigest()[:16]


def digests(images: np.ndarray | StoredImages) -> np.ndarray:
    """A digest of each picture's pixels: equal where pictures are. Bytes [M]."""
    parts = []
    for start in range(0, len(images), _CHUNK):
        chunk = images[np.arange(start, min(start + _CHUNK, len(images)))]
        parts += [hashlib.sha256(image.tobytes()).hexdigest()[:32].encode() for image in chunk]
    return np.array(parts)


def select(columns: Columns, indices: np.ndarray) -> Columns:
    """The rows at `indices` (integers or a mask) of every column."""
    if indices.dtype == bool:
        indices = np.flatnonzero(indices)
    return {
        key: value.take(indices) if isinstance(value, StoredImages) else value[indices]
        for key, value in columns.items()
    }


def number_identities(columns: Columns) -> Columns:
    """The columns and "identity": the persons counted from 0, int32 [M]; -1 for nobody."""
    known = np.unique(columns["pid"][columns["pid"] > 0])
    number = np.where(columns["pid"] > 0, np.searchsorted(known, columns["pid"]), -1)
    return columns | {"identity": number.astype(np.int32)}


def split_by_identity(columns: Columns, *, fraction: float, seed: int) -> tuple[Columns, Columns]:
    """Splits by identity: a seeded `fraction` of the persons is held out, never of the images.

    Args:
      columns: with "pid"; junk and distractors (pid below 1) go to neither side.
      fraction: share of the identities that is held out, rounded, at least one.
      seed: of the permutation of the sorted identities.

    Returns:
      (the rest, the held-out identities).

    Raises:
      InputError: fewer than two identities, or a fraction outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise InputError(f"data.val_fraction is {fraction}; it must lie between 0 and 1")
    identities = np.unique(columns["pid"][columns["pid"] > 0])
    if len(identities) < 2:
        raise InputError(f"{len(identities)} identity cannot be split; at least 2 are needed")
    order = np.random.default_rng(seed).permutation(identities)
    count = min(max(round(fraction * len(identities)), 1), len(identities) - 1)
    held_out, rest = order[:count], order[count:]
    return (
        select(columns, np.isin(columns["pid"], rest)),
        select(columns, np.isin(columns["pid"], held_out)),
    )
