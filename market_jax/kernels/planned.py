"""Convolutions in inference: what belongs together is computed together, by the optional package.

The 1x1, depthwise and 1x1 convolution of an inverted residual, each with its BatchNorm folded, are
one call, in which the wide map between them never leaves the cache. So the first two are only
planned when they are met.
"""

import dataclasses

import jax.numpy as jnp

from market_jax.kernels import batched
from market_jax.kernels.fused import (
    SLOPE,
    Spec,
    differentiable,
    finish,
    is_depthwise,
    plain,
    prepare_weights,
)
from market_jax.typing import Array

__all__ = ["Planned", "infer", "pack", "plan"]


@dataclasses.dataclass(frozen=True)
class Planned:
    """Convolutions in inference that are not computed yet, since one behind them may join them.

    Attributes:
      map: the first one's input, [N, H, W, C].
      steps: (spec, weights, bias) of each.
    """

    map: Array
    steps: tuple[tuple[Spec, Array, Array], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the last one's output."""
        spec, w, _ = self.steps[-1]
        return (self.map.shape[0], *spec.geometry.output, w.shape[-1])

    def compute(self) -> Array:
        """The output, one convolution after the other."""
        value = self.map
        for spec, w, bias in self.steps:
            value, _ = infer(spec, value, None, w, bias, None)
        return value


@differentiable(plain)
def infer(spec: Spec, x, affine, w, bias, residual) -> tuple[Array, Array | None]:
    """`plain` by the optional package; made for inference: its gradient is plain JAX.

    Args:
      spec: what is static.
      x: the input, [N, H, W, C].
      affine: [2, C] float32, or None.
      w: the weights.
      bias: [K] float32, or None.
      residual: of the output's shape and dtype, or None.
    """
    return batched.forward(spec, SLOPE, x, affine, prepare_weights(spec, x, w), bias, residual)


def pack(spec: Spec, w: Array, dtype: jnp.dtype) -> Array:
    """Weights for `infer` and `plan` as the package wants them, so that they are moved once.

    Args:
      spec: what is static.
      w: the weights, [i, j, C/groups, K] float32.
      dtype: of the maps.

    Returns:
      The weights, or uint8 [bytes]; those have no gradient.
    """
    if spec.transposed or _letter(spec, w) != "o":
        return w
    import market_jax_onednn as package

    return package.pack(spec.geometry, w.astype(dtype))


def _is_pointwise(spec: Spec) -> bool:
    """Whether it is a matrix product of the pixels."""
    g = spec.geometry
    ones = g.window == g.strides == (1, 1) and g.groups == 1
    return ones and g.padding == ((0, 0), (0, 0)) and not spec.transposed


def plan(x: Array | Planned, spec: Spec, w: Array, bias: Array, residual: Array | None):
    """A convolution in inference, computed together with those before it, if they make a block.

    Args:
      x: the input.
      spec: what is static.
      w: the weights.
      bias: [K] float32.
      residual: of the output's shape, or None.

    Returns:
      The output, or what is planned: the beginning of an inverted residual.
    """
    steps = x.steps if isinstance(x, Planned) else ()
    start = x.map if isinstance(x, Planned) else x
    here = (*steps, (spec, w, bias))
    kinds = "".join(_letter(spec, w) for spec, w, _ in here)
    if kinds in ("pdp", "dp") and not spec.after:
        specs, weights = tuple(s for s, *_ in here), [a for _, *pair in here for a in pair]
        return _block(specs, start, *weights, residual)
    if kinds in ("p", "pd", "d") and residual is None:
        return Planned(start, here)
    return infer(spec, finish(x), None, w, bias, residual)[0]


def _letter(spec: Spec, w: Array) -> str:
    return "p" if _is_pointwise(spec) else "d" if is_depthwise(spec, w) else "o"


def _plain_block(specs, x, *arrays):
    *weights, residual = arrays
    for i, spec in enumerate(specs):
        last = i == len(specs) - 1
        x, _ = plain(spec, x, None, *weights[2 * i : 2 * i + 2], residual if last else None)
    return x


@differentiable(_plain_block)
def _block(specs, x, *arrays):
    *weights, residual = arrays
    weights = [
        array if i % 2 else prepare_weights(specs[i // 2], x, array)
        for i, array in enumerate(weights)
    ]
    return batched.block(specs, SLOPE, x, weights, residual)
