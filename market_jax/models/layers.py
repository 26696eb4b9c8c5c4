"""Layers that several models share.

Convolutions and pooling go through `market_jax.models.convolution`, which is where a CPU gets
its fast path; a model that builds them here knows nothing of it.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from market_jax.models import convolution
from market_jax.models.pooling import max_pool, max_pool_with_indices, max_unpool
from market_jax.typing import Array

__all__ = [
    "Conv",
    "batch_norm",
    "conv",
    "conv_transpose",
    "max_pool",
    "max_pool_with_indices",
    "max_unpool",
    "mean_pool",
]


class Conv(nn.Conv):
    """`nn.Conv` through `convolution.conv_general_dilated`.

    The bias is added in float32 whatever the dtype: its gradient, a sum over all pixels, is then
    taken in float32 too, which is more exact and, on a CPU, several times faster.
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
    """A square convolution with PyTorch's usual padding, (kernel - 1) // 2 on every side.

    Args:
      features: output channels.
      kernel: cells along each side.
      strides: along both axes.
      **kwargs: of `Conv`.
    """
    padding = (kernel - 1) // 2
    return Conv(features, (kernel, kernel), strides=(strides,) * 2, padding=padding, **kwargs)


def conv_transpose(features: int, kernel: int, strides: int = 1, **kwargs) -> Conv:
    """The transpose of `conv`: [N, H, W, C] -> [N, H * strides, W * strides, features].

    As PyTorch's `ConvTranspose2d` with padding (kernel - 1) // 2 and output padding
    strides - 1, whose kernel is this one turned by 180 degrees; written as a convolution of the
    dilated input, because `nn.ConvTranspose` takes no convolution. The kernel must be odd.
    """
    before = kernel - 1 - (kernel - 1) // 2
    padding = [(before, before + strides - 1)] * 2
    return Conv(
        features, (kernel, kernel), padding=padding, input_dilation=(strides,) * 2, **kwargs
    )


def batch_norm(train: bool, **kwargs) -> nn.BatchNorm:
    """BatchNorm with PyTorch's defaults (running average 0.9 of the old, epsilon 1e-5).

    Its statistics are those of the whole batch, over all devices, because the training step
    is one program over a sharded batch.
    """
    settings = {"momentum": 0.9, "epsilon": 1e-5} | kwargs
    return nn.BatchNorm(use_running_average=not train, **settings)


def mean_pool(x: Array, window: tuple[int, int]) -> Array:
    """Mean over windows that do not overlap: [N, H, W, C] -> [N, H//p, W//q, C]."""
    n, h, w, c = x.shape
    p, q = window
    x = x[:, : h // p * p, : w // q * q]
    return jnp.mean(x.reshape(n, h // p, p, w // q, q, c), axis=(2, 4))
