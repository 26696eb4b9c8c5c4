"""Files that appear whole or not at all, and files of a user that are read."""

import contextlib
import csv
import fcntl
import io
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import logging

from market_jax.errors import InputError

_MOST = 1 << 30  # bytes of a table or a text, unless a reader says otherwise
_INTEGER = re.compile(r"[+-]?[0-9]{1,10}")
_INT32 = 2**31


@contextlib.contextmanager
def locked(path: Path, taken: str | None = None) -> Iterator[None]:
    """Holds a file's lock, which the system takes back when the process ends, however it ends.

    Args:
      path: the file that is locked, which is made if it is missing and stays.
      taken: the message of the error where another process holds the lock; None waits for it.

    Raises:
      InputError: another process holds the lock, or the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error})") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if taken else 0))
        except BlockingIOError:
            raise InputError(taken) from None
        except OSError as error:  # a file system without locks
            logging.warning("%s cannot be locked (%s)", path, error.strerror)
        yield


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file by a rename: a reader sees the old content or the new, never a part.

    Args:
      path: where the file is written; its folder is made if it is missing.
      content: all of it; a text is written in UTF-8.

    Raises:
      InputError: it cannot be written; the message names the file. The old content stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    data = content if isinstance(content, bytes) else content.encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error})") from None


def read_bytes(path: Path | str, most: int = _MOST) -> bytes:
    """Reads a file of a user. A pipe or a device, which may never end, is refused.

    Args:
      path: the file.
      most: the largest size that is read, in bytes.

    Raises:
      InputError: there is no such file, it is no regular one, it is larger, or it cannot be read.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path}: is no regular file")
        if found.st_size > most:
            raise InputError(f"{path}: has {found.st_size} bytes; the most that is read is {most}")
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except InputError:
        raise
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason})") from None


def read_text(path: Path | str) -> str:
    """Reads a text in UTF-8, with or without a byte order mark.

    Args:
      path: the file.

    Raises:
      InputError: as for `read_bytes`, or it is in another encoding.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: is not in UTF-8 ({error.reason} at byte {error.start})"
        ) from None


def read_json(path: Path | str) -> dict:
    """Reads a JSON object.

    Args:
      path: the file.

    Raises:
      InputError: as for `read_text`, or it holds no JSON object.
    """
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON ({error})") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: is no JSON object")
    return found


def read_table(path: Path | str, required: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Reads a CSV with a header: for each row, where it stands and its texts by column.

    Args:
      path: the file, in UTF-8.
      required: columns that it must have; their order and further columns are free.

    Returns:
      Pairs of "FILE, row N" (the header is row 1), for messages, and column -> text.

    Raises:
      InputError: as for `read_text`; the header lacks a column or has one twice; a row has more
        cells than the header or fewer.
    """
    text = read_text(path)
    if "\0" in text:
        raise InputError(f"{path}: is no CSV (it holds zero bytes)")
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""))) or [[]]
    except csv.Error as error:
        raise InputError(f"{path}: is no CSV ({error})") from None
    header = [name.strip() for name in rows.pop(0)]
    missing = [name for name in required if name not in header]
    if missing:
        raise InputError(f"{path}: the header has no column {', '.join(map(repr, missing))}")
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise InputError(f"{path}: the header has the column {twice[0]!r} twice")
    table = []
    for number, row in enumerate(rows, start=2):
        where = f"{path}, row {number}"
        if not row:
            continue  # an empty line
        if len(row) != len(header):
            raise InputError(f"{where}: has {len(row)} cells; the header has {len(header)}")
        table.append((where, dict(zip(header, row, strict=True))))
    return table


def read_yes(text: str, what: str) -> bool:
    """Reads yes or no as programs write it: 1, 1.0, true, yes, or 0, 0.0, false, no, nothing.

    Args:
      text: the text.
      what: whose value it is, for the message.

    Raises:
      InputError: it is none of them.
    """
    for answer, words in (
        (True, ("1", "1.0", "true", "yes")),
        (False, ("0", "0.0", "false", "no")),
    ):
        if text.strip().lower() in words:
            return answer
    if not text.strip():
        return False
    raise InputError(f"{what} has value {text!r}; it must be 1 or 0")


def read_integer(text: str, what: str, least: int = -_INT32) -> int:
    """Reads a whole number in digits, which fits into 32 bits.

    Args:
      text: the number.
      what: whose value it is, for the message: "column 'pid'".
      least: the smallest one that is allowed.

    Raises:
      InputError: it is no such number.
    """
    text = str(text).strip()
    if not _INTEGER.fullmatch(text) or not -_INT32 <= int(text) < _INT32:
        raise InputError(f"{what} has value {text!r}; it must be an integer of 32 bits")
    if int(text) < least:
        raise InputError(f"{what} has value {text}; it must be {least} or more")
    return int(text)
