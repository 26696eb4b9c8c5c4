"""EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation, with ReLU6 (Tan & Le 2019).

The stem and the last convolution keep their widths in all Lite variants. Padding is symmetric,
as in the PyTorch ports.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from market_jax.models.heads import pool_and_classify
from market_jax.models.layers import batch_norm, conv
from market_jax.typing import Array

# (blocks, kernel, strides of the first, expansion, channels)
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Unit(nn.Module):
    """A convolution without bias, BatchNorm, and ReLU6 unless it projects."""

    features: int
    kernel: int
    strides: int
    dtype: jnp.dtype
    depthwise: bool = False
    activate: bool = True

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        groups = x.shape[-1] if self.depthwise else 1
        settings = {"feature_group_count": groups, "bias": False, "dtype": self.dtype}
        x = conv(self.features, self.kernel, self.strides, **settings, name="conv")(x)
        x = batch_norm(train, epsilon=1e-3, dtype=self.dtype, name="bn")(x)
        return nn.relu6(x) if self.activate else x


class Block(nn.Module):
    """An inverted residual: widen by 1x1, filter each channel, narrow by 1x1."""

    features: int
    kernel: int
    strides: int
    expansion: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        inner, dtype, y = self.expansion * x.shape[-1], self.dtype, x
        if self.expansion > 1:
            y = Unit(inner, 1, 1, dtype, name="expand")(y, train)
        y = Unit(inner, self.kernel, self.strides, dtype, depthwise=True, name="filter")(y, train)
        y = Unit(self.features, 1, 1, dtype, activate=False, name="project")(y, train)
        return x + y if x.shape == y.shape else y


class Model(nn.Module):
    """RGB crops -> feature map, pooled features, and the logits of linear heads.

    Attributes:
      classes: output name -> number of classes; one linear head each.

    Returns (from `__call__`):
      {"map": [N, H/32, W/32, 1280], "embedding": [N, 1280], name: [N, K] logits}, float32.
    """

    classes: Mapping[str, int] | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        x = Unit(32, 3, 2, self.dtype, name="stem")(image.astype(self.dtype), train)
        for stage, (blocks, kernel, strides, expansion, width) in enumerate(_STAGES):
            for i in range(blocks):
                settings = (width, kernel, strides if i == 0 else 1, expansion, self.dtype)
                x = Block(*settings, name=f"block{stage}_{i}")(x, train)
        x = Unit(1280, 1, 1, self.dtype, name="head")(x, train)
        return pool_and_classify(x, self.classes or {})
