"""OSNet: omni-scale blocks on three stages (Zhou et al. 2019), as torchreid builds it.

With instance normalisation it is OSNet-IBN (Zhou et al. 2019) or OSNet-AIN (Zhou et al. 2021).
"""

import functools
from collections.abc import Mapping
from typing import Annotated, Literal

import flax.linen as nn
import jax.numpy as jnp

from market_jax.models.attention import attend
from market_jax.models.checks import check_smallest
from market_jax.models.heads import classify, pool, pool_and_classify
from market_jax.models.inverted_residuals import Unit
from market_jax.models.layers import Pending, conv, finish, max_pool, mean_pool, normalize
from market_jax.models.norms import InstanceNorm, batch_norm
from market_jax.typing import Array, Classes, Range

Norm = Literal["batch", "after", "inside"]  # of a block, see `Block`
InstanceNorms = Literal["none", "ibn", "ain"]  # of a network, see `Model`

_CHANNELS = (64, 256, 384, 512)  # of the first convolution and of each stage, at width 1
_STREAMS = 4  # of a block
_BOTTLENECK = 4  # a block's channels over those of its streams
_REDUCTION = 16  # the channels of a stream over those inside the gate
_FEATURES = 512  # units of the dense layer, at any width
_SMALLEST = 13  # side of an image that leaves one cell
_NORMS: Mapping[InstanceNorms, tuple[tuple[Norm, ...], ...]] = {  # of the blocks of each stage
    "none": (("batch", "batch"),) * 3,
    "ibn": (("after", "after"), ("batch", "batch"), ("batch", "batch")),
    "ain": (("inside", "inside"), ("batch", "inside"), ("inside", "batch")),
}

_RULES = (
    (r"^conv1_norm$", "conv1.bn"),
    (r"^fc_bn$", "fc.1"),
    (r"^fc$", "fc.0"),
    (r"^head_imagenet", "classifier"),
    (r"(^|\.)(conv[13])$", r"\1\2.conv"),
    (r"^(conv\d)_(\d)", r"\1.\2"),
    (r"\.norm$", ".IN"),
    (r"(stream\d_\d)\.conv$", r"\1.conv2"),
    (r"(stream\d_\d)_pointwise$", r"\1.conv1"),
)


def _old_stream(match) -> str:
    """The name of a layer of a stream, "conv2c.1"; the only layer of the first has no number."""
    depth = int(match[1])
    return f"conv2{'abcd'[depth - 1]}" + (f".{match[2]}" if depth > 1 else "")


TORCH_NAMES = {
    "torchreid": (  # fast-reid's too
        *_RULES,
        (r"stream(\d)_(\d)", _old_stream),
        (r"^pool(\d)", r"conv\1.2.0"),
    ),
    "torchreid, OSNet-AIN": (
        *_RULES,
        (r"stream(\d)_(\d)", lambda match: f"conv2.{int(match[1]) - 1}.layers.{match[2]}"),
        (r"^pool(\d)", r"pool\1.0"),
    ),
}


class Gate(nn.Module):
    """Weighs the channels of streams by what each of them sees, and adds them.

    Attributes:
      dtype: dtype of the computation; parameters are float32.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, streams: list[Array]) -> Array:
        """Adds streams.

        Args:
          streams: maps, each [N, H, W, C]; all have the same gate.

        Returns:
          [N, H, W, C].
        """
        means = [jnp.mean(x.astype(jnp.float32), axis=(1, 2)) for x in streams]
        y, channels = jnp.stack(means, axis=1)[:, :, None].astype(self.dtype), streams[0].shape[-1]
        y = nn.relu(conv(channels // _REDUCTION, 1, dtype=self.dtype, name="fc1")(y))
        gates = nn.sigmoid(conv(channels, 1, dtype=self.dtype, name="fc2")(y))
        return sum(x * gates[:, i : i + 1] for i, x in enumerate(streams))


class Block(nn.Module):
    """An omni-scale block: four streams that see 3, 5, 7 and 9 rows and columns, and a shortcut.

    Attributes:
      width: the number of output channels.
      norm: "batch" has BatchNorm alone; "after" normalises each picture's map after the shortcut
        too (IBN), "inside" before it, instead of the last BatchNorm (AIN).
      dtype: dtype of the computation; parameters are float32.
    """

    width: int
    norm: Norm
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Applies the block.

        Args:
          x: the map, [N, H, W, C].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          The map after it, [N, H, W, width].
        """
        inner, layer, around = self.width // _BOTTLENECK, _layer(self.dtype), x
        if x.shape[-1] != self.width:
            around = finish(layer(self.width, 1, activation="", name="downsample")(x, train))
        y = layer(inner, 1, name="conv1")(x, train)
        streams = [self._stream(y, depth, train) for depth in range(1, _STREAMS + 1)]
        y = Gate(self.dtype, name="gate")(streams)
        norm = InstanceNorm(dtype=self.dtype, name="norm") if self.norm != "batch" else None
        if self.norm == "inside":
            y = conv(self.width, 1, bias=False, dtype=self.dtype, name="conv3")(y)
            return nn.relu(norm(y) + around)
        last = layer(self.width, 1, activation="" if norm else "relu", name="conv3")
        y = finish(last(y, train, around))
        return nn.relu(norm(y)) if norm else y

    def _stream(self, x: Array | Pending, depth: int, train: bool) -> Array:
        """As many 1x1 convolutions, each with a 3x3 one of each channel, as the depth says."""
        inner, layer = self.width // _BOTTLENECK, _layer(self.dtype)
        for i in range(depth):
            name = f"stream{depth}_{i}"
            x = conv(inner, 1, bias=False, dtype=self.dtype, name=f"{name}_pointwise")(x)
            x = layer(inner, 3, depthwise=True, name=name)(x, train)
        return finish(x)


