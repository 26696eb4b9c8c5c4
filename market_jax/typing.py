"""Array types, and the letters that shapes are written with.

N batch, M images of a split, H height, W width, C channels, D embedding, K classes,
P identities, Q queries, G gallery.
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
