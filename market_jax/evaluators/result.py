"""What an evaluator returns."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Table(NamedTuple):
    """A table to show to people.

    Attributes:
      header: names of the columns.
      rows: the cells of each row, as text.
    """

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of an evaluator.

    Attributes:
      title: what was judged, in one line.
      metrics: metric name, such as "market/mAP", -> value; a training logs these and selects the
        best checkpoint by one of them.
      record: all numbers and settings, as values that JSON can hold.
      tables: tables to show to people.
      notes: sentences to show to people.
      pictures: file name -> uint8 [H, W, 3].
    """

    title: str = ""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    pictures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
