"""A data set as trainings and evaluations see it: a schema, and columns of each split.

The training identities are divided: most are trained on ("train"), some are held out ("val").
"test" and "query" are as they were prepared. Several data sets can be joined into one: their
persons and cameras get different numbers, a label that a data set does not have is unknown (-1) in
its rows, and the column "dataset" says which one a row is from.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from market_jax.data import columns as columns_
from market_jax.data import images
from market_jax.data.schema import Schema, merge
from market_jax.errors import InputError
from market_jax.typing import Columns


class Dataset(NamedTuple):
    """A data set.

    Attributes:
      schema: the labels of its images.
      open: function from a split's name to its columns, the same ones at every call.
    """

    schema: Schema
    open: Callable[[str], Columns]


class Part(NamedTuple):
    """One of several data sets that are joined, and how its persons and cameras are numbered.

    Attributes:
      schema: the labels of its images.
      number: its position among the data sets, from 0.
      pid_offset: a number that is added to the pids of known persons.
      camid_offset: a number that is added to known cameras.
    """

    schema: Schema
    number: int = 0
    pid_offset: int = 0
    camid_offset: int = 0


def number_apart(directories: Sequence[Path]) -> list[Part]:
    """Numbers the persons and cameras of several data sets, the same way for every split.

    Args:
      directories: the folders that `data_prep` has written.

    Returns:
      One part for each data set, in the same order.

    Raises:
      InputError: a folder is not prepared.
    """
    parts, pid, camid = [], 0, 0
    for number, directory in enumerate(directories):
        parts.append(Part(columns_.read_schema(directory), number, pid, camid))
        for split in columns_.splits_of(directory):
            rows = columns_.open_split(directory, split, image_size=(1, 1))
            pid = max(pid, parts[-1].pid_offset + int(rows["pid"].max(initial=0)))
            # cameras may be counted from 0
            camid = max(camid, parts[-1].camid_offset + int(rows["camid"].max(initial=-1)) + 1)
    return parts


def concatenate(sides: Sequence[Columns], parts: Sequence[Part]) -> Columns:
    """Joins the columns of several data sets.

    Args:
      sides: columns of each data set.
      parts: what `number_apart` says of each data set.

    Returns:
      Columns of all images. Names begin with the data set's name: "unitn/0002_c1_016620005.jpg".

    Raises:
      InputError: two data sets have a label of the same name with other classes.
    """
    joined = {"image": images.join([side["image"] for side in sides])}
    pairs = list(zip(sides, parts, strict=True))
    joined["name"] = np.concatenate(
        [
            np.array([f"{part.schema.name}/{name}" for name in side["name"].tolist()], str)
            for side, part in pairs
        ]
    )

    def stack(values) -> np.ndarray:
        return np.concatenate(values).astype(np.int32)

    joined["pid"] = stack(
        [np.where(s["pid"] > 0, s["pid"] + part.pid_offset, s["pid"]) for s, part in pairs]
    )
    joined["camid"] = stack(
        [np.where(s["camid"] >= 0, s["camid"] + part.camid_offset, -1) for s, part in pairs]
    )
    for key in ("sequence", "frame"):
        joined[key] = stack([side[key] for side in sides])
    for key in merge([part.schema for part in parts]).labels:
        joined[key] = stack([side.get(key, np.full(len(side["pid"]), -1)) for side in sides])
    joined["dataset"] = stack([np.full(len(side["pid"]), part.number) for side, part in pairs])
    return joined


def open_dataset(
    directories: Sequence[Path],
    *,
    image_size: tuple[int, int],
    val_fraction: float = 0.2,
    split_seed: int = 0,
) -> Dataset:
    """Opens one or several prepared folders as one data set.

    Args:
      directories: folders that `data_prep` has written. Each is divided into "train" and "val" on
        its own, so that its held-out identities do not depend on the other folders.
      image_size: (height, width); pictures of another size are resized.
      val_fraction: the share of the training identities to hold out, between 0 and 1.
      split_seed: seeds the choice of held-out identities.

    Raises:
      InputError: a folder is not prepared, or two data sets have a label with other classes.
    """
    several = len(directories) > 1
    parts = number_apart(directories) if several else [Part(columns_.read_schema(directories[0]))]
    schema = merge([part.schema for part in parts]) if several else parts[0].schema

    def joined(sides: Sequence[Columns], owners: Sequence[Part]) -> Columns:
        return concatenate(sides, owners) if several else sides[0]

    def divide(directory: Path) -> tuple[Columns, Columns]:
        rows = columns_.open_split(directory, "train", image_size=image_size)
        return columns_.split_by_identity(rows, fraction=val_fraction, seed=split_seed)

    @functools.cache
    def train_and_val() -> tuple[Columns, Columns]:
        divided = zip(*map(divide, directories), strict=True)
        train, val = (joined(sides, parts) for sides in divided)
        # the identities of "val" are unknown to a network
        unknown = np.full(len(val["pid"]), -1, np.int32)
        return columns_.number_identities(train), val | {"identity": unknown}

    @functools.cache
    def open_split(split: str) -> Columns:
        if split in ("train", "val"):
            return train_and_val()[("train", "val").index(split)]
        splits = [columns_.splits_of(directory) for directory in directories]
        having = [i for i, names in enumerate(splits) if split in names]
        if not having:
            known = ", ".join(sorted({"val"}.union(*splits)))
            raise InputError(f"{schema.name}: there is no split {split!r}; known: {known}")
        sides = [columns_.open_split(directories[i], split, image_size=image_size) for i in having]
        return joined(sides, [parts[i] for i in having])

    return Dataset(schema, open_split)
