"""BatchNorm, and the convolutions that it stands beside.

In training the optional package leaves a BatchNorm and its activation to the convolution that
follows; in inference a BatchNorm goes into the weights of the convolution before it.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from market_jax.errors import InputError
from market_jax.kernels import convolution, fused
from market_jax.kernels.fused import Pending, finish
from market_jax.models.layers import Conv
from market_jax.typing import Array, PyTree

__all__ = ["BatchNorm", "InstanceNorm", "batch_norm", "fold", "normalized", "unit"]


def batch_norm(train: bool, **kwargs) -> "BatchNorm":
    """BatchNorm with PyTorch's defaults (running average 0.9 of the old, epsilon 1e-5).

    Its statistics are those of the whole batch, over all devices, because the training step
    is one program over a sharded batch.

    Args:
      train: whether BatchNorm uses the batch's statistics, as in training.
      **kwargs: further arguments of `BatchNorm`.
    """
    return BatchNorm(use_running_average=not train, **kwargs)


class BatchNorm(nn.Module):
    """`nn.BatchNorm` over all axes but the last, with a gradient that needs less memory.

    Parameters, statistics and values are `nn.BatchNorm`'s, to rounding; in training it keeps its
    input only for the backward pass; automatic differentiation would keep the centred input too.

    Attributes:
      use_running_average: whether to normalise by the running statistics, which then stay.
      momentum: the share of the old value in an update of the running statistics.
      epsilon: a number that is added to the variance.
      dtype: dtype of the output; the statistics are float32.
      use_bias: whether a shift is learned; otherwise it is 0, and no parameter.
      scale_init: the initializer of the scale.
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    use_bias: bool = True
    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def _variables(self, channels: int):
        """Scale, bias, and the running mean and variance."""
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = jnp.zeros((channels,), jnp.float32)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        return scale, bias, (mean, var)

    def _update(self, running, moments: tuple[Array, Array]) -> None:
        if not self.is_initializing():
            for variable, new in zip(running, moments, strict=True):
                new = lax.stop_gradient(new)
                variable.value = self.momentum * variable.value + (1 - self.momentum) * new

    def __call__(self, x: Array) -> Array:
        """Normalises an array.

        Args:
          x: [..., C].

        Returns:
          The same shape, in `dtype`.
        """
        scale, bias, running = self._variables(x.shape[-1])
        if self.use_running_average:
            scale, shift = _affine(scale, bias, *(v.value for v in running), self.epsilon)
            return (x * scale + shift).astype(self.dtype)
        self._update(running, _moments(lax.stop_gradient(x)))
        return _normalize(x, scale, bias, self.epsilon).astype(self.dtype)

    def affine(self, channels: int, sums: Array | None = None, count: int = 1) -> Array:
        """What the layer does to a map, as scale and shift of each channel.

        Args:
          channels: of the map.
          sums: [2, C] float32, the map and its squares summed; not needed in inference.
          count: the number of pixels that were summed.

        Returns:
          [2, C] float32.
        """
        scale, bias, running = self._variables(channels)
        moments = tuple(v.value for v in running)
        if not self.use_running_average:
            mean = sums[0] / count
            moments = (mean, jnp.maximum(sums[1] / count - jnp.square(mean), 0))
            self._update(running, moments)
        return _affine(scale, bias, *moments, self.epsilon)


def _affine(scale: Array, bias: Array, mean: Array, var: Array, epsilon: float) -> Array:
    factor = scale * lax.rsqrt(var + epsilon)
    return jnp.stack([factor, bias - mean * factor])


