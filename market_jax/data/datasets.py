"""A data set as trainings and evaluations see it: a schema, and columns of each split.

The training identities are divided: most are trained on ("train"), some are held out to choose
checkpoints and settings by ("val"), and some to judge the choice in the end ("holdout").
"test" and "query" are as they were prepared. Several data sets can be joined into one: their
persons and cameras get different numbers, a label that a data set does not have is unknown (-1) in
its rows, and the column "dataset" says which one a row is from.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from market_jax.data import columns as columns_
from market_jax.data import images, prepared
from market_jax.data.schema import Schema, merge
from market_jax.errors import InputError
from market_jax.typing import Columns

SIDES = {  # of the training identities, and what a run does with them
    "train": "trained on",
    "val": "held out",
    "holdout": "kept to be judged in the end",
}


class Part(NamedTuple):
    """One of the data sets that are joined, and how its persons and cameras are numbered.

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


class Dataset(NamedTuple):
    """A data set.

    Attributes:
      schema: the labels of its images.
      open: function from a split's name to its columns, the same ones at every call.
      divisions: function to who is trained on and who is held out, see `Division`.
      parts: the data sets that it is made of, in the order of the column "dataset".
    """

    schema: Schema
    open: Callable[[str], Columns]
    divisions: Callable[[], "list[Division]"] = list
    parts: Sequence[Part] = ()


class Division(NamedTuple):
    """Who of a data set is on which side; a run keeps it, and a restart uses it.

    Attributes:
      name: the name of the data set.
      pids: side, see `SIDES` -> its pids.
      digests: side -> digest of its pictures and labels.
    """

    name: str
    pids: Mapping[str, Sequence[int]]
    digests: Mapping[str, str]


Kept = Sequence[Division | None] | None  # divisions that are used again


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
        manifest = prepared.read(directory)
        parts.append(Part(manifest.schema, number, pid, camid))
        for split in manifest.splits:
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
      InputError: two data sets have a label of the same name with other classes, or their persons
        have numbers that are too large together.
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

    def move(key: str, least: int, offset: Callable[[Part], int]) -> np.ndarray:
        rows = [(s[key].astype(np.int64), offset(part), part.schema.name) for s, part in pairs]
        for numbers, more, name in rows:
            if numbers.max(initial=0) + more > np.iinfo(np.int32).max:
                raise InputError(
                    f"{name}: {key} {numbers.max()} is too large beside the other data sets, whose "
                    f"numbers go up to {more}: together they must be below 2**31"
                )
        return stack([np.where(found >= least, found + more, found) for found, more, _ in rows])

    joined["pid"] = move("pid", 1, lambda part: part.pid_offset)
    joined["camid"] = move("camid", 0, lambda part: part.camid_offset)
    for key in ("sequence", "frame"):
        joined[key] = stack([side[key] for side in sides])
    for key in merge([part.schema for part in parts]).labels:
        joined[key] = stack([side.get(key, np.full(len(side["pid"]), -1)) for side in sides])
    joined["digest"] = np.concatenate([side["digest"] for side in sides])
    joined["dataset"] = stack([np.full(len(side["pid"]), part.number) for side, part in pairs])
    return joined


def divide(
    directory: Path,
    rows: Columns,
    kept: Division | None,
    *,
    fractions: Mapping[str, float],
    seed: int,
) -> tuple[dict[str, Columns], Division]:
    """Divides the training images of a data set.

    Args:
      directory: the folder of the data set, for messages.
      rows: columns of its split "train".
      kept: the division that a run has kept, which is used again; None draws one.
      fractions: as in `columns.divide`.
      seed: seeds the choice of identities.

    Returns:
      Side, see `SIDES` -> its columns; and the division.

    Raises:
      InputError: as `columns.divide`; or the images of the kept identities are not the same ones.
    """
    name = prepared.read(directory).schema.name
    pids = kept.pids if kept else columns_.divide(rows, fractions=fractions, seed=seed)
    sides = {
        side: columns_.select(rows, np.isin(rows["pid"], pids.get(side, ()))) for side in SIDES
    }
    digests = {side: columns_.fingerprint(found) for side, found in sides.items()}
    if kept is not None:
        _check_kept(directory, rows, kept, digests)
    lists = {side: np.asarray(pids.get(side, ()), int).tolist() for side in SIDES}
    return sides, Division(name, lists, digests)


