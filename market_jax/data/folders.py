"""Raw folders of person crops: what the file names say, and which files are broken."""

import csv
import dataclasses
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from market_jax.data import filenames
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


def decode_image(content: bytes, where: str) -> np.ndarray:
    """Decodes a picture: uint8 [H, W, 3].

    Args:
      content: the bytes of the file.
      where: the picture's path, for the message.

    Raises:
      InputError: the picture is broken; the message begins with `where`.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{where}: the picture cannot be decoded ({error})") from None


def scan(
    folder: Path, grammar: str | re.Pattern, report: Report, progress: Callable = lambda x, desc: x
) -> list[dict]:
    """Reads the file names of a folder, and checks that every picture can be decoded.

    Args:
      folder: the folder with the pictures; folders in it are not read.
      grammar: see `filenames.parse`; or "detect", which takes the first naming that fits.
      report: collects what is left out.
      progress: (iterable, desc=text) -> iterable; shows how far the reading is, e.g. `tqdm`.

    Returns:
      A dict for each picture, sorted by name: path, name, pid, camid, sequence, frame.

    Raises:
      InputError: the folder is missing or holds no picture, a name does not follow the
        grammar, or a picture is broken (the last two only without `report.skip_bad`).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    names = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            continue
        keep = filenames.is_image(path.name) and not filenames.is_stray(path.name)
        (names if keep else report.dropped).append(path.name)
    if not names:
        raise InputError(f"{folder}: the folder holds no picture")
    if grammar == "detect":
        grammar = filenames.detect(names)
    records = []
    for name in progress(names, desc=folder.name):
        columns = filenames.parse(name, grammar)
        if columns is None:
            naming = grammar if isinstance(grammar, str) else grammar.pattern
            report.bad(f"{folder / name}: the name is outside the naming {naming!r}")
            continue
        try:
            decode_image((folder / name).read_bytes(), str(folder / name))
        except InputError as error:
            report.bad(str(error))
            continue
        records.append({"path": folder / name, "name": name, **columns})
    return records


def read_list(folder: Path, table: Path) -> list[dict]:
    """Reads a CSV that lists pictures with the columns name, pid and camid; makes a record of each.

    Args:
      folder: the folder with the pictures.
      table: the path of the CSV.

    Returns:
      Records as from `scan`.

    Raises:
      InputError: a column is missing, a row is wrong or comes twice, or a picture is missing or
        broken.
    """
    folder, table = Path(folder), Path(table)
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [c for c in ("name", "pid", "camid") if c not in (reader.fieldnames or ())]
        if missing:
            raise InputError(f"{table}: has no column {', '.join(missing)}")
        rows = list(reader)
    records, seen = [], set()
    for number, row in enumerate(rows, start=2):
        name = row["name"]
        try:
            known = {key: int(row[key]) for key in ("pid", "camid")}
        except (TypeError, ValueError):
            raise InputError(
                f"{table}, row {number}: pid {row['pid']!r} and camid {row['camid']!r} must be "
                "integers"
            ) from None
        if name in seen:
            raise InputError(f"{table}, row {number}: {name!r} comes twice")
        seen.add(name)
        path = folder / name
        if not path.is_file():
            raise InputError(f"{table}, row {number}: there is no picture {path}")
        records.append({"path": path, "name": name, "sequence": -1, "frame": -1, **known})
    if not records:
        raise InputError(f"{table}: lists no picture")
    return sorted(records, key=lambda record: record["name"])


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


def resize(image: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Resizes a picture, bilinear; returns the array itself if the size fits.

    Args:
      image: the picture, uint8 [H, W, 3].
      image_size: the wanted (height, width).
    """
    height, width = image_size
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
