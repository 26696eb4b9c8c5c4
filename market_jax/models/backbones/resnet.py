"""ResNet: residual blocks on four stages (He et al. 2016), as torchvision builds it (v1.5).

IBN-Net (Pan et al. 2018) puts InstanceNorms into the first stages, so that features depend less on
a picture's style, and more on what it shows.
"""

import functools
from collections.abc import Mapping
from typing import Annotated, Literal

import flax.linen as nn
import jax.numpy as jnp

from market_jax.models.attention import NonLocal, attend, check_non_local
from market_jax.models.heads import pool_and_classify
from market_jax.models.layers import conv, finish, max_pool, normalize
from market_jax.models.norms import InstanceNorm, batch_norm, unit
from market_jax.typing import Array, Classes, NonNegativeInt, Range, WidthOrNone

Ibn = Literal["", "a", "b"]

# depth -> (blocks of each stage, whether they have bottlenecks)
_DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}

_TORCHVISION = (
    (r"^layer(\d)_(\d+)", r"layer\1.\2"),
    (r"downsample_bn$", "downsample.1"),
    (r"downsample$", "downsample.0"),
    (r"^head_imagenet", "fc"),
    # IBN-Net's
    (r"bn1_instance$", "bn1.IN"),
    (r"bn1_batch$", "bn1.BN"),
    (r"\.instance$", ".IN"),
)


def _count(match, first: Mapping[int, int]) -> str:
    """The name of a non-local block where those of a stage are counted from 0."""
    stage, block = map(int, match.groups())
    return f"NL_{stage}.{block - first[stage]}"


def _non_local_names(*first: int) -> tuple:
    """The rules for non-local blocks, which begin after the `first` block of each stage."""
    count = functools.partial(_count, first=dict(enumerate(first, start=1)))
    return (
        (r"^(non_local.*)\.out$", r"\1.W.0"),
        (r"^(non_local.*)\.bn$", r"\1.W.1"),
        (r"^non_local(\d)_(\d+)", count),
    )


TORCH_NAMES = {
    "torchvision": _TORCHVISION,  # timm's, torchreid's, IBN-Net's and BoT's too
    # fast-reid's and AGW's, where 2, 3 or 2, 9 blocks stand in stages 2 and 3
    "non-local blocks, ResNet-50": (*_TORCHVISION, *_non_local_names(0, 2, 3, 0)),
    "non-local blocks, ResNet-101": (*_TORCHVISION, *_non_local_names(0, 2, 14, 0)),
}


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 with `bottleneck`, and a shortcut around them.

    Attributes:
      width: channels of the block; the output has four times as many with `bottleneck`.
      strides: rows and columns from one window to the next, in the block's first 3x3 convolution.
      bottleneck: whether the block has three convolutions instead of two.
      dtype: dtype of the computation; parameters are float32.
      ibn: "a" has an InstanceNorm instead of BatchNorm on half of the first convolution's
        channels, "b" an InstanceNorm after the addition.
    """

    width: int
    strides: int
    bottleneck: bool
    dtype: jnp.dtype
    ibn: Ibn = ""

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
            if i == 1 and self.ibn == "a":
                y = _normalize_halves(convolve(y), train)
                continue
            norm = batch_norm(train, dtype=self.dtype, name=f"bn{i}")
            last = i == len(widths)
            activation = "" if last and self.ibn == "b" else "relu"
            y = unit(convolve, norm, y, activation, around if last else None)
        if self.ibn == "b":
            y = nn.relu(InstanceNorm(dtype=self.dtype, name="instance")(finish(y)))
        return y


def _normalize_halves(x: Array, train: bool) -> Array:
    """InstanceNorm on the first half of the channels, BatchNorm on the others, and ReLU."""
    norms = (
        InstanceNorm(dtype=x.dtype, name="bn1_instance"),
        batch_norm(train, dtype=x.dtype, name="bn1_batch"),
    )
    halves = jnp.split(x, [x.shape[-1] // 2], axis=-1)
    halves = [norm(half) for norm, half in zip(norms, halves, strict=True)]
    return nn.relu(jnp.concatenate(halves, axis=-1))


def _ibn_of(ibn: Ibn, number: int, last: bool) -> Ibn:
    """What a block of stage `number` has of IBN-Net, the last block of a stage or another one."""
    has = {"a": number <= 3, "b": number <= 2 and last}
    return ibn if has.get(ibn) else ""


def stage(
    x: Array,
    number: int,
    depth: int,
    strides: int,
    train: bool,
    dtype: jnp.dtype,
    ibn: Ibn = "",
    non_local: tuple[int, int] = (0, 0),
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
      ibn: what the network has of IBN-Net, see `Model`; the last stage has none.
      non_local: how many of the last blocks a non-local block follows, "non_local2_3", and the
        channels inside it.
    """
    blocks, bottleneck = _DEPTHS[depth][0][number - 1], _DEPTHS[depth][1]
    count, inner = non_local
    for i in range(blocks):
        settings = (64 * 2 ** (number - 1), strides if i == 0 else 1, bottleneck, dtype)
        kind = _ibn_of(ibn, number, last=i == blocks - 1)
        x = Block(*settings, kind, name=f"layer{number}_{i}")(x, train)
        if i >= blocks - count:
            x = NonLocal(inner, dtype, name=f"non_local{number}_{i}")(x, train)
    return x


