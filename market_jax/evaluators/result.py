"""What an evaluator returns."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Table(NamedTuple):
    """A table for people.

    Attributes:
      header: of the columns.
      rows: of cells, as text.
    """

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluator found.

    Attributes:
      title: what was judged, in one line.
      metrics: name -> value, "market/mAP": what a training logs and selects by.
      record: everything, JSON-able.
      tables: for people.
      notes: sentences for people.
      pictures: file name -> uint8 [H, W, 3].
    """

    title: str = ""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    pictures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
