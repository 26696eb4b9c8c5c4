"""The three derivatives of a convolution by XLA on a CPU, avoiding what is slow there.

- Where the window has more cells than its map (512 channels at 4x2), XLA exchanges the two,
  which takes a hundred times longer. Padding the map beforehand keeps it from that.
- The gradient by the input of a strided convolution, and so a transposed convolution, is one dense
  convolution with an output for each position within a stride.
- Depthwise convolutions are sums over the cells of the window, one pass over the memory each.
- The weight gradient of a 1x1 convolution is a matrix product.

Measured in docs/performance.md; everything else is XLA's own, which is as fast as what was tried.
"""

import jax.numpy as jnp
from jax import lax

from market_jax.kernels import windows, xla_convolution
from market_jax.kernels.xla_convolution import LAYOUT, Geometry
from market_jax.typing import Array

_NO_PADDING = ((0, 0), (0, 0))


def _depthwise(geometry: Geometry, w_shape: tuple[int, ...]) -> bool:
    return w_shape[2:] == (1, geometry.groups) and geometry.dilation == (1, 1)


def _pad_first(geometry: Geometry, x: Array) -> tuple[Geometry, Array]:
    """Pads the map now, so that XLA sees a convolution of a map larger than the window."""
    shape = windows.padded_shape(geometry.shape, geometry.padding)
    x = lax.optimization_barrier(windows.pad(x, geometry.padding, 0))
    return geometry._replace(shape=shape, padding=_NO_PADDING), x


def _cells(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1]


def convolve(geometry: Geometry, x: Array, w: Array) -> Array:
    """Convolves a map with weights.

    Args:
      geometry: shape, strides, padding, dilation and groups of the convolution.
      x: the map, [N, H, W, C].
      w: the weights, [i, j, C/groups, K].

    Returns:
      y, [N, h, w, K].
    """
    if _depthwise(geometry, w.shape):
        x = windows.pad(x, geometry.padding, 0).astype(jnp.float32)
        parts = windows.cells(x, geometry.window, geometry.strides)
        weights = w.reshape(-1, w.shape[-1]).astype(jnp.float32)
        return sum(p * v for p, v in zip(parts, weights, strict=True)).astype(w.dtype)
    if _cells(geometry.window) > _cells(geometry.shape):
        geometry, x = _pad_first(geometry, x)
    return xla_convolution.convolve(geometry, x, w)


def input_gradient(geometry: Geometry, w: Array, y: Array) -> Array:
    """The gradient of `convolve` by x, which is its transpose.

    Args:
      geometry: shape, strides, padding, dilation and groups of the convolution.
      w: the weights, [i, j, C/groups, K].
      y: the gradient by the convolution's output, [N, h, w, K].

    Returns:
      The gradient by x, [N, H, W, C].
    """
    if _depthwise(geometry, w.shape):
        shape = windows.padded_shape(geometry.shape, geometry.padding)
        weights = w.reshape(-1, w.shape[-1]).astype(jnp.float32)
        weights = jnp.pad(weights, ((0, 1), (0, 0)))  # zero beyond the window

        def part(numbers, y):
            return y * weights[numbers[:, 0, :, 0]][:, None]

        y = (y.astype(jnp.float32),)
        x = windows.scatter(part, y, shape, geometry.window, geometry.strides)
        return windows.pad(x, windows.inverse(geometry.padding), 0).astype(w.dtype)
    dense = geometry.groups == 1 and geometry.dilation == (1, 1)
    if dense and min(geometry.strides) > 1 and min(geometry.window) > 1:
        return _by_phases(geometry, w, y)
    reach = [d * (k - 1) for d, k in zip(geometry.dilation, geometry.window, strict=True)]
    before = [r - p[0] for r, p in zip(reach, geometry.padding, strict=True)]
    dilated = [s * (n - 1) + 1 for s, n in zip(geometry.strides, geometry.output, strict=True)]
    if _cells(geometry.window) <= _cells(geometry.output) or min(before) < 0 or geometry.groups > 1:
        return xla_convolution.input_gradient(geometry, w, y)
    # the convolution of y, dilated by the strides, with the window turned by 180 degrees
    sizes = zip(geometry.shape, reach, before, dilated, strict=True)
    after = [n + r - b - d for n, r, b, d in sizes]
    sides = [(b, a, s - 1) for b, a, s in zip(before, after, geometry.strides, strict=True)]
    y = lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), *sides, (0, 0, 0)])
    return lax.conv_general_dilated(
        lax.optimization_barrier(y),
        w[::-1, ::-1].swapaxes(2, 3),
        (1, 1),
        "VALID",
        rhs_dilation=geometry.dilation,
        dimension_numbers=LAYOUT,
    )


