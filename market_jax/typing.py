"""Array types, the dimension alphabet, and the error that a user can mend.

Shapes are written with one alphabet everywhere:

N batch, M images of a split, H height, W width, C channels, D embedding,
K classes, P identities, Q queries, G gallery.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray
Outputs = Mapping[str, Array]  # what a model returns: name -> [N, ...]
Batch = Mapping[str, Array]  # columns of N images, "image" and "mask" among them
Columns = dict[str, Any]  # columns of a split, each with M entries
PyTree = Any


class InputError(ValueError):
    """What the user gave is wrong; the message names the file, the value and the rule.

    The scripts print the message alone, without a traceback.
    """


def choose(name, known, what: str):
    """Returns `known[name]`, or raises an `InputError` that lists the known names."""
    if name not in known:
        raise InputError(f"unknown {what} {name!r}; known: {', '.join(map(str, sorted(known)))}")
    return known[name]
