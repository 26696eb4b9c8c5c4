"""A sliding window as one array for each of its cells, and the sum of such arrays onto the map.

Pooling and depthwise convolutions are sums and maxima over these few large arrays, which XLA
fuses into one pass over the memory.
"""

import itertools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax

from market_jax.typing import Array

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]  # (before, after) of rows, (before, after) of columns


def output_shape(shape: Pair, window: Pair, strides: Pair) -> Pair:
    """The number of whole windows on a map, in rows and columns.

    Args:
      shape: rows and columns of the map.
      window: rows and columns of a window.
      strides: rows and columns from one window to the next.
    """
    return tuple((n - k) // s + 1 for n, k, s in zip(shape, window, strides, strict=True))


def padded_shape(shape: Pair, padding: Padding) -> Pair:
    """Rows and columns of a map after padding.

    Args:
      shape: rows and columns of the map.
      padding: ((rows before, after), (columns before, after)).
    """
    return tuple(n + sum(sides) for n, sides in zip(shape, padding, strict=True))


def pad(x: Array, padding: Padding, value: float) -> Array:
    """Pads rows and columns of a map; a negative padding crops.

    Args:
      x: the map, [N, H, W, C].
      padding: ((rows before, after), (columns before, after)).
      value: the value of the added cells.
    """
    sides = [(0, 0, 0), (*padding[0], 0), (*padding[1], 0), (0, 0, 0)]
    return lax.pad(x, jnp.array(value, x.dtype), sides) if padding != ((0, 0), (0, 0)) else x


def inverse(padding: Padding) -> Padding:
    """The padding that crops what `padding` has added."""
    return tuple((-before, -after) for before, after in padding)


def cells(x: Array, window: Pair, strides: Pair) -> list[Array]:
    """For each cell of the window, in row order, its values in all windows: [N, h, w, C].

    Args:
      x: the map, [N, H, W, C].
      window: rows and columns of a window.
      strides: rows and columns from one window to the next.
    """
    h, w = output_shape(x.shape[1:3], window, strides)
    p, q = strides
    return [
        x[:, i : i + (h - 1) * p + 1 : p, j : j + (w - 1) * q + 1 : q]
        for i, j in itertools.product(*map(range, window))
    ]


def scatter(
    part: Callable[..., Array], arrays: tuple[Array, ...], shape: Pair, window: Pair, strides: Pair
) -> Array:
    """The transpose of `cells`: adds up what each cell of each window gives to the map.

    The map is cut into one phase for each position within a stride. A window that begins d
    strides before a phase's pixel covers it by the same cell everywhere in that phase.

    Args:
      part: (numbers int32 [p, 1, q, 1], *arrays) -> [N, rows, p, columns, q, C], for strides
        (p, q). `numbers` says which cell of the window it is, in row order; beyond the window it
        is the number of its cells, and the part must be zero. The arrays come shifted and with
        axes of length 1 for p and q.
      arrays: each [N, h, w, C], one value for each window.
      shape: (H, W) of the map.
      window: rows and columns of a window.
      strides: rows and columns from one window to the next.

    Returns:
      [N, H, W, C].
    """
    n, h, w, c = arrays[0].shape
    reach = [(k - 1) // s for k, s in zip(window, strides, strict=True)]
    rows, columns = (
        max(-(-size // s), m + r)
        for size, s, m, r in zip(shape, strides, (h, w), reach, strict=True)
    )
    total = 0
    for top, left in itertools.product(range(reach[0] + 1), range(reach[1] + 1)):
        i = np.arange(strides[0])[:, None] + top * strides[0]
        j = np.arange(strides[1]) + left * strides[1]
        inside = (i < window[0]) & (j < window[1])
        numbers = np.where(inside, i * window[1] + j, window[0] * window[1]).astype(np.int32)
        sides = [(0, 0, 0), (top, rows - h - top, 0), (left, columns - w - left, 0), (0, 0, 0)]
        shifted = [lax.pad(a, jnp.zeros((), a.dtype), sides) for a in arrays]
        total += part(numbers[:, None, :, None], *(a[:, :, None, :, None] for a in shifted))
    x = total.reshape(n, rows * strides[0], columns * strides[1], c)
    return x[:, : shape[0], : shape[1]]
