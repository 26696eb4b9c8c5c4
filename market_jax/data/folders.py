"""Raw folders of person crops: what the file names say, and which files are broken."""

import dataclasses
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

from absl import logging

from market_jax import files
from market_jax.data import decoding, filenames
from market_jax.data.attributes import ATTRIBUTES, UNKNOWN
from market_jax.errors import InputError

METADATA = ("pid", "camid", "sequence", "frame")


@dataclasses.dataclass
class Report:
    """The files that were left out while reading, and why.

    Attributes:
      skip_bad: whether a bad file is listed in `skipped` instead of raising an error.
      skipped: a message for each bad file or row.
      dropped: names of stray copies and of files that are not images.
    """

    skip_bad: bool = False
    skipped: list[str] = dataclasses.field(default_factory=list)
    dropped: list[str] = dataclasses.field(default_factory=list)

    @property
    def problems(self) -> list[str] | None:
        """The list to which a reader appends problems; None if it must raise them."""
        return self.skipped if self.skip_bad else None

    def bad(self, message: str) -> None:
        """Raises an error, or appends it to `skipped` if `skip_bad` is set.

        Args:
          message: the text of the error.

        Raises:
          InputError: `skip_bad` is not set.
        """
        if not self.skip_bad:
            raise InputError(message)
        self.skipped.append(message)


def scan(
    folder: Path, grammar: str | re.Pattern, report: Report, progress: Callable = lambda x, desc: x
) -> list[dict]:
    """Reads the file names of a folder, and checks that every picture can be decoded.

    Args:
      folder: the folder with the pictures, and with folders of pictures.
      grammar: see `filenames.parse`; or "detect", which takes the first naming that fits.
      report: collects what is left out.
      progress: (iterable, desc=text) -> iterable; shows how far the reading is, e.g. `tqdm`.

    Returns:
      A dict for each picture, sorted by name: path, name (its path within the folder), pid, camid,
      sequence, frame.

    Raises:
      InputError: the folder is missing or holds no picture, a name does not follow the
        grammar, or a picture is broken (the last two only without `report.skip_bad`).
    """
    folder = Path(folder)
    names = pictures_of(folder, report.dropped)
    if grammar == "detect":
        grammar = filenames.detect([name.rsplit("/", 1)[-1] for name in names])
    records = []
    for name in progress(names, desc=folder.name):
        path = folder / name
        try:
            found = _parse(path, grammar)
            decoding.read(path)
        except InputError as error:
            report.bad(str(error))
            continue
        records.append({"path": path, "name": name, **found})
    return records


def pictures_of(folder: Path, dropped: list[str]) -> list[str]:
    """The pictures of a folder and of the folders in it, sorted: paths within it.

    Args:
      folder: the folder.
      dropped: gets the names of stray copies and of files that are no pictures.

    Raises:
      InputError: the folder is missing or holds no picture, or as `walk`.
    """
    names = []
    for name in walk(folder):
        keep = filenames.is_image(name.rsplit("/", 1)[-1]) and not _is_stray(folder / name)
        (names if keep else dropped).append(name)
    if not names:
        raise InputError(f"{folder}: the folder holds no picture")
    return names


def _is_stray(path: Path) -> bool:
    """Whether a file is a copy of another, left behind by a second download."""
    original = filenames.original_of(path.name)
    if original is None:
        return False
    beside = path.with_name(original)
    return beside.is_file() and files.read_bytes(path) == files.read_bytes(beside)


def naming_of(names: list[str]) -> str | re.Pattern:
    """The naming that all pictures follow, or one that says nothing.

    Args:
      names: the pictures' paths.
    """
    bases = [name.rsplit("/", 1)[-1] for name in names]
    try:
        found = filenames.detect(bases)
    except InputError:
        return filenames.ANY
    others = [name for name in bases if filenames.parse(name, found) is None]
    if not others:
        return found
    logging.warning(
        "%d of %d pictures' names are outside the naming %r that the others follow, such as %s: "
        "person, camera and time are read from none of them",
        *(len(others), len(bases), found, others[0]),
    )
    return filenames.ANY


def _parse(path: Path, grammar: str | re.Pattern) -> dict[str, int]:
    """What a file's name says; an `InputError` if it does not follow the grammar."""
    found = filenames.parse(path.name, grammar)
    if found is None:
        naming = grammar if isinstance(grammar, str) else grammar.pattern
        raise InputError(f"{path}: the name is outside the naming {naming!r}")
    if grammar == "unitn" and found["pid"] < 1:
        raise InputError(f"{path}: shows identity 0; the course's identities count from 1")
    return found