def _layer(dtype: jnp.dtype):
    """A convolution with PyTorch's BatchNorm and ReLU; what is left: features, kernel."""
    settings = {"strides": 1, "dtype": dtype, "epsilon": 1e-5, "activation": "relu"}
    return functools.partial(Unit, **settings)


def stage(
    x: Array,
    number: int,
    width: float,
    instance_norm: InstanceNorms,
    train: bool,
    dtype: jnp.dtype,
) -> Array:
    """Applies the blocks of a stage, "conv2_0", ...; called within a `__call__`.

    Before the second and the third one, a 1x1 convolution and a mean halve the rows and columns.

    Args:
      x: the map before the stage, [N, H, W, C].
      number: the number of the stage, 1 to 3.
      width: the width of the network.
      instance_norm: where pictures are normalised alone, see `Model`.
      train: whether BatchNorm uses the batch's statistics, as in training.
      dtype: dtype of the computation.
    """
    if number > 1:
        x = finish(_layer(dtype)(x.shape[-1], 1, name=f"pool{number}")(x, train))
        x = mean_pool(x, (2, 2))
    for i, norm in enumerate(_NORMS[instance_norm][number - 1]):
        block = Block(int(width * _CHANNELS[number]), norm, dtype, name=f"conv{number + 1}_{i}")
        x = block(x, train)
    return x


class LastStage(nn.Module):
    """Another copy of the last stage and convolution, with parameters of its own.

    Attributes:
      width: the width of the network.
      instance_norm: where pictures are normalised alone, see `Model`.
      dtype: dtype of the computation; parameters are float32.
    """

    width: float = 1.0
    instance_norm: InstanceNorms = "none"
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
        x = stage(x, 3, self.width, self.instance_norm, train, self.dtype)
        return finish(_layer(self.dtype)(x.shape[-1], 1, name="conv5")(x, train))


class Model(nn.Module):
    """RGB crops in [0, 1], 13x13 or larger -> feature map, features, logits of linear heads.

    Sides that are multiples of 16 are seen whole; of others, as in torchreid, the poolings may
    leave a last row or column of a map out.

    Attributes:
      width: channels of each stage over those of the published OSNet x1.0.
      instance_norm: where a picture's maps are normalised by their own statistics: "none", "ibn"
        after the first convolution and the blocks of the first stage (osnet_ibn), or "ain" after
        the first convolution and within four of the six blocks (osnet_ain).
      classes: output name -> number of classes; each gets a linear head. Published weights have the
        head "imagenet" with 1000 classes.
      dense: whether there is the dense layer of 512 units, with BatchNorm and ReLU, that gives
        "feature", as in torchreid; otherwise that is the pooled map.
      pooling: how the map is pooled, "average", "max" or "gem".
      attention: the stages, 1 to 3, after which a mask weighs the map.
      dtype: dtype of the computation; parameters are float32.
    """

    width: Literal[0.25, 0.5, 0.75, 1.0] = 1.0
    instance_norm: InstanceNorms = "none"
    classes: Mapping[str, Classes] | None = None
    dense: bool = True
    pooling: str = "average"
    attention: tuple[Annotated[int, Range(1, 3)], ...] = ()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        """Computes feature map, pooled features and logits.

        Args:
          image: RGB crops, [N, H, W, 3] float32 in [0, 1].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          See `heads.pool_and_classify`; the map is [N, H/16, W/16, D], the feature [N, 512], or
          [N, D] without the dense layer; D is 512 times the width.

        Raises:
          InputError: the image is too small, or there is no such pooling.
        """
        check_smallest(image.shape[1:3], _SMALLEST)
        x = self._stem(normalize(image).astype(self.dtype), train)
        x, maps = max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1))), []
        for number in range(1, len(_CHANNELS)):
            x = stage(x, number, self.width, self.instance_norm, train, self.dtype)
            x = attend(x, number, self.attention, train, self.dtype)
            maps.append(x)
        x = finish(_layer(self.dtype)(x.shape[-1], 1, name="conv5")(x, train))
        classes = self.classes or {}
        if not self.dense:
            return pool_and_classify([*maps, x], classes, self.pooling)
        y = pool(x, self.pooling).astype(self.dtype)
        y = nn.Dense(_FEATURES, dtype=self.dtype, name="fc")(y)
        y = nn.relu(batch_norm(train, name="fc_bn")(y))
        return classify([*maps, x], y, classes)

    def _stem(self, x: Array, train: bool) -> Array:
        """The first convolution, 7x7."""
        channels = int(self.width * _CHANNELS[0])
        if self.instance_norm == "none":
            return finish(_layer(self.dtype)(channels, 7, strides=2, name="conv1")(x, train))
        x = conv(channels, 7, 2, bias=False, dtype=self.dtype, name="conv1")(x)
        return nn.relu(InstanceNorm(dtype=self.dtype, name="conv1_norm")(x))

    @nn.nowrap
    def last_stage(self, name: str) -> LastStage:
        """Makes another copy of the last stage, for a part model's `__call__`.

        It takes the output "stage2" and returns a map like "map". Its layers have the same names as
        the backbone's, but parameters of their own, and no mask is in it.

        Args:
          name: the copy's name, under which its parameters are kept.
        """
        return LastStage(self.width, self.instance_norm, self.dtype, name=name)
