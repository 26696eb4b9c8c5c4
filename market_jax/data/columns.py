"""A split of a prepared data set as columns: arrays with one entry per image.

Columns are "image", "name", "pid", "camid", "sequence", "frame", and one int32 array for each label
of the data set's schema. Pictures are decoded when they are indexed, `columns["image"][indices]` ->
uint8 [n, H, W, 3]; `in_memory` decodes all of them once.
"""

from pathlib import Path

import numpy as np

from market_jax.data import images as images_
from market_jax.data.attributes import ATTRIBUTES
from market_jax.data.folders import METADATA
from market_jax.data.images import ImageFiles, StoredImages
from market_jax.data.schema import Schema
from market_jax.errors import InputError
from market_jax.typing import Columns

_CHUNK = 1024  # records parsed at a time


def find_dataset(directory: Path) -> Path | None:
    """Finds the folder of a prepared data set; None if there is none.

    Args:
      directory: that folder, or a folder one or two levels above it.

    Raises:
      InputError: there are several data sets.
    """
    for pattern in (".", "*", "*/*"):
        found = [p.parent for p in sorted(directory.glob(f"{pattern}/dataset_info.json"))]
        found = [p for p in found if not _is_unfinished(p.relative_to(directory))]
        if len(found) > 1:
            raise InputError(
                f"{directory}: holds several data sets, name one: {', '.join(map(str, found))}"
            )
        if found:
            return found[0]
    return None


def _is_unfinished(path: Path) -> bool:
    """Whether a folder is one that a preparation writes aside."""
    return any(part.startswith(".") or "incomplete" in part for part in path.parts)


def _builder(directory: Path):
    """The TFDS builder of a prepared data set."""
    import tensorflow_datasets as tfds  # slow to import

    found = find_dataset(Path(directory))
    if found is None:
        raise InputError(f"{directory}: there is no prepared data set here (see data_prep)")
    return tfds.builder_from_directory(found), found


def read_schema(directory: Path) -> Schema:
    """Reads the schema of a prepared data set.

    Args:
      directory: the folder that `data_prep` has written.

    Raises:
      InputError: there is no such data set.
    """
    builder, found = _builder(directory)
    features = builder.info.features["attributes"]
    # TFDS does not keep their order: Market-1501's come first, in their own
    usual = {name: number for number, name in enumerate(ATTRIBUTES)}
    names = sorted(features, key=lambda name: (usual.get(name, len(usual)), name))
    return Schema(found.parent.name, {name: tuple(features[name].names) for name in names})


def splits_of(directory: Path) -> list[str]:
    """The names of a prepared data set's splits."""
    return sorted(_builder(directory)[0].info.splits)


def open_split(directory: Path, split: str, *, image_size: tuple[int, int]) -> Columns:
    """Opens a split of a prepared data set, its rows sorted by name; pictures are not decoded yet.

    Args:
      directory: the folder that `data_prep` has written.
      split: "train", "test" or "query".
      image_size: (height, width); pictures of another size are resized.

    Raises:
      InputError: there is no such data set or split, or the size is not two numbers.
    """
    import tensorflow_datasets as tfds

    if len(image_size) != 2 or min(image_size) < 1:
        raise InputError(f"data.image_size is {image_size}; it must be (height, width)")
    builder, found = _builder(directory)
    if split not in builder.info.splits:
        raise InputError(
            f"{found}: there is no split {split!r}; known: {', '.join(sorted(builder.info.splits))}"
        )
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    rows, metadata = np.arange(len(source)), []
    for start in range(0, len(source), _CHUNK):
        for record in source.__getitems__(rows[start : start + _CHUNK].tolist()):
            metadata.append({key: value for key, value in record.items() if key != "image"})
    columns: Columns = {"name": np.array([r["name"].decode() for r in metadata])}
    for key in METADATA:
        columns[key] = np.array([r[key] for r in metadata], np.int32)
    for key in builder.info.features["attributes"]:
        columns[key] = np.array([r["attributes"][key] for r in metadata], np.int32)
    which = f"{fingerprint(found)}/{split}/{image_size[0]}x{image_size[1]}"
    columns["image"] = StoredImages(source, rows, tuple(image_size), which)
    return select(columns, np.argsort(columns["name"], kind="stable"))


def from_records(records: list[dict], image_size: tuple[int, int]) -> Columns:
    """Turns records into columns; pictures are decoded and resized when they are indexed.

    Args:
      records: what `folders.scan`, `folders.read_list` or `folders.annotate` has returned.
      image_size: (height, width) of the columns' pictures.
    """
    paths = np.array([str(r["path"]) for r in records])
    which = images_.files_fingerprint(paths, tuple(image_size))
    columns: Columns = {
        "image": ImageFiles(paths, tuple(image_size), which),
        "name": np.array([r["name"] for r in records]),
    }
    for key in METADATA:
        columns[key] = np.array([r[key] for r in records], np.int32)
    for key in records[0].get("attributes", ()) if records else ():
        columns[key] = np.array([r["attributes"][key] for r in records], np.int32)
    return columns


def in_memory(columns: Columns) -> Columns:
    """Decodes all pictures of the columns once, if they fit into memory."""
    return columns | {"image": images_.load(columns["image"])}


def fingerprint(directory: Path) -> str:
    """A digest of a folder's file names, sizes and times; it differs when the data change."""
    return images_.files_fingerprint(sorted(p for p in Path(directory).iterdir() if p.is_file()))


def select(columns: Columns, indices: np.ndarray) -> Columns:
    """Selects rows of every column.

    Args:
      columns: columns of M images.
      indices: int positions of the rows, or a mask bool [M].
    """
    if indices.dtype == bool:
        indices = np.flatnonzero(indices)
    return {
        key: value[indices] if isinstance(value, np.ndarray) else value.take(indices)
        for key, value in columns.items()
    }


def number_identities(columns: Columns) -> Columns:
    """Adds the column "identity", int32 [M]: known persons counted from 0, -1 for all others."""
    known = np.unique(columns["pid"][columns["pid"] > 0])
    number = np.where(columns["pid"] > 0, np.searchsorted(known, columns["pid"]), -1)
    return columns | {"identity": number.astype(np.int32)}


def split_by_identity(columns: Columns, *, fraction: float, seed: int) -> tuple[Columns, Columns]:
    """Splits by identity: holds out a share of the persons, with all their images.

    Args:
      columns: columns with "pid"; images of junk and distractors (pid below 1) go to neither side.
      fraction: the share of the identities to hold out, between 0 and 1; at least one is.
      seed: seeds the choice of identities.

    Returns:
      Columns of the images to train on, and columns of the held-out ones.

    Raises:
      InputError: there are fewer than two identities, or the fraction is outside (0, 1).
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