class InstanceNorm(nn.Module):
    """Normalises each channel of each picture by its own places, as PyTorch (Ulyanov et al. 2016).

    There are no running statistics: training and inference do the same. As in `BatchNorm`, the
    statistics are float32, and the input alone is kept for the backward pass, less its means.

    Attributes:
      epsilon: a number that is added to the variance.
      dtype: dtype of the output; parameters are float32.
    """

    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises a map.

        Args:
          x: the map, [N, H, W, C].

        Returns:
          The same shape, in `dtype`.

        Raises:
          InputError: the map has one place, which has no deviation.
        """
        rows, columns, channels = x.shape[1:]
        if rows * columns < 2:
            raise InputError(
                f"a map of {rows}x{columns} cannot be normalised by its own places (instance "
                f"normalisation), which must be 2 or more; take larger pictures"
            )
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        x = x.astype(jnp.float32)
        x -= lax.stop_gradient(jnp.mean(x, axis=(1, 2), keepdims=True))  # so that no digit is lost
        normalize = jax.vmap(lambda image: _normalize(image, scale, bias, self.epsilon))
        return normalize(x).astype(self.dtype)


def unit(
    conv: Conv,
    norm: BatchNorm,
    x: Array | Pending,
    activation: str = "",
    residual: Array | None = None,
) -> Array | Pending:
    """A convolution, its BatchNorm, a residual and an activation; called within a `__call__`.

    In training the optional package leaves what follows the convolution to the next one; in
    inference BatchNorm goes into the convolution's weights.

    Args:
      conv: the convolution.
      norm: its BatchNorm.
      x: the map, [N, H, W, C].
      activation: a name in `fused.ACTIVATIONS`.
      residual: what is added before the activation, of the output's shape, or None.

    Returns:
      [N, h, w, features]; `finish` makes it an array.
    """
    if norm.use_running_average:
        affine = norm.affine(conv.features)
        return conv(x, affine=affine, activation=activation, residual=residual)
    if not convolution.is_fused(conv.dtype):
        return finish(norm(conv(x)), residual, activation)
    y, sums = conv(x, moments=True)
    affine = norm.affine(conv.features, sums, y.size // y.shape[-1])
    if residual is None:
        return Pending(y, affine, activation)
    return finish(Pending(y, affine), residual, activation)


def normalized(norm: BatchNorm, x: Array, activation: str = "") -> Array | Pending:
    """BatchNorm and an activation, for a convolution that follows; called within a `__call__`.

    Args:
      norm: the BatchNorm.
      x: the map, [N, H, W, C].
      activation: a name in `fused.ACTIVATIONS`.

    Returns:
      [N, H, W, C]; `finish` makes it an array.
    """
    if not norm.use_running_average and not convolution.is_fused(norm.dtype):
        return finish(norm(x), activation=activation)
    sums = None if norm.use_running_average else fused.moments(x)
    affine = norm.affine(x.shape[-1], sums, x.size // x.shape[-1])
    return Pending(x.astype(norm.dtype), affine, activation)


def fold(apply: Callable, variables: PyTree, image_size: tuple[int, int]) -> PyTree:
    """The collection "folded" of a model: its convolutions that a BatchNorm has gone into.

    It is for inference: a model that is given it beside its variables takes those convolutions and
    does not look at the BatchNorms again.

    Args:
      apply: the model's apply.
      variables: of the model.
      image_size: rows and columns of an image that the model takes.

    Returns:
      {"folded": ...}, or {} where there is no such BatchNorm.
    """
    image = jnp.zeros((1, *image_size, 3), jnp.float32)
    return apply(variables, image, mutable=["folded"])[1]


def _moments(x: Array) -> tuple[Array, Array]:
    """Mean and variance over all axes but the last, float32."""
    x, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    return mean, jnp.maximum(jnp.mean(jnp.square(x), axes) - jnp.square(mean), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalize(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """Normalised by its own moments: float32, of the shape of x."""
    return _normalize_forward(x, scale, bias, epsilon)[0]


def _normalize_forward(x, scale, bias, epsilon):
    mean, var = _moments(x)
    inverse = lax.rsqrt(var + epsilon)
    y = x.astype(jnp.float32) * (inverse * scale) + (bias - mean * inverse * scale)
    return y, (x, scale, mean, inverse)


def _normalize_backward(epsilon, saved, g):
    x, scale, mean, inverse = saved
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    wide = x.astype(jnp.float32)
    d_bias = jnp.sum(g, axes)
    d_scale = inverse * (jnp.sum(g * wide, axes) - mean * d_bias)
    # x enters through itself, the mean and the variance: linear in g and x for each channel
    by_g = scale * inverse
    by_x = -by_g * inverse * d_scale / count
    d_x = by_g * g + by_x * wide - (by_g * d_bias / count + by_x * mean)
    return d_x.astype(x.dtype), d_scale, d_bias


_normalize.defvjp(_normalize_forward, _normalize_backward)
