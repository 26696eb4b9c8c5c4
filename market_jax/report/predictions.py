"""Predictions in the course's own format: `classification_test.csv`.

28 columns: `id`, here the picture's name, and the 27 of the annotation file in its order; integers
from 1; at most one upper and one lower colour in a row; rows sorted by name.
"""

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np

from market_jax.data.attributes import ATTRIBUTES, COLUMNS, decode, encode
from market_jax.typing import InputError

HEADER = ("id", *COLUMNS)


def classification_csv(names: Sequence[str], predicted: Mapping[str, np.ndarray]) -> str:
    """The text of the file.

    Args:
      names: of M pictures.
      predicted: attribute -> int [M] labels from 0.

    Raises:
      InputError: a name comes twice, or a label is none of its attribute's classes.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEADER)
    for i in np.argsort(np.asarray(names), kind="stable"):
        row = decode({name: int(predicted[name][i]) for name in ATTRIBUTES})
        writer.writerow([names[i], *(row[column] for column in COLUMNS)])
    text = buffer.getvalue()
    check_classification_csv(text)
    return text


def check_classification_csv(text: str) -> int:
    """Checks a file against the schema; returns the number of its rows.

    Raises:
      InputError: names the row (1 is the header) and the rule that is broken.
    """
    rows = list(csv.reader(io.StringIO(text)))
    if not rows or tuple(rows[0]) != HEADER:
        raise InputError(f"row 1: the header must be {','.join(HEADER)}")
    last = ""
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(HEADER):
            raise InputError(f"row {number}: {len(row)} columns; it must have {len(HEADER)}")
        name, *values = row
        if name <= last:
            raise InputError(f"row {number}: {name!r} after {last!r}; sorted and each once")
        last = name
        wrong = [value for value in values if not value.isdecimal()]
        if wrong:
            raise InputError(f"row {number}: {wrong[0]!r} is not an integer from 1")
        try:
            encode(dict(zip(COLUMNS, map(int, values), strict=True)))
        except InputError as error:
            raise InputError(f"row {number}: {error}") from None
    return len(rows) - 1
