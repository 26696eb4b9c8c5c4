"""Reads the images of a folder for a task, and writes a result as text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from market_jax import files, seen
from market_jax.data import attributes, columns, folders
from market_jax.data.datasets import SIDES, Dataset
from market_jax.errors import InputError
from market_jax.evaluators.result import Result
from market_jax.files import write_atomically
from market_jax.registry import choose
from market_jax.report import tables
from market_jax.runs import Run
from market_jax.typing import Columns

SPLITS = ("train", "val", "holdout", "test", "query")


class Judged(NamedTuple):
    """What a task judges, as its flags say: a split, or folders of crops.

    Attributes:
      split: the name of a split.
      images: a folder that is judged instead; None has none.
      annotations: what is known of its images.
      queries: a folder with the queries, for which `images` is the gallery.
      query_annotations: what is known of the queries.
      skip_bad: leave bad pictures and rows of folders and lists out.
      usual: the split where the flag is not given.
    """

    split: str
    images: str | None = None
    annotations: str | None = None
    queries: str | None = None
    query_annotations: str | None = None
    skip_bad: bool = False
    usual: str = "val"

    @property
    def name(self) -> str:
        """What is judged, in words."""
        return self.images or f"split {self.split}"

    def given(self) -> dict[str, Any]:
        """The flags that differ from their defaults, see `refuse`."""
        return self._asdict() | {"split": self.split != self.usual, "usual": False}

    def check(self) -> None:
        """Refuses flags that would do nothing beside the others.

        Raises:
          InputError: there are such flags.
        """
        given = self.given()
        if not self.queries:
            refuse("without --queries", query_annotations=self.query_annotations)
        if self.images:
            refuse("with --images, which is judged instead", split=given["split"])
        else:
            names = ("annotations", "queries", "skip_bad")
            refuse("without --images", **{name: given[name] for name in names})


def refuse(why: str, **given: Any) -> None:
    """Refuses flags that would do nothing.

    Args:
      why: what makes them do nothing: "without --images".
      **given: flag -> its value; None, False and "" are not given.

    Raises:
      InputError: one of them is given.
    """
    for name, value in given.items():
        if value:
            raise InputError(f"--{name} does nothing {why}")


def read_folder(
    folder: Path,
    image_size: tuple[int, int],
    *,
    annotations: Path | None = None,
    table: Path | None = None,
    named: bool = True,
    skip_bad: bool = False,
) -> Columns:
    """Reads the images of a folder of crops.

    Args:
      folder: the folder with the pictures; without `table` their names follow a known naming.
      image_size: (height, width) that pictures are resized to.
      annotations: a file with the 12 attributes of each identity, CSV or .mat; None has none.
      table: a CSV that lists the pictures with name, pid and camid; None reads their names.
      named: whether every name must follow the naming; False takes names that say nothing.
      skip_bad: leave bad pictures and rows out and list them, instead of raising an error.

    Raises:
      InputError: a file is missing or broken, or a name follows no known naming.
    """
    report = folders.Report(skip_bad)
    if table is not None:
        records = folders.read_list(folder, table, report)
    else:
        grammar = "detect" if named else folders.naming_of(folders.pictures_of(Path(folder), []))
        records = folders.scan(folder, grammar, report)
    if annotations is not None:
        labels = attributes.read(annotations, report.problems)
        records = folders.annotate(records, labels, report, annotations)
    if not records:
        raise InputError(f"{folder}: no picture could be used; the first: {report.skipped[0]}")
    if report.dropped:
        logging.warning("%s: left out %s", folder, ", ".join(report.dropped))
    for message in report.skipped:
        logging.warning("skipped: %s", message)
    return columns.from_records(records, image_size)


def read_excluded(path: Path) -> set[str]:
    """Reads the names of the images to leave out from a CSV.

    They are in the column "name". If there is a column "rejected", only rows with a yes there
    count: 1, 1.0, true or yes.

    Args:
      path: the CSV.

    Raises:
      InputError: there is no column "name", or "rejected" holds something else than yes or no.
    """
    return {
        row["name"]
        for where, row in files.read_table(path, ("name",))
        if files.read_yes(row.get("rejected", "1"), f"{where}: column 'rejected'")
    }


def exclude(
    path: Path, gallery: Columns, queries: Columns | None
) -> tuple[Columns, Columns | None]:
    """Removes the images that a CSV names from gallery and queries, see `read_excluded`.

    A name that both sides have is written "query/NAME" or "gallery/NAME".

    Args:
      path: the CSV.
      gallery: columns of the gallery.
      queries: columns of the data set's own queries; None if there are none.

    Raises:
      InputError: there is no column "name", or no image or one on both sides has one of the names.
    """
    sides = {"gallery": gallery} | ({} if queries is None else {"query": queries})
    have = {side: set(rows["name"].tolist()) for side, rows in sides.items()}
    chosen: dict[str, set[str]] = {side: set() for side in sides}
    for name in sorted(read_excluded(path)):
        first, _, rest = name.partition("/")
        found = [(side, name) for side in sides if name in have[side]]
        if not found and first in sides and rest in have[first]:
            found = [(first, rest)]
        if not found:
            raise InputError(f"{path}: {name!r} is none of the images")
        if len(found) > 1:
            raise InputError(
                f"{path}: {name!r} is a query and in the gallery; write query/{name} or "
                f"gallery/{name}"
            )
        chosen[found[0][0]].add(found[0][1])
    kept = {
        side: columns.select(rows, ~np.isin(rows["name"], sorted(chosen[side])))
        for side, rows in sides.items()
    }
    empty = [side for side, rows in kept.items() if not len(rows["name"])]
    if empty:
        raise InputError(f"{path}: leaves no image of the {empty[0]}")
    return kept["gallery"], kept.get("query")


def as_text(result: Result, *notes: str, first: str = "") -> str:
    """The text of a result for the terminal.

    Args:
      result: the result of an evaluator.
      *notes: further sentences that follow it.
      first: a sentence that comes before it, if there is one.
    """
    shown = [tables.align(table.header, table.rows) for table in result.tables]
    return "\n\n".join([*filter(None, [first]), result.title, *shown, *result.notes, *notes])


def data_of(run: Run) -> Dataset:
    """The data set that a run is judged on, whose splits without an image are refused.

    Args:
      run: the run.

    Raises:
      InputError: see `Run.dataset`; when opened, a split has no image.
    """
    dataset = run.dataset()

    def open_split(split: str) -> Columns:
        rows = dataset.open(split)
        if not len(rows["pid"]):
            sides = ", where data.val_fraction and data.holdout_fraction of the run hold nobody out"
            why = sides if split in SIDES else ""
            raise InputError(f"{dataset.schema.name}: the split {split!r} has no image{why}")
        return rows

    return dataset._replace(open=open_split)


def need_network(run: Run, task: str) -> None:
    """Refuses what `--config` names instead of a run, for a task that needs a network.

    Args:
      run: the run.
      task: the name of the task.

    Raises:
      InputError: the run has no network.
    """
    if run.predict is None:
        raise InputError(f"--task={task} needs a trained run: --workdir instead of --config")


def judge_split(
    run: Run, evaluate: Callable, file: str, *, split: str, flip: bool, metric: str
) -> str:
    """Judges a run on a split by an evaluator, writes the record, and returns the text.

    Args:
      run: the run.
      evaluate: the evaluator.
      file: the name of the record.
      split: the split that is judged.
      flip: average the features of an image and its mirror image.
      metric: the distance between features, "cosine" or "euclidean".

    Raises:
      InputError: there is no such metric, the run has no network, or as the evaluator.
    """
    need_network(run, Path(file).stem)
    choose(metric, dict.fromkeys(("cosine", "euclidean")), "metric")
    dataset = data_of(run)
    caution, known = seen.known_people(run, [dataset.open(split)], split=split)
    result = evaluate(run.predict, dataset, split=split, flip=flip, metric=metric)
    about = {"split": split, "flip": flip, "metric": metric, "checkpoint": run.step}
    path = run.evaluation / file
    write_atomically(path, json.dumps(about | known | dict(result.record), indent=2) + "\n")
    return as_text(result, f"written to {path}", first=caution)