def _by_phases(geometry: Geometry, w: Array, y: Array) -> Array:
    """`input_gradient` for strides (p, q): a dense convolution of y with p * q * C outputs.

    Each position within a stride has outputs and a part of the window of its own: XLA would
    multiply with the p * q - 1 zeros between the values of y instead.
    """
    n, h, k, _ = y.shape
    (p, q), (_, _, channels, outputs) = geometry.strides, w.shape
    tall, wide = (-(-a // s) for a, s in zip(geometry.window, geometry.strides, strict=True))
    padded = windows.padded_shape(geometry.shape, geometry.padding)
    rows, columns = max(-(-padded[0] // p), h + tall - 1), max(-(-padded[1] // q), k + wide - 1)
    missing = [(0, tall * p - geometry.window[0]), (0, wide * q - geometry.window[1])]
    w = jnp.pad(w, [*missing, (0, 0), (0, 0)]).reshape(tall, p, wide, q, channels, outputs)
    w = w[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4).reshape(tall, wide, outputs, -1)
    y = windows.pad(y, ((tall - 1, rows - h), (wide - 1, columns - k)), 0)
    x = lax.conv_general_dilated(
        lax.optimization_barrier(y), w, (1, 1), "VALID", dimension_numbers=LAYOUT
    )
    x = x.reshape(n, rows, columns, p, q, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(n, rows * p, columns * q, channels)
    (top, _), (left, _) = geometry.padding
    return x[:, top : top + geometry.shape[0], left : left + geometry.shape[1]]


def weight_gradient(geometry: Geometry, x: Array, y: Array) -> Array:
    """The gradient of `convolve` by w.

    Args:
      geometry: shape, strides, padding, dilation and groups of the convolution.
      x: the map, [N, H, W, C].
      y: the gradient by the convolution's output, [N, h, w, K].

    Returns:
      The gradient by w, [i, j, C/groups, K].
    """
    shape = (*geometry.window, x.shape[-1] // geometry.groups, y.shape[-1])
    if _depthwise(geometry, shape):
        x = windows.pad(x, geometry.padding, 0).astype(jnp.float32)
        parts = windows.cells(x, geometry.window, geometry.strides)
        products = [part * y.astype(jnp.float32) for part in parts]
        sums = lax.reduce(
            products,
            [jnp.zeros(())] * len(products),
            lambda a, b: [u + v for u, v in zip(a, b, strict=True)],
            (0, 1, 2),
        )
        return jnp.stack(sums).reshape(shape).astype(y.dtype)
    x, y = lax.optimization_barrier((x, y))  # or what made them is computed in transposed order
    if geometry.window == (1, 1) and geometry.groups == 1 and geometry.padding == _NO_PADDING:
        (part,) = windows.cells(x, (1, 1), geometry.strides)
        return jnp.einsum("nhwc,nhwk->ck", part, y)[None, None]
    if _cells(geometry.output) > _cells(geometry.shape):
        geometry, x = _pad_first(geometry, x)
    return xla_convolution.weight_gradient(geometry, x, y)
