"""The 12 attributes, their classes, and the 27 annotation columns that carry them.

The annotation files (course release: `annotations_train.csv`; official: `market_attribute.mat`
by Lin et al., "Improving person re-identification by attribute and identity learning") hold 27
columns with values from 1: age, nine binaries, eight upper and nine lower colours. Here they
become 12 attributes with classes from 0; the colours become one attribute each, and an
identity with no colour given is of the extra class "multicolor".
"""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import scipy.io

from market_jax import files
from market_jax.errors import InputError

CLASSES: dict[str, tuple[str, ...]] = {
    "age": ("young", "teenager", "adult", "old"),
    "backpack": ("no", "yes"),
    "bag": ("no", "yes"),
    "handbag": ("no", "yes"),
    "clothes": ("dress", "pants"),
    "down": ("long", "short"),
    "up": ("long", "short"),
    "hair": ("short", "long"),
    "hat": ("no", "yes"),
    "gender": ("male", "female"),
    "up_color": (
        *("black", "white", "red", "purple", "yellow", "gray", "blue", "green"),
        "multicolor",
    ),
    "down_color": (
        *("black", "white", "pink", "purple", "yellow", "gray", "blue", "green", "brown"),
        "multicolor",
    ),
}
"""Attribute -> class names; a label is the position in the tuple, and -1 where unknown."""

ATTRIBUTES = tuple(CLASSES)
COLORS = ("up_color", "down_color")
UNKNOWN = -1


def _columns() -> dict[str, tuple[str, int]]:
    """Annotation column -> (attribute, how many values it takes)."""
    columns = {name: (name, len(CLASSES[name])) for name in ATTRIBUTES if name not in COLORS}
    for attribute in COLORS:
        prefix = attribute.removesuffix("_color")
        columns |= {prefix + color: (attribute, 2) for color in CLASSES[attribute][:-1]}
    return columns


_COLUMNS = _columns()
COLUMNS = tuple(_COLUMNS)  # the 27 columns, in the annotation file's order


def encode(row: Mapping[str, int]) -> dict[str, int]:
    """27 annotation columns (values from 1) -> 12 labels (from 0).

    Args:
      row: column name -> value.

    Raises:
      InputError: a column is missing, a value is out of range, or two colours are given.
    """
    labels = {name: len(CLASSES[name]) - 1 for name in COLORS}
    given = {}
    for column, (attribute, values) in _COLUMNS.items():
        if column not in row:
            raise InputError(f"column {column!r} is missing")
        value = row[column]
        if not 1 <= value <= values:
            raise InputError(f"column {column!r} has value {value}; it must be 1 to {values}")
        if attribute not in COLORS:
            labels[attribute] = value - 1
        elif value == 2:
            if attribute in given:
                raise InputError(
                    f"columns {given[attribute]!r} and {column!r} are both 2; "
                    f"at most one {attribute.replace('_', ' ')} may be given"
                )
            given[attribute] = column
            color = column.removeprefix(attribute.removesuffix("_color"))
            labels[attribute] = CLASSES[attribute].index(color)
    return {name: labels[name] for name in ATTRIBUTES}


def decode(labels: Mapping[str, int]) -> dict[str, int]:
    """12 labels -> 27 annotation columns with values from 1: the inverse of `encode`.

    Args:
      labels: attribute name -> label.

    Raises:
      InputError: an attribute is missing, or its label is not the number of a class.
    """
    for name, classes in CLASSES.items():
        if name not in labels or not 0 <= labels[name] < len(classes):
            label = labels.get(name, "missing")
            raise InputError(f"attribute {name!r} is {label}; it must be 0 to {len(classes) - 1}")
    row = {}
    for column, (attribute, _) in _COLUMNS.items():
        label = int(labels[attribute])
        if attribute in COLORS:
            color = column.removeprefix(attribute.removesuffix("_color"))
            row[column] = 1 + int(CLASSES[attribute][label] == color)
        else:
            row[column] = label + 1
    return row


