"""EfficientNet-Lite: EfficientNet (Tan & Le 2019) without squeeze-and-excitation, with ReLU6.

Larger variants are wider and deeper, but for the stem and the last convolution, which keep their
widths, and the first and last stage, which keep their one block. The published weights were
trained with TensorFlow's padding, which is not symmetric if a stride is 2.
"""

import functools
import math
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from market_jax.models.attention import NonLocal, attend, check_non_local
from market_jax.models.heads import pool_and_classify
from market_jax.models.inverted_residuals import Block, Unit
from market_jax.models.layers import finish
from market_jax.typing import Array, Classes, NonNegativeInt, PyTree, Range
from market_jax.weights import pretrained

Variant = Literal[0, 1, 2, 3, 4]


class _Stage(NamedTuple):
    blocks: int
    kernel: int
    strides: int  # of the first block
    expansion: int
    channels: int


_STAGES = (  # of variant 0
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
_SCALES = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2), 3: (1.2, 1.4), 4: (1.4, 1.8)}
_LAST = 5  # the stage with the last stride
_MEAN, _STD = 127 / 255, 128 / 255


def _stages(variant: int) -> list[_Stage]:
    """The stages of a variant: channels and blocks times its two numbers in `_SCALES`."""
    wider, deeper = _SCALES[variant]
    rows = []
    for row in _STAGES:
        channels = 8 * int(row.channels * wider / 8 + 0.5)  # the nearest multiple of 8
        channels += 8 * (channels < 0.9 * row.channels * wider)
        blocks = row.blocks if row in (_STAGES[0], _STAGES[-1]) else math.ceil(row.blocks * deeper)
        rows.append(row._replace(blocks=blocks, channels=channels))
    return rows


def _flat(match, variant: int) -> str:
    """A block's number where blocks are counted through all stages."""
    stage, block = map(int, match.groups())
    return f"_blocks.{sum(row.blocks for row in _stages(variant)[:stage]) + block}"


def _package_names(variant: int) -> tuple:
    """The rules of efficientnet_lite_pytorch, which counts blocks through all stages."""
    return (
        (r"^stem\.conv", "_conv_stem"),
        (r"^stem\.bn", "_bn0"),
        (r"^head\.conv", "_conv_head"),
        (r"^head\.bn", "_bn1"),
        (r"^head_imagenet", "_fc"),
        (r"^block(\d)_(\d)", functools.partial(_flat, variant=variant)),
        (r"expand\.conv", "_expand_conv"),
        (r"expand\.bn", "_bn0"),
        (r"filter\.conv", "_depthwise_conv"),
        (r"filter\.bn", "_bn1"),
        (r"project\.conv", "_project_conv"),
        (r"project\.bn", "_bn2"),
    )


TORCH_NAMES = {
    "efficientnet_lite_pytorch": _package_names(0),
    "efficientnet_lite_pytorch, Lite1 and Lite2": _package_names(1),
    "efficientnet_lite_pytorch, Lite3": _package_names(3),
    "efficientnet_lite_pytorch, Lite4": _package_names(4),
    "timm": (
        (r"^stem\.conv", "conv_stem"),
        (r"^stem\.bn", "bn1"),
        (r"^head\.conv", "conv_head"),
        (r"^head\.bn", "bn2"),
        (r"^head_imagenet", "classifier"),
        (r"^block(\d)_(\d)", r"blocks.\1.\2"),
        (r"(blocks\.0.*)filter\.bn", r"\1bn1"),
        (r"(blocks\.0.*)project\.conv", r"\1conv_pw"),
        (r"(blocks\.0.*)project\.bn", r"\1bn2"),
        (r"expand\.conv", "conv_pw"),
        (r"expand\.bn", "bn1"),
        (r"filter\.conv", "conv_dw"),
        (r"filter\.bn", "bn2"),
        (r"project\.conv", "conv_pwl"),
        (r"project\.bn", "bn3"),
    ),
}


def stage(
    x: Array,
    number: int,
    variant: int,
    strides: int,
    train: bool,
    dtype: jnp.dtype,
    padding: str | None,
    non_local: int = 0,
) -> Array:
    """Applies the blocks of a stage, named "block6_0", ...; called within a `__call__`.

    Args:
      x: the map before the stage, [N, H, W, C].
      number: the number of the stage, 1 to 7.
      variant: the variant of the network, 0 to 4.
      strides: the strides of the stage's first block, 1 or 2.
      train: whether BatchNorm uses the batch's statistics, as in training.
      dtype: dtype of the computation.
      padding: "SAME" for TensorFlow's padding, None for PyTorch's.
      non_local: how many of the last blocks a non-local block follows, "non_local3_1".
    """
    row = _stages(variant)[number - 1]
    for i in range(row.blocks):
        first = strides if i == 0 else 1
        settings = (row.channels, row.kernel, first, row.expansion, dtype, padding)
        x = Block(*settings, name=f"block{number - 1}_{i}")(x, train)
        if i >= row.blocks - non_local:
            x = NonLocal(dtype=dtype, name=f"non_local{number}_{i}")(x, train)
    return x


