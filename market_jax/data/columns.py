"""A split of a prepared data set as columns: arrays with one entry per image.

Columns are "image", "name", "pid", "camid", "sequence", "frame", and one int32 array for each label
of the data set's schema. Pictures are decoded when they are indexed, `columns["image"][indices]` ->
uint8 [n, H, W, 3]; `in_memory` decodes all of them once.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from market_jax.data import images as images_
from market_jax.data import prepared
from market_jax.data.folders import METADATA
from market_jax.data.images import ImageFiles, StoredImages
from market_jax.errors import InputError
from market_jax.typing import Columns

_CHUNK = 1024  # records parsed at a time


def open_split(directory: Path, split: str, *, image_size: tuple[int, int]) -> Columns:
    """Opens a split of a prepared data set, its rows sorted by name; pictures are not decoded yet.

    Args:
      directory: the folder that `data_prep` has written.
      split: "train", "test" or "query".
      image_size: (height, width); pictures of another size are resized.

    Returns:
      The columns, and "digest" str [M], which differs for another picture or other labels.

    Raises:
      InputError: there is no such data set or split, it is damaged, or the size is not two numbers.
    """
    if len(image_size) != 2 or min(image_size) < 1:
        raise InputError(f"data.image_size is {image_size}; it must be (height, width)")
    manifest = prepared.read(directory)
    if split not in manifest.splits:
        raise InputError(
            f"{manifest.directory}: there is no split {split!r}; "
            f"known: {', '.join(sorted(manifest.splits))}"
        )
    source = prepared.Records(manifest, split)
    rows, metadata, contents = np.arange(len(source)), [], []
    for start in range(0, len(source), _CHUNK):
        for record in source.__getitems__(rows[start : start + _CHUNK].tolist()):
            picture = record.pop("image")
            said = json.dumps(record, sort_keys=True, default=int)
            contents.append(hashlib.sha256(said.encode() + picture))
            metadata.append(record)
    columns: Columns = {"name": np.array([r["name"] for r in metadata], str)}
    for key in METADATA:
        columns[key] = np.array([r[key] for r in metadata], np.int32)
    for key, classes in manifest.schema.labels.items():
        columns[key] = np.array([r["attributes"][key] for r in metadata], np.int32)
        if np.any((columns[key] < -1) | (columns[key] >= len(classes))):
            raise InputError(f"{manifest.directory}: label {key!r} has a value that is no class")
    columns["digest"] = np.array([content.hexdigest()[:32] for content in contents], str)
    which = f"{fingerprint(columns)}/{image_size[0]}x{image_size[1]}"
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


def fingerprint(columns: Columns) -> str:
    """A digest of the column "digest", whatever the order of the rows."""
    return hashlib.sha256("\n".join(sorted(columns["digest"].tolist())).encode()).hexdigest()[:16]


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


def stack(first: Columns, second: Columns) -> Columns:
    """The rows of two splits of a data set, one after the other.

    Args:
      first: columns of the first rows.
      second: columns of the rows after them; those that the first lack are left out.
    """
    return {
        key: np.concatenate([value, second[key]])
        if key != "image"
        else images_.join([value, second[key]])
        for key, value in first.items()
    }


def number_identities(columns: Columns) -> Columns:
    """Adds the column "identity", int32 [M]: known persons counted from 0, -1 for all others."""
    known = np.unique(columns["pid"][columns["pid"] > 0])
    number = np.where(columns["pid"] > 0, np.searchsorted(known, columns["pid"]), -1)
    return columns | {"identity": number.astype(np.int32)}


def divide(columns: Columns, *, fractions: Mapping[str, float], seed: int) -> dict[str, np.ndarray]:
    """Divides the identities into sides, each identity with all its images.

    Args:
      columns: columns with "pid"; junk and distractors (pid below 1) are on no side.
      fractions: side -> its share of the identities, 0 or more; together they stay below 1. Above 0
        a side has at least one identity. The sides are drawn in this order, so that the first ones
        do not depend on the later ones.
      seed: seeds the choice of identities.

    Returns:
      Side -> its pids, ascending; "train" has the identities of no other side, one at least.

    Raises:
      InputError: there are too few identities, or the fractions are out of range.
    """
    for side, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise InputError(
                f"data.{side}_fraction is {fraction}; it must be 0 or more and below 1"
            )
    if sum(fractions.values()) >= 1:
        listed = ", ".join(f"data.{side}_fraction {value}" for side, value in fractions.items())
        raise InputError(f"{listed}: together they must stay below 1, or nobody is trained on")
    order = np.unique(columns["pid"][columns["pid"] > 0])
    number, needed = len(order), 1 + sum(value > 0 for value in fractions.values())
    if number < needed:
        raise InputError(f"{number} identities cannot be split; at least {needed} are needed")
    order = np.random.default_rng(seed).permutation(order)
    found, start = {}, 0
    for side, fraction in fractions.items():
        needed -= fraction > 0  # identities that the sides after this one need
        most = number - start - needed
        count = min(max(round(fraction * number), 1), most) if fraction else 0
        found[side] = np.sort(order[start : start + count])
        start += count
    return {"train": np.sort(order[start:])} | found