def read_csv(path: Path, problems: list[str] | None = None) -> dict[int, dict[str, int]]:
    """Reads an identity-level annotation file: a column `id` and the 27 columns.

    Args:
      path: a CSV with a header; the columns may have any order.
      problems: a list that gets the message of each bad row, which is then skipped; with None, a
        bad row raises.

    Returns:
      pid -> the 12 labels.

    Raises:
      InputError: the file breaks a rule; the message names the file, the row (1 is the header) and
        the rule.
    """
    rows = files.read_table(path, ("id", *COLUMNS))
    numbered = ((where, row["id"], {c: row[c] for c in COLUMNS}) for where, row in rows)
    return _by_identity(numbered, problems)


def _by_identity(rows: Iterable, problems: list[str] | None) -> dict[int, dict[str, int]]:
    """(where, id, values) -> pid -> labels; a second row for an identity is a problem."""
    table: dict[int, dict[str, int]] = {}
    for where, identity, values in rows:
        try:
            pid = files.read_integer(identity, "column 'id'", least=1)
            if pid in table:
                raise InputError(f"identity {pid} has a second row; each has one")
            read = {c: files.read_integer(v, f"column {c!r}") for c, v in values.items()}
            table[pid] = encode(read)
        except InputError as error:
            message = f"{where}: {error}"
            if problems is None:
                raise InputError(message) from None
            problems.append(message)
    return table


def read_mat(path: Path, problems: list[str] | None = None) -> dict[int, dict[str, int]]:
    """Reads the official `market_attribute.mat`, train and test identities together.

    Fields are read by name: their order differs between the train and the test struct.

    Args:
      path: a MATLAB file with a struct `market_attribute` that holds structs `train` and `test`.
      problems: a list that gets the message of each bad row, which is then skipped; with None, a
        bad row raises.

    Returns:
      pid -> the 12 labels.

    Raises:
      InputError: the file breaks a rule; the message names the file, the identity and the rule.
    """
    content = io.BytesIO(files.read_bytes(path))
    try:
        found = scipy.io.loadmat(
            content, squeeze_me=True, struct_as_record=False, variable_names=["market_attribute"]
        )
        parts = [getattr(found["market_attribute"], name) for name in ("train", "test")]
        rows = [row for part in parts for row in _struct_rows(path, part)]
    except InputError:
        raise
    except NotImplementedError:  # HDF5
        raise InputError(f"{path}: is of MATLAB 7.3; save it with -v7") from None
    except (Exception, MemoryError, RecursionError) as error:  # whatever a parser makes of it
        raise InputError(
            f"{path}: not a MATLAB file with market_attribute.train and .test ({error})"
        ) from None
    return _by_identity(rows, problems)


def _struct_rows(path: Path, part) -> list[tuple[str, str, dict[str, str]]]:
    """(where, identity, values) of each identity in one of the two structs."""
    names = ("image_index", *COLUMNS)
    missing = [name for name in names if not hasattr(part, name)]
    if missing:
        raise InputError(f"{path}: the struct has no field {', '.join(map(repr, missing))}")
    fields = {name: np.atleast_1d(getattr(part, name)) for name in names}
    size = len(fields["image_index"])
    for name, values in fields.items():
        if values.shape != (size,):
            raise InputError(f"{path}: field {name!r} is {values.shape}; image_index has {size}")
    return [
        (
            f"{path}, identity {fields['image_index'][i]}",
            _text(fields["image_index"][i]),
            {c: _text(fields[c][i]) for c in COLUMNS},
        )
        for i in range(size)
    ]


def _text(value) -> str:
    """A value of a struct as text; MATLAB holds whole numbers as floats."""
    whole = isinstance(value, np.floating) and float(value).is_integer()
    return str(int(value) if whole else value)


def read(path: Path, problems: list[str] | None = None) -> dict[int, dict[str, int]]:
    """Reads an annotation file: with the suffix `.mat` the official one, else a CSV.

    Args:
      path: the annotation file.
      problems: a list that gets the message of each bad row, which is then skipped; with None, a
        bad row raises.

    Returns:
      pid -> the 12 labels.

    Raises:
      InputError: there is no such file, or it breaks a rule.
    """
    path = Path(path)
    return (read_mat if path.suffix.lower() == ".mat" else read_csv)(path, problems)
