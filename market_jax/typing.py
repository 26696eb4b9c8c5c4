"""Array types, ranges of numbers, and the letters that shapes are written with.

N batch, M images of a split, H height, W width, C channels, D embedding, K classes,
P identities, Q queries, G gallery.

An argument that a config may set says in its annotation which numbers it takes; `registry.bind`
refuses others.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import numpy as np

Array = jax.Array | np.ndarray
Outputs = Mapping[str, Array]  # what a model returns: name -> [N, ...]
Batch = Mapping[str, Array]  # columns of N images, "image" and "mask" among them
Columns = dict[str, Any]  # columns of a split, each with M entries
PyTree = Any


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that an argument may be, in its annotation; its text is the rule.

    Attributes:
      least: the smallest number; minus infinity has none.
      most: the largest number; infinity has none.
      above: whether the number must be above `least` rather than at least that.
      below: whether the number must be below `most` rather than at most that.
    """

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        near = float(np.float32(value))  # of arrays, in which an open end must not be reached
        low = near > self.least if self.above else value >= self.least
        return low and (near < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        low, high = f"{self.least:,}", f"{self.most:,}"
        if not self.above and not self.below and math.isfinite(self.most - self.least):
            return f"{low} to {high}"
        words = [f"above {low}" if self.above else f"{low} or more"] * math.isfinite(self.least)
        words += [f"below {high}" if self.below else f"at most {high}"] * math.isfinite(self.most)
        return " and ".join(words)


NonNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
Fraction = Annotated[float, Range(0, 1)]
PositiveFraction = Annotated[float, Range(0, 1, above=True)]
FractionBelow1 = Annotated[float, Range(0, 1, below=True)]  # a rate that leaves something over

NonNegativeInt = Annotated[int, Range(0)]
PositiveInt = Annotated[int, Range(1)]
Classes = Annotated[int, Range(2)]  # of a classification
Width = Annotated[int, Range(1, 2**16)]  # channels or units of a layer
WidthOrNone = Annotated[int, Range(0, 2**16)]  # 0 has no such layer
Seed = Annotated[int, Range(0, 2**32 - 1)]