class LastStage(nn.Module):
    """Another copy of the last stage and convolution, with parameters of its own.

    [N, H, W, 192] -> [N, H, W, 1280] in variant 0.

    Attributes:
      variant: the variant of the network, 0 to 4.
      same_padding: whether to pad as TensorFlow does, like the backbone.
      dtype: dtype of the computation; parameters are float32.
    """

    variant: int = 0
    same_padding: bool = False
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
        padding = "SAME" if self.same_padding else None
        x = stage(x, len(_STAGES), self.variant, 1, train, self.dtype, padding)
        return finish(Unit(1280, 1, 1, self.dtype, padding, name="head")(x, train))


class Model(nn.Module):
    """RGB crops in [0, 1] -> feature map, pooled features, and the logits of linear heads.

    Attributes:
      variant: the variant of the network, 0 to 4: EfficientNet-Lite0, ...
      classes: output name -> number of classes; each gets a linear head. Published weights have the
        head "imagenet" with 1000 classes.
      pooling: how the map is pooled, "average", "max" or "gem".
      attention: the stages, 1 to 7, after which a mask weighs the map.
      non_local: of each of the seven stages, how many of its last blocks a non-local block follows;
        () has none.
      same_padding: whether to pad as TensorFlow does, for the published weights; otherwise all
        sides are padded alike, as in PyTorch.
      last_stride: the stride of stage 6, the last one with a stride; 1 keeps a larger map.
      dtype: dtype of the computation; parameters are float32.
    """

    variant: Variant = 0
    classes: Mapping[str, Classes] | None = None
    pooling: str = "average"
    attention: tuple[Annotated[int, Range(1, 7)], ...] = ()
    non_local: tuple[NonNegativeInt, ...] = ()
    same_padding: bool = False
    last_stride: Literal[1, 2] = 2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        """Computes feature map, pooled features and logits.

        Args:
          image: RGB crops, [N, H, W, 3] float32 in [0, 1].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          See `heads.pool_and_classify`; the map is [N, H/32, W/32, 1280].

        Raises:
          InputError: there is no such pooling, or `non_local` does not fit the stages.
        """
        rows = _stages(self.variant)
        non_local = check_non_local(self.non_local, [row.blocks for row in rows])
        padding = "SAME" if self.same_padding else None
        x = ((image - _MEAN) / _STD).astype(self.dtype)
        x = Unit(32, 3, 2, self.dtype, padding, name="stem")(x, train)
        maps = []
        for number, (row, blocks) in enumerate(zip(rows, non_local, strict=True), start=1):
            strides = self.last_stride if number - 1 == _LAST else row.strides
            x = stage(x, number, self.variant, strides, train, self.dtype, padding, blocks)
            x = attend(x, number, self.attention, train, self.dtype)
            maps.append(x)
        x = finish(Unit(1280, 1, 1, self.dtype, padding, name="head")(x, train))
        return pool_and_classify([*maps, x], self.classes or {}, self.pooling)

    @nn.nowrap
    def last_stage(self, name: str) -> LastStage:
        """Makes another copy of the last stage, for a part model's `__call__`.

        It takes the output "stage6" and returns a map like "map". Its layers have the same names as
        the backbone's, but parameters of their own, and no mask or non-local block follows it.

        Args:
          name: the copy's name, under which its parameters are kept.
        """
        return LastStage(self.variant, self.same_padding, self.dtype, name=name)


def make_pretrained(variant: Variant = 0) -> tuple[Model, PyTree]:
    """Makes the network with ImageNet's weights.

    Args:
      variant: the variant of the network; there are weights of 0, 1 and 2.

    Returns:
      The model and its variables.

    Raises:
      InputError: the package with the weights is not installed.
    """
    model = Model(variant, same_padding=True)
    example = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    template = jax.eval_shape(model.init, jax.random.key(0), example)
    return model, pretrained.load(pretrained.find("auto", variant), template, TORCH_NAMES)[0]
