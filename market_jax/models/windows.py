"""The cells of a sliding window, as one array for each cell, and their way back onto the map.

Pooling and depthwise convolutions are sums and maxima over these few large arrays, which XLA
fuses into one pass over the memory.
"""

import itertools
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from market_jax.typing import Array

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]  # (before, after) of rows, (before, after) of columns


def output_shape(shape: Pair, window: Pair, strides: Pair) -> Pair:
    """How many whole windows there are on a map of `shape`."""
    return tuple((n - k) // s + 1 for n, k, s in zip(shape, window, strides, strict=True))


def pad(x: Array, padding: Padding, value: float) -> Array:
    """Pads rows and columns of [N, H, W, C]; a negative padding crops."""
    sides = [(0, 0, 0), (*padding[0], 0), (*padding[1], 0), (0, 0, 0)]
    return lax.pad(x, jnp.array(value, x.dtype), sides) if padding != ((0, 0), (0, 0)) else x


def inverse(padding: Padding) -> Padding:
    """The padding that crops what `padding` adds."""
    return tuple((-before, -after) for before, after in padding)


def cells(x: Array, window: Pair, strides: Pair) -> list[Array]:
    """For each cell of the window, in row order, its values in all windows: [N, h, w, C]."""
    h, w = output_shape(x.shape[1:3], window, strides)
    p, q = strides
    return [
        x[:, i : i + (h - 1) * p + 1 : p, j : j + (w - 1) * q + 1 : q]
        for i, j in itertools.product(*map(range, window))
    ]


def scatter(
    part: Callable[[int], Array], like: Array, shape: Pair, window: Pair, strides: Pair
) -> Array:
    """The transpose of `cells`: adds up where the windows overlap.

    Args:
      part: number of the cell in the window -> its values [N, h, w, C].
      like: an array [N, h, w, C] of the parts' shape and dtype.
      shape: (H, W) of the map.
      window: rows and columns of a window.
      strides: between windows.

    Returns:
      [N, H, W, C].
    """
    n, h, w, c = like.shape
    # the map is cut into one phase for each position within a stride, in which windows are dense
    rows, columns = (
        max(-(-size // s), m + (k - 1) // s)
        for size, m, k, s in zip(shape, (h, w), window, strides, strict=True)
    )
    zero = jnp.zeros((), like.dtype)
    phases = []
    for a, b in itertools.product(*map(range, strides)):
        total = jnp.zeros((n, rows, columns, c), like.dtype)
        for i, j in itertools.product(
            range(a, window[0], strides[0]), range(b, window[1], strides[1])
        ):
            top, left = i // strides[0], j // strides[1]
            sides = [(0, 0, 0), (top, rows - h - top, 0), (left, columns - w - left, 0), (0, 0, 0)]
            total += lax.pad(part(i * window[1] + j), zero, sides)
        phases.append(total)
    x = jnp.stack(phases, axis=3).reshape(n, rows, columns, *strides, c)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n, rows * strides[0], columns * strides[1], c)
    return x[:, : shape[0], : shape[1]]
