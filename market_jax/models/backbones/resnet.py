"""ResNet: residual blocks on four stages (He et al. 2016), as torchvision builds it (v1.5)."""

from collections.abc import Mapping
from typing import Annotated, Literal

import flax.linen as nn
import jax.numpy as jnp

from market_jax.models.attention import NonLocal, attend, check_non_local
from market_jax.models.heads import pool_and_classify
from market_jax.models.layers import conv, finish, max_pool, normalize
from market_jax.models.norms import batch_norm, unit
from market_jax.typing import Array, Classes, NonNegativeInt, Range

# depth -> (blocks of each stage, whether they have bottlenecks)
_DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}

TORCH_NAMES = {  # timm's too
    "torchvision": (
        (r"^layer(\d)_(\d+)", r"layer\1.\2"),
        (r"downsample_bn$", "downsample.1"),
        (r"downsample$", "downsample.0"),
        (r"^head_imagenet", "fc"),
    ),
}


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 with `bottleneck`, and a shortcut around them.

    Attributes:
      width: channels of the block; the output has four times as many with `bottleneck`.
      strides: rows and columns from one window to the next, in the block's first 3x3 convolution.
      bottleneck: whether the block has three convolutions instead of two.
      dtype: dtype of the computation; parameters are float32.
    """

    width: int
    strides: int
    bottleneck: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Applies the block.

        Args:
          x: the map, [N, H, W, C].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          The map after it, [N, h, w, D].
        """
        widths, kernels, strides = [self.width] * 2, [3, 3], [self.strides, 1]
        if self.bottleneck:
            widths = [self.width, self.width, 4 * self.width]
            kernels, strides = [1, 3, 1], [1, self.strides, 1]
        settings, around, y = {"bias": False, "dtype": self.dtype}, x, x
        if self.strides > 1 or x.shape[-1] != widths[-1]:
            around = conv(widths[-1], 1, self.strides, **settings, name="downsample")
            norm = batch_norm(train, dtype=self.dtype, name="downsample_bn")
            around = finish(unit(around, norm, x))
        for i, (width, kernel, stride) in enumerate(zip(widths, kernels, strides, strict=True), 1):
            convolve = conv(width, kernel, stride, **settings, name=f"conv{i}")
            norm = batch_norm(train, dtype=self.dtype, name=f"bn{i}")
            y = unit(convolve, norm, y, "relu", around if i == len(widths) else None)
        return y


def stage(
    x: Array,
    number: int,
    depth: int,
    strides: int,
    train: bool,
    dtype: jnp.dtype,
    non_local: int = 0,
) -> Array:
    """Applies the blocks of a stage, named "layer4_0", ...; called within a `__call__`.

    `LastStage` calls it again for another copy of the last stage.

    Args:
      x: the map before the stage, [N, H, W, C].
      number: the number of the stage, 1 to 4.
      depth: the depth of the network, 18, 34, 50 or 101.
      strides: the strides of the stage's first block, 1 or 2.
      train: whether BatchNorm uses the batch's statistics, as in training.
      dtype: dtype of the computation.
      non_local: how many of the last blocks a non-local block follows, "non_local2_3".
    """
    blocks, bottleneck = _DEPTHS[depth][0][number - 1], _DEPTHS[depth][1]
    for i in range(blocks):
        settings = (64 * 2 ** (number - 1), strides if i == 0 else 1, bottleneck, dtype)
        x = Block(*settings, name=f"layer{number}_{i}")(x, train)
        if i >= blocks - non_local:
            x = NonLocal(dtype=dtype, name=f"non_local{number}_{i}")(x, train)
    return x


class LastStage(nn.Module):
    """Another copy of a ResNet's last stage, with parameters of its own: [N, H, W, C] -> map.

    Attributes:
      depth: the depth of the network, 18, 34, 50 or 101.
      last_stride: the stride of the stage, 1 or 2.
      dtype: dtype of the computation; parameters are float32.
    """

    depth: int = 50
    last_stride: int = 2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Applies the stage.

        Args:
          x: the map before the stage, [N, H, W, C].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          The map after the stage, [N, h, w, D].
        """
        return stage(x, 4, self.depth, self.last_stride, train, self.dtype)


class Model(nn.Module):
    """RGB crops in [0, 1] -> feature map, pooled features, and the logits of linear heads.

    Attributes:
      depth: the depth of the network, 18, 34, 50 or 101.
      last_stride: the stride of the last stage; 1 keeps a larger map, which helps
        re-identification.
      classes: output name -> number of classes; each gets a linear head. Published weights have the
        head "imagenet" with 1000 classes.
      pooling: how the map is pooled, "average", "max" or "gem".
      attention: the stages, 1 to 4, after which a mask weighs the map.
      non_local: of each of the four stages, how many of its last blocks a non-local block follows:
        (0, 2, 3, 0) in AGW; () has none.
      dtype: dtype of the computation; parameters are float32.
    """

    depth: Literal[18, 34, 50, 101] = 50
    last_stride: Literal[1, 2] = 2
    classes: Mapping[str, Classes] | None = None
    pooling: str = "average"
    attention: tuple[Annotated[int, Range(1, 4)], ...] = ()
    non_local: tuple[NonNegativeInt, ...] = ()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        """Computes feature map, pooled features and logits.

        Args:
          image: RGB crops, [N, H, W, 3] float32 in [0, 1].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          See `heads.pool_and_classify`; the map is [N, H/32, W/32, 512 or 2048].

        Raises:
          InputError: there is no such pooling, or `non_local` does not fit the stages.
        """
        non_local = check_non_local(self.non_local, _DEPTHS[self.depth][0])
        x = normalize(image).astype(self.dtype)
        convolve = conv(64, 7, 2, bias=False, dtype=self.dtype, name="conv1")
        x = finish(unit(convolve, batch_norm(train, dtype=self.dtype, name="bn1"), x, "relu"))
        x = max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        maps = []
        for number, strides in enumerate((1, 2, 2, self.last_stride), start=1):
            blocks = non_local[number - 1]
            x = stage(x, number, self.depth, strides, train, self.dtype, blocks)
            x = attend(x, number, self.attention, train, self.dtype)
            maps.append(x)
        return pool_and_classify([*maps, x], self.classes or {}, self.pooling)

    @nn.nowrap
    def last_stage(self, name: str) -> LastStage:
        """Makes another copy of the last stage, for a part model's `__call__`.

        It takes the output "stage3" and returns a map like "map". Its layers have the same names as
        the backbone's, but parameters of their own, and no mask or non-local block follows it.

        Args:
          name: the copy's name, under which its parameters are kept.
        """
        return LastStage(self.depth, self.last_stride, self.dtype, name=name)
