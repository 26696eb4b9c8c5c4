"""A data set as trainings and evaluations see it: a schema, and columns of each split.

The training identities are divided: most are trained on ("train"), some are held out ("val").
"test" and "query" are as they were prepared. Several data sets become one: their persons and
cameras are numbered apart, a label that a data set does not have is unknown (-1) in its rows, and
the column "dataset" says which one a row is from.
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
      schema: its labels.
      open: split name -> columns; the same columns at every call.
    """

    schema: Schema
    open: Callable[[str], Columns]


def _offsets(parts: Sequence[Columns], key: str) -> list[int]:
    """What is added to each part's numbers, so that they lie apart."""
    highest = [max(int(part[key].max(initial=0)), 0) for part in parts]
    return [0, *np.cumsum(highest[:-1]).tolist()]


def concatenate(parts: Sequence[Columns], schemas: Sequence[Schema]) -> Columns:
    """Columns of several data sets as one.

    Args:
      parts: columns of each data set.
      schemas: of each.

    Returns:
      Names begin with the data set's, "unitn/0002_c1_016620005.jpg".
    """
    labels, joined = merge(schemas).labels, {}
    joined["image"] = images.join([part["image"] for part in parts])
    joined["name"] = np.concatenate(
        [
            np.array([f"{schema.name}/{name}" for name in part["name"].tolist()], str)
            for part, schema in zip(parts, schemas, strict=True)
        ]
    )
    for key, least in (("pid", 1), ("camid", 0)):
        pairs = zip(parts, _offsets(parts, key), strict=True)
        shifted = [np.where(p[key] >= least, p[key] + offset, p[key]) for p, offset in pairs]
        joined[key] = np.concatenate(shifted).astype(np.int32)
    for key in ("sequence", "frame"):
        joined[key] = np.concatenate([part[key] for part in parts])
    for key in labels:
        unknown = [np.full(len(part["pid"]), -1, np.int32) for part in parts]
        known = [part.get(key, gap) for part, gap in zip(parts, unknown, strict=True)]
        joined[key] = np.concatenate(known)
    sizes = [len(part["pid"]) for part in parts]
    joined["dataset"] = np.repeat(np.arange(len(parts)), sizes).astype(np.int32)
    return joined


def open_dataset(
    directories: Sequence[Path],
    *,
    image_size: tuple[int, int],
    val_fraction: float = 0.2,
    split_seed: int = 0,
) -> Dataset:
    """A data set of one or several prepared folders.

    Args:
      directories: written by `data_prep`. Each is divided by itself, so that the identities that
        are held out do not depend on what else is trained on.
      image_size: (height, width); other pictures are resized.
      val_fraction: the share of the training identities that is held out.
      split_seed: of the choice of them.

    Raises:
      InputError: a folder is not prepared, or two data sets have a label with other classes.
    """
    schemas = [columns_.read_schema(directory) for directory in directories]
    schema = schemas[0] if len(schemas) == 1 else merge(schemas)

    def joined(parts: list[Columns], owners: list[Schema]) -> Columns:
        return parts[0] if len(schemas) == 1 else concatenate(parts, owners)

    @functools.cache
    def sides() -> tuple[Columns, Columns]:
        stored = [columns_.open_split(d, "train", image_size=image_size) for d in directories]
        divided = [
            columns_.split_by_identity(rows, fraction=val_fraction, seed=split_seed)
            for rows in stored
        ]
        train, val = (joined(list(parts), schemas) for parts in zip(*divided, strict=True))
        train = columns_.number_identities(train)
        # the identities of "val" are unknown to a network
        return train, val | {"identity": np.full(len(val["pid"]), -1, np.int32)}

    @functools.cache
    def open_split(split: str) -> Columns:
        if split in ("train", "val"):
            return sides()[("train", "val").index(split)]
        having = [
            (directory, owner)
            for directory, owner in zip(directories, schemas, strict=True)
            if split in columns_.splits_of(directory)
        ]
        if not having:
            known = sorted({"val", *(s for d in directories for s in columns_.splits_of(d))})
            raise InputError(
                f"{schema.name}: there is no split {split!r}; known: {', '.join(known)}"
            )
        parts = [columns_.open_split(d, split, image_size=image_size) for d, _ in having]
        return joined(parts, [owner for _, owner in having])

    return Dataset(schema, open_split)
