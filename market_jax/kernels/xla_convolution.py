"""The three derivatives of a convolution by XLA: what accelerators compile, and the reference."""

from typing import NamedTuple

import jax
from jax import lax

from market_jax.kernels.windows import Padding, Pair, output_shape, padded_shape
from market_jax.typing import Array

LAYOUT = ("NHWC", "HWIO", "NHWC")


class Geometry(NamedTuple):
    """What is static about a convolution of x [N, *shape, C] with w [*window, C/groups, K].

    Attributes:
      shape: rows and columns of x.
      window: of w.
      strides: of the window.
      padding: rows before and after, columns before and after x, not negative.
      dilation: of the window.
      groups: of channels.
    """

    shape: Pair
    window: Pair
    strides: Pair
    padding: Padding
    dilation: Pair
    groups: int

    @property
    def output(self) -> Pair:
        """Rows and columns of y."""
        extent = tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.window, strict=True))
        return output_shape(padded_shape(self.shape, self.padding), extent, self.strides)


def convolve(geometry: Geometry, x: Array, w: Array) -> Array:
    """Y [N, h, w, K] from x [N, H, W, C] and w [i, j, C/groups, K]."""
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
    """X [N, H, W, C] from w and y: the transpose of `convolve`."""
    channels = w.shape[2] * geometry.groups
    x = jax.ShapeDtypeStruct((y.shape[0], *geometry.shape, channels), y.dtype)
    return jax.linear_transpose(lambda x: convolve(geometry, x, w), x)(y)[0]


def weight_gradient(geometry: Geometry, x: Array, y: Array) -> Array:
    """W [i, j, C/groups, K] from x and y."""
    shape = (*geometry.window, x.shape[-1] // geometry.groups, y.shape[-1])
    w = jax.ShapeDtypeStruct(shape, x.dtype)
    return jax.linear_transpose(lambda w: convolve(geometry, x, w), w)(y)[0]
