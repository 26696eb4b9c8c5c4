"""Predictions in the course's own formats: `classification_test.csv` and `reid_test.txt`.

The first has 28 columns: `id`, here the picture's name, and the 27 columns of the annotation file
in its order; integers from 1; at most one upper and one lower colour in a row; rows sorted by name.
The second has a line for each query, sorted: `query: answer, answer, ...`, best first.
"""

import csv
import io
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from market_jax.data.attributes import ATTRIBUTES, CLASSES, COLUMNS, decode, encode
from market_jax.errors import InputError
from market_jax.report import tables

HEADER = ("id", *COLUMNS)


def check_labels(labels: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Checks that a run predicts the 12 attributes of the course's format; returns their names.

    Args:
      labels: label -> class names, for the labels that the run predicts.

    Raises:
      InputError: an attribute is missing, or has other classes.
    """
    for name, classes in CLASSES.items():
        if tuple(labels.get(name, ())) != classes:
            raise InputError(
                f"the course's format needs the attribute {name!r} with the classes "
                f"{', '.join(classes)}; the run knows {', '.join(labels.get(name, ())) or 'none'}"
            )
    return ATTRIBUTES


def classification_csv(names: Sequence[str], predicted: Mapping[str, np.ndarray]) -> str:
    """The text of `classification_test.csv`.

    Args:
      names: the names of M pictures.
      predicted: attribute -> labels int [M], counted from 0.

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
    """Checks the text of `classification_test.csv`; returns its number of rows.

    Raises:
      InputError: a rule is broken; the message names it and the row (1 is the header).
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


def reid_txt(
    queries: Sequence[str], lists: Sequence[Sequence[str]], gallery: Collection[str]
) -> str:
    """The text of `reid_test.txt`.

    Args:
      queries: the names of the queries.
      lists: the answers to each query, names of gallery images, best first.
      gallery: the names of all gallery images.

    Raises:
      InputError: the text would break a rule, see `check_reid_txt`.
    """
    rows = sorted(zip(queries, lists, strict=True), key=lambda row: row[0])
    text = "".join(f"{query}: {', '.join(names)}\n" for query, names in rows)
    check_reid_txt(text, queries, gallery)
    return text


def check_reid_txt(text: str, queries: Collection[str], gallery: Collection[str]) -> int:
    """Checks the text of `reid_test.txt`; returns its number of lines.

    Args:
      text: the content of the file.
      queries: the names of the queries, each of which must have a line.
      gallery: the names of the gallery images, which may be answers.

    Raises:
      InputError: a rule is broken; the message names it and the line. A line is "query: name, name,
        ..."; every query has one line, with at least one name of the gallery and none twice.
    """
    missing, gallery = set(queries), set(gallery)
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        query, colon, rest = line.partition(": ")
        names = rest.split(", ")
        if not colon or not rest:
            raise InputError(f"line {number}: {line[:60]!r} is not 'query: name, name, ...'")
        if query not in missing:
            raise InputError(f"line {number}: {query!r} is no query, or comes twice")
        missing.remove(query)
        if len(set(names)) < len(names):
            raise InputError(f"line {number}: the list of {query!r} names an image twice")
        if unknown := [name for name in names if name not in gallery]:
            raise InputError(f"line {number}: {unknown[0]!r} is not in the gallery")
    if missing:
        raise InputError(f"{len(missing)} queries have no line, {min(missing)!r} the first")
    return len(lines)


def twins_text(query: np.ndarray, gallery: np.ndarray, answers: Sequence[np.ndarray]) -> str:
    """A sentence on how many queries find their twin, a picture with equal pixels; or "".

    Args:
      query: digests of the queries' pictures, [Q].
      gallery: digests of the gallery's pictures, [G].
      answers: for each query, positions in the gallery, best first.
    """
    has_twin = np.isin(query, gallery)
    if not has_twin.any():
        return ""
    hits = [gallery[answers[i]] == query[i] for i in np.flatnonzero(has_twin)]
    anywhere = np.mean([found.any() for found in hits])
    first = np.mean([len(found) > 0 and found[0] for found in hits])
    return (
        f"\nof {has_twin.sum()} queries with a twin in the gallery, {tables.percent(anywhere)} % "
        f"have it in the answer and {tables.percent(first)} % at rank 1"
    )
