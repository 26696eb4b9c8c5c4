"""The three derivatives of a convolution by XLA, as accelerators compile them; the reference."""

from typing import NamedTuple

import jax
from jax import lax

from market_jax.kernels.windows import Padding, Pair, output_shape, padded_shape
from market_jax.typing import Array

LAYOUT = ("NHWC", "HWIO", "NHWC")


class Geometry(NamedTuple):
    """The static part of a convolution of x [N, *shape, C] with w [*window, C/groups, K].

    Attributes:
      shape: rows and columns of x.
      window: rows and columns of w.
      strides: rows and columns from one window to the next.
      padding: rows before and after, columns before and after x, not negative.
      dilation: distance between the window's cells on x, in rows and columns.
      groups: the number of groups of channels.
    """

    shape: Pair
    window: Pair
    strides: Pair
    padding: Padding
    dilation: Pair
    groups: int

    @property
    def output(self) -> Pair:
        """Rows and columns of the output y."""
        extent = tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.window, strict=True))
        return output_shape(padded_shape(self.shape, self.padding), extent, self.strides)

    @property
    def sees_map(self) -> bool:
        """Whether every window sees some of the map, and none the padding alone.

        oneDNN's gradients are wrong on some CPUs where a window does not.
        """
        sides = zip(self.padding, self.dilation, self.window, strict=True)
        return all(max(padding) <= d * (k - 1) for padding, d, k in sides)


def convolve(geometry: Geometry, x: Array, w: Array) -> Array:
    """Convolves a map with weights.

    Args:
      geometry: shape, strides, padding, dilation and groups of the convolution.
      x: the map, [N, H, W, C].
      w: the weights, [i, j, C/groups, K].

    Returns:
      y, [N, h, w, K].
    """
    return lax.conv_general_dilated(
        x,
        w,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=LAYOUT,
        feature_group_count=geometry.groups,
    )


def input_gradient(geometry: Geometry, w: Array, y: Array) -> Array:
    """The gradient of `convolve` by x, which is its transpose.

    Args:
      geometry: shape, strides, padding, dilation and groups of the convolution.
      w: the weights, [i, j, C/groups, K].
      y: the gradient by the convolution's output, [N, h, w, K].

    Returns:
      The gradient by x, [N, H, W, C].
    """
    channels = w.shape[2] * geometry.groups
    x = jax.ShapeDtypeStruct((y.shape[0], *geometry.shape, channels), y.dtype)
    return jax.linear_transpose(lambda x: convolve(geometry, x, w), x)(y)[0]


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
    w = jax.ShapeDtypeStruct(shape, x.dtype)
    return jax.linear_transpose(lambda w: convolve(geometry, x, w), w)(y)[0]
