"""Reads the images of a folder for a task, and writes a result as text."""

import csv
from pathlib import Path

import numpy as np
from absl import logging

from market_jax.data import attributes, columns, folders
from market_jax.errors import InputError
from market_jax.evaluators.result import Result
from market_jax.report import tables
from market_jax.typing import Columns

SPLITS = ("train", "val", "test", "query")


def read_folder(
    folder: Path,
    image_size: tuple[int, int],
    *,
    annotations: Path | None = None,
    table: Path | None = None,
) -> Columns:
    """Reads the images of a folder of crops.

    Args:
      folder: the folder with the pictures; without `table` their names follow a known naming.
      image_size: (height, width) that pictures are resized to.
      annotations: a file with the 12 attributes of each identity, CSV or .mat; None has none.
      table: a CSV that lists the pictures with name, pid and camid; None reads their names.

    Raises:
      InputError: a file is missing or broken, or a name follows no known naming.
    """
    report = folders.Report()
    if table is not None:
        records = folders.read_list(folder, table)
    else:
        records = folders.scan(folder, "detect", report)
    if annotations is not None:
        labels = attributes.read(annotations)
        records = folders.annotate(records, labels, report, annotations)
    if report.dropped:
        logging.warning("%s: left out %s", folder, ", ".join(report.dropped))
    return columns.from_records(records, image_size)


def read_excluded(path: Path) -> set[str]:
    """Reads the names of the images to leave out from a CSV.

    They are in the column "name". If there is a column "rejected", only rows with a 1 there count.

    Args:
      path: the CSV.

    Raises:
      InputError: there is no column "name".
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if "name" not in (reader.fieldnames or ()):
            raise InputError(f"{path}: has no column name")
        return {row["name"] for row in reader if row.get("rejected", "1") == "1"}


def exclude(
    path: Path, gallery: Columns, queries: Columns | None
) -> tuple[Columns, Columns | None]:
    """Removes the images that a CSV names from gallery and queries, see `read_excluded`.

    Args:
      path: the CSV.
      gallery: columns of the gallery.
      queries: columns of the data set's own queries; None if there are none.

    Raises:
      InputError: there is no column "name", or no image has one of the names.
    """
    names = read_excluded(path)
    sides = [side for side in (gallery, queries) if side is not None]
    unknown = names - {name for side in sides for name in side["name"].tolist()}
    if unknown:
        raise InputError(f"{path}: {min(unknown)!r} is none of the images")
    kept = [columns.select(side, ~np.isin(side["name"], sorted(names))) for side in sides]
    return kept[0], kept[1] if queries is not None else None


def as_text(result: Result, *notes: str) -> str:
    """The text of a result for the terminal.

    Args:
      result: the result of an evaluator.
      *notes: further sentences that follow it.
    """
    shown = [tables.align(table.header, table.rows) for table in result.tables]
    return "\n\n".join([result.title, *shown, *result.notes, *notes])
