"""The images that a task is given: a split of the run's data set, or a folder."""

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
    """The images of a folder of crops.

    Args:
      folder: holds the pictures, in a known naming unless a table lists them.
      image_size: (height, width) that they are resized to.
      annotations: a file with the 12 attributes of each identity, CSV or .mat.
      table: a CSV of name, pid and camid that lists the pictures.

    Raises:
      InputError: a file is missing or broken, or a name is in no known naming.
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
    """Names of a CSV's column "name"; where it has a column "rejected", of the rows with 1.

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
    """Both sides without the images that a CSV names, see `read_excluded`.

    Args:
      path: the CSV.
      gallery: columns of the gallery.
      queries: columns of the data set's own queries, or None.

    Raises:
      InputError: a name is none of the images.
    """
    names = read_excluded(path)
    sides = [side for side in (gallery, queries) if side is not None]
    unknown = names - {name for side in sides for name in side["name"].tolist()}
    if unknown:
        raise InputError(f"{path}: {min(unknown)!r} is none of the images")
    kept = [columns.select(side, ~np.isin(side["name"], sorted(names))) for side in sides]
    return kept[0], kept[1] if queries is not None else None


def as_text(result: Result, *notes: str) -> str:
    """A result for the terminal, with further sentences after it.

    Args:
      result: of an evaluator.
      *notes: sentences after it.
    """
    shown = [tables.align(table.header, table.rows) for table in result.tables]
    return "\n\n".join([result.title, *shown, *result.notes, *notes])
