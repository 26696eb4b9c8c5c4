"""Residual Attention Network (Wang et al. 2017): masks from the bottom up and the top down again.

As in the authors' definition, but with the residual blocks of `resnet`, whose activation follows
the sum.
"""

from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from market_jax.models.backbones.resnet import Block
from market_jax.models.heads import pool_and_classify
from market_jax.models.layers import conv, finish, max_pool, normalize
from market_jax.models.norms import batch_norm, unit
from market_jax.typing import Array, Classes, PositiveInt

_MODULES = {56: (1, 1, 1), 92: (1, 2, 3)}  # depth -> modules of each of the first three stages


def _halve(x: Array) -> Array:
    return max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class Attention(nn.Module):
    """Weighs a map by a mask that has seen more of the picture: trunk * (1 + mask).

    A block comes first. The trunk is two blocks; the mask goes down by max-pooling, a block on each
    level, and up again by bilinear interpolation, each level added through a block of its own, and
    ends in two 1x1 convolutions and a sigmoid. A block follows.

    Attributes:
      width: channels inside the blocks; the map has four times as many.
      levels: how often the mask is halved.
      dtype: dtype of the computation; parameters are float32.
    """

    width: int
    levels: PositiveInt
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Weighs a map.

        Args:
          x: the map, [N, H, W, 4 * width].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          The weighed map, of the same shape.
        """

        def block(x, name):
            return Block(self.width, 1, True, self.dtype, name=name)(x, train)

        x = block(x, "before")
        trunk = block(block(x, "trunk1"), "trunk2")
        levels = [x]
        for level in range(1, self.levels + 1):
            levels.append(block(_halve(levels[-1]), f"down{level}"))
        y = block(levels.pop(), "bottom")
        for level in range(self.levels - 1, 0, -1):
            seen = levels.pop()
            y = jax.image.resize(y, seen.shape, "linear") + block(seen, f"skip{level}")
            y = block(y, f"up{level}")
        y = jax.image.resize(y, x.shape, "linear")
        for number in (1, 2):
            y = nn.relu(batch_norm(train, dtype=self.dtype, name=f"mask_bn{number}")(y))
            y = conv(x.shape[-1], 1, bias=False, dtype=self.dtype, name=f"mask{number}")(y)
        return block(trunk * (1 + nn.sigmoid(y)), "after")


def last_blocks(x: Array, width: int, strides: int, train: bool, dtype: jnp.dtype) -> Array:
    """The three blocks of the last stage, "block4_1", ...; called within a `__call__`.

    Args:
      x: the map before the stage, [N, H, W, C].
      width: channels inside the blocks.
      strides: of the first one.
      train: whether BatchNorm uses the batch's statistics, as in training.
      dtype: dtype of the computation.
    """
    for number in (1, 2, 3):
        name = f"block4_{number}"
        x = Block(width, strides if number == 1 else 1, True, dtype, name=name)(x, train)
    return x


class LastStage(nn.Module):
    """Another copy of the last stage, with parameters of its own: [N, H, W, C] -> map.

    Attributes:
      width: channels of the network's first convolution.
      last_stride: the stride of the stage, 1 or 2.
      dtype: dtype of the computation; parameters are float32.
    """

    width: int
    last_stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Applies the stage.

        Args:
          x: the map before the stage, [N, H, W, C].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          The map after the stage, [N, h, w, 32 * width].
        """
        return last_blocks(x, 8 * self.width, self.last_stride, train, self.dtype)


class Model(nn.Module):
    """RGB crops in [0, 1] -> feature map, pooled features, and the logits of linear heads.

    Attributes:
      depth: 56 or 92, the authors' Attention-56 and Attention-92, with one module on each of the
        first three stages, or 1, 2 and 3.
      width: channels of the first convolution, 64 in the paper; later ones have up to 32 times as
        many.
      last_stride: the stride of the last stage; 1 keeps a larger map.
      classes: output name -> number of classes; each gets a linear head.
      pooling: how the map is pooled, "average", "max" or "gem".
      dtype: dtype of the computation; parameters are float32.
    """

    depth: Literal[56, 92] = 56
    width: PositiveInt = 64
    last_stride: Literal[1, 2] = 2
    classes: Mapping[str, Classes] | None = None
    pooling: str = "average"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        """Computes feature map, pooled features and logits.

        Args:
          image: RGB crops, [N, H, W, 3] float32 in [0, 1].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          See `heads.pool_and_classify`; the map is [N, H/32, W/32, 32 * width].

        Raises:
          InputError: there is no such pooling.
        """
        x = normalize(image).astype(self.dtype)
        convolve = conv(self.width, 7, 2, bias=False, dtype=self.dtype, name="conv1")
        norm = batch_norm(train, dtype=self.dtype, name="bn1")
        x, maps = _halve(finish(unit(convolve, norm, x, "relu"))), []
        for stage, modules in enumerate(_MODULES[self.depth], start=1):
            width, strides = self.width * 2 ** (stage - 1), 1 if stage == 1 else 2
            x = Block(width, strides, True, self.dtype, name=f"block{stage}")(x, train)
            for number in range(1, modules + 1):
                name = f"attention{stage}_{number}"
                x = Attention(width, 4 - stage, self.dtype, name=name)(x, train)
            maps.append(x)
        x = last_blocks(x, 8 * self.width, self.last_stride, train, self.dtype)
        return pool_and_classify([*maps, x, x], self.classes or {}, self.pooling)

    @nn.nowrap
    def last_stage(self, name: str) -> LastStage:
        """Makes another copy of the last stage, for a part model's `__call__`.

        It takes the output "stage3" and returns a map like "map".

        Args:
          name: the copy's name, under which its parameters are kept.
        """
        return LastStage(self.width, self.last_stride, self.dtype, name=name)