def _check_kept(directory: Path, rows: Columns, kept: Division, digests: Mapping) -> None:
    """Refuses images that are not the ones they were, and names those that came later."""
    for side, what in SIDES.items():
        if kept.digests[side] != digests[side]:
            raise InputError(
                f"{directory}: the pictures or labels of the identities that this run has "
                f"{what} are not the ones they were; give the data it began with (--data_dir, "
                "--config.data.dir), or train anew in another --workdir"
            )
    known = np.isin(rows["pid"], np.concatenate([*kept.pids.values()])) | (rows["pid"] < 1)
    if not known.all():
        logging.warning(
            "%s: %d pictures of %d identities came after this run began; it leaves them out",
            *(directory, (~known).sum(), len(np.unique(rows["pid"][~known]))),
        )


def open_dataset(
    directories: Sequence[Path],
    *,
    image_size: tuple[int, int],
    val_fraction: float = 0.2,
    holdout_fraction: float = 0.0,
    split_seed: int = 0,
    kept: Kept = None,
) -> Dataset:
    """Opens one or several prepared folders as one data set.

    Args:
      directories: folders that `data_prep` has written. Each is divided on its own, so that its
        held-out identities do not depend on the other folders.
      image_size: (height, width); pictures of another size are resized.
      val_fraction: the share of the training identities to hold out as "val", 0 or more and below
        1.
      holdout_fraction: the share to keep as "holdout", 0 or more and below 1. It is drawn first, so
        that `holdout_fraction=0.2` keeps those that `val_fraction=0.2` alone would hold out.
      split_seed: seeds the choice of identities.
      kept: the divisions of a run, one for each folder, which are used again; None draws one.

    Raises:
      InputError: a folder is not prepared, or two data sets have a label with other classes.
    """
    several = len(directories) > 1
    parts = number_apart(directories) if several else [Part(prepared.read(directories[0]).schema)]
    schema = merge([part.schema for part in parts]) if several else parts[0].schema

    def joined(sides: Sequence[Columns], owners: Sequence[Part]) -> Columns:
        rows = concatenate(sides, owners) if several else sides[0]
        return rows | {"camera": rows["camid"]}  # which a network may know, see `models.inputs`

    @functools.cache
    def divided() -> tuple[list[dict[str, Columns]], list[Division]]:
        found = []
        for directory, division in zip(directories, kept or [None] * len(directories), strict=True):
            rows = columns_.open_split(directory, "train", image_size=image_size)
            fractions = {"holdout": holdout_fraction, "val": val_fraction}
            found.append(divide(directory, rows, division, fractions=fractions, seed=split_seed))
        sides, divisions = zip(*found, strict=True)
        return list(sides), list(divisions)

    @functools.cache
    def open_split(split: str) -> Columns:
        if split in SIDES:
            rows = joined([sides[split] for sides in divided()[0]], parts)
            if split == "train":
                return columns_.number_identities(rows)
            # whose identities are unknown to a network
            return rows | {"identity": np.full(len(rows["pid"]), -1, np.int32)}
        splits = [list(prepared.read(directory).splits) for directory in directories]
        having = [i for i, names in enumerate(splits) if split in names]
        if not having:
            known = ", ".join(sorted({*SIDES}.union(*splits)))
            raise InputError(f"{schema.name}: there is no split {split!r}; known: {known}")
        sides = [columns_.open_split(directories[i], split, image_size=image_size) for i in having]
        return joined(sides, [parts[i] for i in having])

    return Dataset(schema, open_split, lambda: divided()[1], parts)