def _begin(image: Array, stem: str, ibn: Ibn, train: bool, dtype: jnp.dtype) -> Array:
    """The first convolution and the pooling after it; called within a `__call__`."""
    x = normalize(image).astype(dtype)
    convolve = conv(64, 7, 2, bias=False, dtype=dtype, name="conv1")
    activation = "" if stem == "bot" else "relu"
    if ibn == "b":
        x = finish(InstanceNorm(dtype=dtype, name="bn1")(convolve(x)), activation=activation)
    else:
        x = finish(unit(convolve, batch_norm(train, dtype=dtype, name="bn1"), x, activation))
    padding = ((1, 1), (1, 1))
    if stem == "fast-reid":  # windows from the first cell on, of which the last may be cut
        padding = tuple((0, 1 - size % 2) for size in x.shape[1:3])
    return max_pool(x, (3, 3), strides=(2, 2), padding=padding)


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
      non_local_width: channels inside the non-local blocks; 0 has half of the map's. The networks
        that fast-reid and AGW have published have 1.
      ibn: the InstanceNorms of IBN-Net (Pan et al. 2018): "a" has them on half of the channels
        after the first convolution of each block in stages 1 to 3; "b" after conv1 and after the
        addition of the last block in stages 1 and 2; "" has none.
      stem: what follows conv1 and its norm: "torchvision" has ReLU and a pooling with a border
        on all sides; "fast-reid" has none on the upper and the left side; "bot" has the first
        one's pooling without ReLU, as BoT without IBN and AGW. Weights fit all three; features
        are those that they were trained for with one.
      dtype: dtype of the computation; parameters are float32.
    """

    depth: Literal[18, 34, 50, 101] = 50
    last_stride: Literal[1, 2] = 2
    classes: Mapping[str, Classes] | None = None
    pooling: str = "average"
    attention: tuple[Annotated[int, Range(1, 4)], ...] = ()
    non_local: tuple[NonNegativeInt, ...] = ()
    non_local_width: WidthOrNone = 0
    ibn: Ibn = ""
    stem: Literal["torchvision", "fast-reid", "bot"] = "torchvision"
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
        x = _begin(image, self.stem, self.ibn, train, self.dtype)
        maps = []
        for number, strides in enumerate((1, 2, 2, self.last_stride), start=1):
            blocks = (non_local[number - 1], self.non_local_width)
            x = stage(x, number, self.depth, strides, train, self.dtype, self.ibn, blocks)
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
