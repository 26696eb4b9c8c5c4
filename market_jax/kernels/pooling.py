"""Max-pooling, with and without indices, and its inverse.

XLA computes the gradient of a max-pool by `select_and_scatter`, which is slow on a CPU. Here, on
a CPU, the maximum remembers which cell of its window it came from, and the gradient goes back
there; the first cell in row order wins a tie, as in XLA and in PyTorch. Accelerators compile
XLA's own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from market_jax.kernels.windows import (
    Padding,
    Pair,
    cells,
    inverse,
    output_shape,
    pad,
    padded_shape,
    scatter,
)
from market_jax.typing import Array


def _first_maximum(x: Array, window: Pair, strides: Pair, padding: Padding):
    """Maxima, and the number of the cell of the window they came from, uint8: [N, h, w, C]."""
    best, *rest = cells(pad(x, padding, -jnp.inf), window, strides)
    cell = jnp.zeros(best.shape, jnp.uint8)
    for number, value in enumerate(rest, 1):
        better = (value > best) | jnp.isnan(value)
        best = jnp.where(better, value, best)
        cell = jnp.where(better, jnp.uint8(number), cell)
    return best, cell


def _put_back(g: Array, cell: Array, shape: Pair, window: Pair, strides: Pair, padding: Padding):
    """The gradient of `_first_maximum` for a map of `shape`."""
    whole = padded_shape(shape, padding)

    def part(numbers, g, cell):
        return jnp.where(cell == numbers.astype(np.uint8), g, 0)

    x = scatter(part, (g, cell), whole, window, strides)
    return pad(x, inverse(padding), 0)


def _by_xla(x: Array, window: Pair, strides: Pair, padding: Padding) -> Array:
    sides = ((0, 0), *padding, (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), sides)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: Array, window: Pair, strides: Pair, padding: Padding) -> Array:
    return _max_pool_forward(x, window, strides, padding)[0]


def _max_pool_forward(x, window, strides, padding):
    def by_xla(x):
        y = _by_xla(x, window, strides, padding)
        return y, jnp.zeros(y.shape, jnp.uint8)

    y, cell = lax.platform_dependent(
        x, cpu=lambda x: _first_maximum(x, window, strides, padding), default=by_xla
    )
    return y, (x, cell)


def _max_pool_backward(window, strides, padding, saved, g):
    def by_cells(x, cell, g):
        return _put_back(g, cell, x.shape[1:3], window, strides, padding)

    def by_xla(x, cell, g):
        return jax.vjp(lambda x: _by_xla(x, window, strides, padding), x)[1](g)[0]

    return (lax.platform_dependent(*saved, g, cpu=by_cells, default=by_xla),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def max_pool(
    x: Array, window: Pair, strides: Pair | None = None, padding: Padding = ((0, 0), (0, 0))
) -> Array:
    """Maximum over windows: [N, H, W, C] -> [N, h, w, C].

    Rows and columns that do not fill a window are left out, as in PyTorch. The gradient goes to the
    first maximum of each window.

    Args:
      x: the map, [N, H, W, C], floating point.
      window: rows and columns of a window.
      strides: rows and columns from one window to the next; by default windows do not overlap.
      padding: ((rows before, after), (columns before, after)), filled with minus infinity.
    """
    return _max_pool(x, tuple(window), tuple(strides or window), padding)


def max_pool_with_indices(x: Array, window: Pair) -> tuple[Array, Array]:
    """Maximum over windows that do not overlap, and where it was found.

    Args:
      x: the map, [N, H, W, C], floating point.
      window: (p, q), rows and columns of a window, and the strides.

    Returns:
      Maxima [N, H//p, W//q, C], and their flat positions in H * W, int32 of the same shape, as
      from PyTorch's `MaxPool2d(window, return_indices=True)`: of a tie, the first in row order.
    """
    _, cell = _first_maximum(lax.stop_gradient(x), window, window, ((0, 0), (0, 0)))
    h, w = output_shape(x.shape[1:3], window, window)
    row, column = cell // window[1], cell % window[1]
    row = row.astype(jnp.int32) + window[0] * jnp.arange(h)[:, None, None]
    column = column.astype(jnp.int32) + window[1] * jnp.arange(w)[:, None]
    return max_pool(x, window), row * x.shape[2] + column


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _unpool(x: Array, cell: Array, shape: Pair, window: Pair) -> Array:
    return _put_back(x, cell, shape, window, window, ((0, 0), (0, 0)))


def _unpool_forward(x, cell, shape, window):
    return _unpool(x, cell, shape, window), cell


def _unpool_backward(shape, window, cell, g):
    parts = enumerate(cells(g, window, window))
    return sum(jnp.where(cell == number, part, 0) for number, part in parts), None


_unpool.defvjp(_unpool_forward, _unpool_backward)


def max_unpool(x: Array, indices: Array, shape: Pair, window: Pair) -> Array:
    """Puts values back where `max_pool_with_indices` found them, with zeros elsewhere.

    Args:
      x: the values, [N, h, w, C].
      indices: int32 [N, h, w, C] flat positions, each within its own window.
      shape: (H, W) of the result.
      window: the window of the pooling.

    Returns:
      [N, H, W, C], as from PyTorch's `MaxUnpool2d(window)(x, indices, output_size=shape)`.
    """
    row, column = indices // shape[1] % window[0], indices % shape[1] % window[1]
    cell = (row * window[1] + column).astype(jnp.uint8)
    return _unpool(x, cell, tuple(shape), tuple(window))
