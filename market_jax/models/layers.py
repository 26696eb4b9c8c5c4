"""Layers that several models share.

Convolutions and pooling go through `market_jax.kernels`, which have a fast path on a CPU; models
use the layers here and need not care.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from market_jax.kernels import convolution
from market_jax.kernels.pooling import max_pool, max_pool_with_indices, max_unpool
from market_jax.typing import Array

__all__ = [
    "BatchNorm",
    "Conv",
    "batch_norm",
    "conv",
    "conv_transpose",
    "max_pool",
    "max_pool_with_indices",
    "max_unpool",
    "mean_pool",
    "normalize",
]

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of its channels


def normalize(image: Array) -> Array:
    """[N, H, W, 3] in [0, 1] -> normalised by ImageNet's mean and deviation, as in torchvision."""
    mean, deviation = map(jnp.asarray, _IMAGENET)
    return (image - mean) / deviation


class Conv(nn.Conv):
    """`nn.Conv` through `convolution.conv_general_dilated`.

    The bias is added in float32 whatever the dtype: its gradient, a sum over all pixels, is then
    taken in float32 too, which is more exact and, on a CPU, several times faster.

    Attributes:
      bias: whether a bias is added.
      use_bias: the bias of `nn.Conv`, not used.
      conv_general_dilated: the function that computes the convolution.
    """

    bias: bool = True
    use_bias: bool = False
    conv_general_dilated: Callable = convolution.conv_general_dilated

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = super().__call__(x)
        if not self.bias:
            return y
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        return (y + bias).astype(y.dtype)


def conv(features: int, kernel: int, strides: int = 1, **kwargs) -> Conv:
    """A convolution with a square window; the default padding is PyTorch's, (kernel - 1) // 2.

    Args:
      features: the number of output channels.
      kernel: rows and columns of the window.
      strides: rows and columns from one window to the next.
      **kwargs: further arguments of `Conv`.
    """
    settings = {"padding": (kernel - 1) // 2} | kwargs
    return Conv(features, (kernel, kernel), strides=(strides,) * 2, **settings)


def conv_transpose(features: int, kernel: int, strides: int = 1, **kwargs) -> Conv:
    """The transpose of `conv`: [N, H, W, C] -> [N, H * strides, W * strides, features].

    As PyTorch's `ConvTranspose2d` with padding (kernel - 1) // 2 and output padding strides - 1,
    whose kernel is this one turned by 180 degrees. It is written as a convolution of the dilated
    input, because `nn.ConvTranspose` cannot be given another convolution function.

    Args:
      features: the number of output channels.
      kernel: rows and columns of the window; an odd number.
      strides: how many times larger the output is along each axis.
      **kwargs: further arguments of `Conv`.
    """
    before = kernel - 1 - (kernel - 1) // 2
    padding = [(before, before + strides - 1)] * 2
    return Conv(
        features, (kernel, kernel), padding=padding, input_dilation=(strides,) * 2, **kwargs
    )


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
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        if self.use_running_average:
            factor = scale * lax.rsqrt(var.value + self.epsilon)
            return (x * factor + (bias - mean.value * factor)).astype(self.dtype)
        if not self.is_initializing():
            for running, new in zip((mean, var), _moments(lax.stop_gradient(x)), strict=True):
                running.value = self.momentum * running.value + (1 - self.momentum) * new
        return _normalize(x, scale, bias, self.epsilon).astype(self.dtype)


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


def mean_pool(x: Array, window: tuple[int, int]) -> Array:
    """Mean over windows that do not overlap: [N, H, W, C] -> [N, H//p, W//q, C].

    Args:
      x: the map, [N, H, W, C].
      window: (p, q), rows and columns of a window; what does not fill one is left out.
    """
    n, h, w, c = x.shape
    p, q = window
    x = x[:, : h // p * p, : w // q * q]
    return jnp.mean(x.reshape(n, h // p, p, w // q, q, c), axis=(2, 4))