def walk(folder: Path) -> list[str]:
    """The paths of all files in a folder and the folders in it, sorted; links are followed.

    Args:
      folder: the folder.

    Returns:
      Paths relative to the folder, with "/" between names. Hidden folders are left out.

    Raises:
      InputError: there is no such folder, it cannot be read, a name is not in UTF-8, or a link
        leads back to a folder above it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")

    def refuse(error: OSError):
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})")

    found = []
    for path, folders, files_ in os.walk(folder, followlinks=True, onerror=refuse):
        above = [p.resolve() for p in (Path(path), *Path(path).parents) if p.is_relative_to(folder)]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            below = Path(path, name)
            target = below.resolve()
            if below.is_symlink() and any(real.is_relative_to(target) for real in above):
                raise InputError(f"{below}: is a link to a folder above it")
        found += [Path(path, name).relative_to(folder).as_posix() for name in files_]
    for name in found:
        if any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
            raise InputError(f"{folder}: the file name {name!a} is not plain text in UTF-8")
    return sorted(found)


def read_list(folder: Path, table: Path, report: Report) -> list[dict]:
    """Reads a CSV that lists pictures with the columns name, pid and camid; makes a record of each.

    Args:
      folder: the folder with the pictures; names are paths within it.
      table: the path of the CSV.
      report: collects what is left out; a bad row is.

    Returns:
      Records as from `scan`, each with "row", its texts by column.

    Raises:
      InputError: a column is missing, no row is left; or (without `report.skip_bad`) a row is
        wrong, names a picture outside the folder or one that another row has named, or a picture
        is missing or broken.
    """
    folder, table = Path(folder), Path(table)
    rows = files.read_table(table, ("name", "pid", "camid"))
    records = read_rows(table, rows, lambda row: _listed(folder, row), report)
    strangers = sum(record["pid"] == filenames.DISTRACTOR for record in records)
    if strangers:
        logging.warning(
            "%s: %d of %d pictures have pid 0: strangers, who match nobody; persons count from 1",
            *(table, strangers, len(records)),
        )
    return sorted(records, key=lambda record: record["name"])


def read_rows(
    table: Path, rows: Iterable[tuple[str, dict]], read: Callable[[dict], dict], report: Report
) -> list[dict]:
    """Makes a record of each row of a table that lists pictures.

    Args:
      table: the path of the table, for the message.
      rows: of `files.read_table`.
      read: row -> record with "path".
      report: collects the bad rows.

    Raises:
      InputError: no row is left; or (without `report.skip_bad`) a row is wrong, or names a picture
        that another row has named.
    """
    records: dict[str, dict] = {}
    for where, row in rows:
        try:
            record = read(row)
            if str(record["path"]) in records:
                raise InputError(f"{PurePosixPath(row['name']).as_posix()!r} comes twice")
            records[str(record["path"])] = record
        except InputError as error:
            report.bad(f"{where}: {error}")
    if not records:
        raise InputError(f"{table}: lists no picture")
    return list(records.values())


def _listed(folder: Path, row: dict[str, str]) -> dict:
    """The record of a row of a list, its picture decoded once."""
    path = within(folder, row["name"])
    found = {key: files.read_integer(row[key], f"column {key!r}", -1) for key in ("pid", "camid")}
    for key in ("sequence", "frame"):
        found[key] = files.read_integer(row.get(key) or "-1", f"column {key!r}", -1)
    decoding.read(path)
    return {"path": path, "name": path.relative_to(folder).as_posix(), "row": row, **found}


def within(folder: Path, name: str) -> Path:
    """The path of a picture that a list names.

    Args:
      folder: the folder with the pictures.
      name: a path within it.

    Raises:
      InputError: the name leads out of the folder, or there is no such picture.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise InputError(f"{name!r} is no path within {folder}")
    if not os.path.exists(folder / path):  # False, too, for a name that is too long
        raise InputError(f"there is no picture {folder / path}")
    return folder / path


def annotate(
    records: list[dict],
    table: Mapping[int, Mapping[str, int]],
    report: Report,
    source: Path | str,
) -> list[dict]:
    """Adds the 12 labels to every record whose pid is a person's (above 0).

    Junk, distractors and unknown identities get the label -1 for every attribute.

    Args:
      records: the pictures' records, as from `scan`.
      table: pid -> attribute -> label, as from `attributes.read`.
      report: collects what is left out.
      source: the file that the table was read from, for the message.

    Raises:
      InputError: an identity has no row in the table (without `report.skip_bad`).
    """
    annotated, missing = [], set()
    for record in records:
        pid = record["pid"]
        if pid > 0 and pid not in table:
            if pid not in missing:
                report.bad(f"{source}: identity {pid} has no row, but {record['name']} shows it")
            missing.add(pid)
            continue
        unknown = dict.fromkeys(ATTRIBUTES, UNKNOWN)
        annotated.append(record | {"attributes": dict(table[pid]) if pid > 0 else unknown})
    return annotated
