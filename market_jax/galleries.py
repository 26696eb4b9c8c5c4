"""A run's features over splits and folders, and the evaluation protocols over them."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from market_jax import experiment, runs
from market_jax import inference as features
from market_jax.data import columns, filenames, folders
from market_jax.errors import InputError
from market_jax.evaluators import protocols
from market_jax.evaluators.protocols import Protocol
from market_jax.typing import Columns

_KEPT = ("name", *folders.METADATA)


def describe(found: runs.Run, source: str, rows: Columns) -> Columns:
    """The columns with "feature" float32 [M, D] and "digest" instead of the images."""
    flip = found.config.retrieval.flip
    return {key: rows[key] for key in _KEPT} | {
        "feature": runs.embed(found, source, rows, flip=flip),
        "digest": columns.digests(rows["image"]),
    }


def read_split(found: runs.Run, source: str, split: str) -> Columns:
    """The features of a split, from `evaluation/features*.npz` where they are up to date."""
    config = found.config
    directory = experiment.prepared_directory(config)
    key = {
        "source": source,
        "checkpoint": [found.step, found.extra.get("progress"), found.extra.get("config")],
        "data": [directory.name, columns.fingerprint(directory), split],
        "settings": [*config.data.image_size, config.data.val_fraction, config.data.split_seed],
        "flip": config.retrieval.flip,
    }
    parts = [
        "features",
        *([source] if source != "model" else ()),
        *([split] if split != "val" else ()),
    ]
    path = found.workdir / "evaluation" / f"{'-'.join(parts)}.npz"
    return features.cached(
        path, key, lambda: describe(found, source, experiment.open_split(config, split))
    )


def read_folder(found: runs.Run, folder: str, table: str | None) -> Columns:
    """The images of a folder of crops in a known naming, or as a CSV lists them."""
    if table:
        records = folders.read_list(Path(folder), Path(table))
    else:
        records = folders.scan(Path(folder), "detect", folders.Report())
    return folders.to_columns(records, found.config.data.image_size)


def read_excluded(path: Path) -> set[str]:
    """Names of the CSV's column "name"; where it has a column "rejected", of the rows with 1.

    Raises:
      InputError: there is no column "name".
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if "name" not in (reader.fieldnames or ()):
            raise InputError(f"{path}: has no column name")
        return {row["name"] for row in reader if row.get("rejected", "1") == "1"}


def without(rows: Columns, excluded: set[str]) -> Columns:
    """The rows whose names are not excluded."""
    return columns.select(rows, ~np.isin(rows["name"], sorted(excluded)))


def read_protocols(
    found: runs.Run,
    source: str,
    split: str,
    images: str | None,
    annotations: str | None,
    exclude: str | None,
) -> tuple[dict[str, Protocol], Callable[[], list[Columns]]]:
    """The protocols over a folder or a split, see `run`; and what opens their pictures."""
    if annotations and not images:
        raise InputError("--annotations goes with --images: a folder and its list")
    queries = None
    if images:
        pictures = read_folder(found, images, annotations)
        rows, opened = describe(found, source, pictures), lambda: [pictures]
    else:
        splits = ["test", "query"] if split == "test" else [split]
        rows, *others = (read_split(found, source, name) for name in splits)
        queries = others[0] if others else None

        def opened():
            return [experiment.open_split(found.config, name) for name in splits]

    if rows["pid"].min() < filenames.JUNK:
        raise InputError("who the images show is not known here; --predict=release answers them")
    if exclude:
        names = read_excluded(Path(exclude))
        known = np.concatenate([side["name"] for side in (rows, queries) if side is not None])
        if unknown := names - set(known.tolist()):
            raise InputError(f"{exclude}: {min(unknown)!r} is none of the images")
        rows = without(rows, names)
        queries = None if queries is None else without(queries, names)
    return protocols.make(rows, queries), opened
