"""What is known of a user's pictures before they are described: where, which camera, when."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from market_jax import files
from market_jax.data import filenames, folders
from market_jax.errors import InputError
from market_jax.galleries.where import seconds

UNKNOWN = {"camid": -1, "sequence": -1, "frame": -1, "time": -1.0}


def read(folder: Path, table: Path | None) -> Iterator[dict[str, Any]]:
    """Yields what is known of every picture: "path", and `UNKNOWN`'s fields.

    Args:
      folder: the folder with the pictures.
      table: a CSV that lists them by name; None reads their names.

    Raises:
      InputError: the folder or the table is missing, or a row is wrong.
    """
    if table is None:
        names = folders.pictures_of(folder, dropped=[])
        grammar = folders.naming_of(names)
        for name in names:
            known = filenames.parse(name.rsplit("/", 1)[-1], grammar)
            known = {key: value for key, value in (known or {}).items() if key in UNKNOWN}
            yield {"path": str(absolute(folder / name)), **UNKNOWN, **known}
        return
    for where, row in files.read_table(table, ("name",)):
        known = {
            key: files.read_integer(row.get(key) or "-1", f"{where}: column {key!r}", -1)
            for key in ("camid", "sequence", "frame")
        }
        time = row.get("time") or ""
        known["time"] = seconds(time, f"{where}: column 'time'") if time else -1.0
        try:
            path = folders.within(folder, row["name"])
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        yield {"path": str(absolute(path)), **known}


def absolute(path: str | Path) -> Path:
    """A path from the root, links as they are.

    Args:
      path: the path; ~ is a home folder.
    """
    return Path(path).expanduser().absolute()
