"""What is known of a user's pictures before they are described: where, which camera, when."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from market_jax import files
from market_jax.api import Attributes
from market_jax.data import filenames, folders
from market_jax.errors import InputError
from market_jax.galleries.where import seconds
from market_jax.registry import choose

UNKNOWN = {"camid": -1, "sequence": -1, "frame": -1, "time": -1.0}
_COLUMNS = {"name", *UNKNOWN, "pid"}  # a pid is what the lists of other tasks have

Record = dict[str, Any]


def read(folder: Path, table: Path | None, report: folders.Report) -> list[Record]:
    """What is known of every picture: "path", and `UNKNOWN`'s fields.

    Args:
      folder: the folder with the pictures.
      table: a CSV that lists them by name; None reads their names.
      report: collects the bad rows that are left out.

    Raises:
      InputError: the folder or the table is missing; the table lists no picture, or has a column
        that is not known; or (without `report.skip_bad`) a row is wrong, or names a picture that
        another row has named.
    """
    return _from_names(folder) if table is None else _from_table(folder, table, report)


def _from_names(folder: Path) -> list[Record]:
    names = folders.pictures_of(folder, dropped=[])
    grammar = folders.naming_of(names)
    found = []
    for name in names:
        known = filenames.parse(name.rsplit("/", 1)[-1], grammar) or {}
        known = {key: value for key, value in known.items() if key in UNKNOWN}
        found.append({"path": str(absolute(folder / name)), **UNKNOWN, **known})
    return found


def _from_table(folder: Path, table: Path, report: folders.Report) -> list[Record]:
    rows = files.read_table(table, ("name",))
    header = dict(rows[0][1]) if rows else {}
    for column in sorted(header.keys() - _COLUMNS):
        choose(column, dict.fromkeys(_COLUMNS - header.keys()), f"column in {table}:")
    return folders.read_rows(table, rows, lambda row: _from_row(folder, row), report)


def _from_row(folder: Path, row: Mapping[str, str]) -> Record:
    known: Record = {
        key: files.read_integer(row.get(key) or "-1", f"column {key!r}", -1)
        for key in ("camid", "sequence", "frame")
    }
    time = row.get("time") or ""
    known["time"] = seconds(time, "column 'time'") if time else UNKNOWN["time"]
    return {"path": str(absolute(folders.within(folder, row["name"]))), **known}


def digests(records: Sequence[Record], report: folders.Report) -> dict[str, str]:
    """Path -> digest of the file, of those that can be read.

    Args:
      records: of pictures.
      report: collects the others.

    Raises:
      InputError: a file cannot be read (without `report.skip_bad`).
    """
    found = {}
    for record in records:
        try:
            found[record["path"]] = digest(files.read_bytes(record["path"]))
        except InputError as error:
            report.bad(str(error))
    return found


def digest(content: bytes) -> str:
    """By what a gallery knows a picture.

    Args:
      content: of its file.
    """
    return hashlib.sha256(content).hexdigest()


def rows(
    by_id: Mapping[str, Record], embeddings: np.ndarray, attributes: Attributes
) -> Iterator[Record]:
    """Yields the database's rows of some pictures.

    Args:
      by_id: digest -> record, of M pictures.
      embeddings: float [M, D].
      attributes: label -> its prediction for the M pictures.
    """
    none = np.empty((len(embeddings), 0), np.float32)
    sides = np.concatenate([none, *(found.probabilities for found in attributes.values())], axis=1)
    for (key, record), vector, values in zip(by_id.items(), embeddings, sides, strict=True):
        described = {"embedding": vector.tolist(), "probabilities": values.tolist()}
        yield {"id": key, **record, **described}


def changes(row: Mapping[str, Any], record: Record) -> Record:
    """The fields of a gallery's row that a record of the same picture changes.

    Args:
      row: the row. Its path stays as long as the picture is there, too.
      record: what is known of the picture now; what it does not know stays.
    """
    said = {key: record[key] for key in UNKNOWN if record[key] not in (UNKNOWN[key], row[key])}
    return said if _is_there(row, record) else said | {"path": record["path"]}


def _is_there(row: Mapping[str, Any], record: Record) -> bool:
    """Whether the picture of a row, which is where its record says, is where the row says."""
    if row["path"] == record["path"]:
        return True
    try:
        return digest(files.read_bytes(row["path"])) == row["id"]
    except InputError:
        return False


def absolute(path: str | Path) -> Path:
    """A path from the root, without "..", links as they are.

    Args:
      path: the path; ~ is a home folder.
    """
    found = os.path.abspath(Path(path).expanduser())
    return Path(f"/{found.lstrip('/')}")  # two slashes may stand for more, by POSIX
