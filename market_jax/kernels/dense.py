"""The product of a dense layer, which the optional package computes as a 1x1 convolution."""

import jax.numpy as jnp
from jax import lax

from market_jax.kernels import convolution, fused
from market_jax.kernels.xla_convolution import Geometry
from market_jax.typing import Array

__all__ = ["dot_general"]


def dot_general(x: Array, w: Array, dimension_numbers, precision=None, **kwargs) -> Array:
    """`lax.dot_general` up to rounding, for `nn.Dense(dot_general=...)`.

    The layers of a Transformer take the fast path where the optional package computes their dtype;
    everything else goes to lax as it is.

    Args:
      x: what is multiplied, [N, ..., C].
      w: the weights, [C, K].
      dimension_numbers: the axes that are summed over, as in lax.
      precision: as in lax.
      **kwargs: further arguments of lax; if one is not None, lax computes the product.

    Returns:
      [N, ..., K], in the dtype of x.
    """
    plain = x.ndim > 2 and w.ndim == 2 and x.size > 0 and x.dtype == w.dtype
    plain = plain and dimension_numbers == (((x.ndim - 1,), (0,)), ((), ()))
    plain = plain and all(value is None for value in (precision, *kwargs.values()))
    if not plain or not convolution.is_fused(x.dtype):
        return lax.dot_general(x, w, dimension_numbers, precision=precision, **kwargs)
    maps = x.reshape(x.shape[0], 1, -1, x.shape[-1])
    geometry = Geometry(maps.shape[1:3], (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), groups=1)
    weights = w.astype(jnp.float32)[None, None]
    y, _ = fused.convolve(fused.Spec(geometry), maps, None, weights, None)
    return y.reshape(*x.shape[:-1], w.shape[-1])
