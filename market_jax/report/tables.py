"""Text tables for the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def align(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligns a table: the first column to the left, the others to the right.

    Args:
      header: names of the columns.
      rows: the cells of each row.
    """
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


def percent(value: float) -> str:
    """0.7987 -> "79.87"."""
    return f"{100 * value:.2f}"


def interval(bounds: tuple[float, float] | None) -> str:
    """(0.791, 0.823) -> "79.1 - 82.3"; "one identity" where there is no interval."""
    if bounds is None:
        return "one identity"
    return " - ".join(f"{100 * bound:.1f}" for bound in bounds)


def narrowed(found: Mapping[str, Any]) -> str:
    """What a record says of its pictures beside where they lie, to follow that in a sentence.

    Args:
      found: the record; "queries" is the folder of the queries, "exclude" the CSV of pictures that
        were left out, None where there is none.
    """
    words = {"queries": ", queries of {}", "exclude": ", less those in {}"}
    return "".join(
        text.format(Path(found[key]).name) for key, text in words.items() if found.get(key)
    )
