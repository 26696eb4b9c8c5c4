"""EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation, with ReLU6 (Tan & Le 2019).

The stem and the last convolution keep their widths in all Lite variants. The published weights were
trained with TensorFlow's padding, which is not symmetric if a stride is 2.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from market_jax.models.attention import attend
from market_jax.models.heads import pool_and_classify
from market_jax.models.layers import Pending, conv, finish
from market_jax.models.norms import batch_norm, unit
from market_jax.typing import Array, Classes, PyTree, Range
from market_jax.weights import pretrained

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
_LAST = 5  # the stage with the last stride
_MEAN, _STD = 127 / 255, 128 / 255


def _flat(match) -> str:
    """A block's number where blocks are counted through all stages."""
    stage, block = map(int, match.groups())
    return f"_blocks.{sum(row[0] for row in _STAGES[:stage]) + block}"


TORCH_NAMES = {
    "efficientnet_lite_pytorch": (
        (r"^stem\.conv", "_conv_stem"),
        (r"^stem\.bn", "_bn0"),
        (r"^head\.conv", "_conv_head"),
        (r"^head\.bn", "_bn1"),
        (r"^head_imagenet", "_fc"),
        (r"^block(\d)_(\d)", _flat),
        (r"expand\.conv", "_expand_conv"),
        (r"expand\.bn", "_bn0"),
        (r"filter\.conv", "_depthwise_conv"),
        (r"filter\.bn", "_bn1"),
        (r"project\.conv", "_project_conv"),
        (r"project\.bn", "_bn2"),
    ),
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


class Unit(nn.Module):
    """A convolution without bias, BatchNorm, and ReLU6.

    Attributes:
      features: the number of output channels.
      kernel: rows and columns of the window.
      strides: rows and columns from one window to the next.
      dtype: dtype of the computation; parameters are float32.
      padding: "SAME" for TensorFlow's padding, None for PyTorch's.
      depthwise: whether each channel is filtered on its own.
      activate: whether ReLU6 follows.
    """

    features: int
    kernel: int
    strides: int
    dtype: jnp.dtype
    padding: str | None = None
    depthwise: bool = False
    activate: bool = True

    @nn.compact
    def __call__(
        self, x: Array | Pending, train: bool, residual: Array | None = None
    ) -> Array | Pending:
        """Applies the layers.

        Args:
          x: the map, [N, H, W, C].
          train: whether BatchNorm uses the batch's statistics, as in training.
          residual: what is added, of the output's shape, or None.

        Returns:
          The map after them, [N, h, w, features]; `finish` makes it an array.
        """
        groups = x.shape[-1] if self.depthwise else 1
        settings = {"feature_group_count": groups, "bias": False, "dtype": self.dtype}
        if self.padding:
            settings["padding"] = self.padding
        convolve = conv(self.features, self.kernel, self.strides, **settings, name="conv")
        norm = batch_norm(train, epsilon=1e-3, dtype=self.dtype, name="bn")
        return unit(convolve, norm, x, "relu6" if self.activate else "", residual)


class Block(nn.Module):
    """An inverted residual: widen by 1x1, filter each channel, narrow by 1x1.

    Attributes:
      features: the number of output channels.
      kernel: rows and columns of the filter's window.
      strides: rows and columns from one window to the next.
      expansion: how many times wider the map is inside the block.
      dtype: dtype of the computation; parameters are float32.
      padding: "SAME" for TensorFlow's padding, None for PyTorch's.
    """

    features: int
    kernel: int
    strides: int
    expansion: int
    dtype: jnp.dtype
    padding: str | None = None

    @nn.compact
    def __call__(self, x: Array | Pending, train: bool) -> Array:
        """Applies the block.

        Args:
          x: the map, [N, H, W, C].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          The map after it, [N, h, w, features].
        """
        inner, ways, y = self.expansion * x.shape[-1], (self.dtype, self.padding), x
        if self.expansion > 1:
            y = Unit(inner, 1, 1, *ways, name="expand")(y, train)
        y = Unit(inner, self.kernel, self.strides, *ways, depthwise=True, name="filter")(y, train)
        same = self.strides == 1 and x.shape[-1] == self.features
        project = Unit(self.features, 1, 1, *ways, activate=False, name="project")
        return finish(project(y, train, finish(x) if same else None))


def stage(
    x: Array, number: int, strides: int, train: bool, dtype: jnp.dtype, padding: str | None
) -> Array:
    """Applies the blocks of a stage, named "block6_0", ...; called within a `__call__`.

    Args:
      x: the map before the stage, [N, H, W, C].
      number: the number of the stage, 1 to 7.
      strides: the strides of the stage's first block, 1 or 2.
      train: whether BatchNorm uses the batch's statistics, as in training.
      dtype: dtype of the computation.
      padding: "SAME" for TensorFlow's padding, None for PyTorch's.
    """
    blocks, kernel, _, expansion, width = _STAGES[number - 1]
    for i in range(blocks):
        settings = (width, kernel, strides if i == 0 else 1, expansion, dtype, padding)
        x = Block(*settings, name=f"block{number - 1}_{i}")(x, train)
    return x


class LastStage(nn.Module):
    """Another copy of the last stage and convolution, with parameters of its own.

    [N, H, W, 192] -> [N, H, W, 1280].

    Attributes:
      same_padding: whether to pad as TensorFlow does, like the backbone.
      dtype: dtype of the computation; parameters are float32.
    """

    same_padding: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Applies the stage.

        Args:
          x: the map before the stage, [N, H, W, 192].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          The map after the stage, [N, h, w, D].
        """
        padding = "SAME" if self.same_padding else None
        x = stage(x, len(_STAGES), 1, train, self.dtype, padding)
        return finish(Unit(1280, 1, 1, self.dtype, padding, name="head")(x, train))


class Model(nn.Module):
    """RGB crops in [0, 1] -> feature map, pooled features, and the logits of linear heads.

    Attributes:
      classes: output name -> number of classes; each gets a linear head. Published weights have the
        head "imagenet" with 1000 classes.
      pooling: how the map is pooled, "average", "max" or "gem".
      attention: the stages, 1 to 7, after which a mask weighs the map.
      same_padding: whether to pad as TensorFlow does, for the published weights; otherwise all
        sides are padded alike, as in PyTorch.
      last_stride: the stride of stage 6, the last one with a stride; 1 keeps a larger map.
      dtype: dtype of the computation; parameters are float32.
    """

    classes: Mapping[str, Classes] | None = None
    pooling: str = "average"
    attention: tuple[Annotated[int, Range(1, 7)], ...] = ()
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
          InputError: there is no such pooling.
        """
        padding = "SAME" if self.same_padding else None
        x = ((image - _MEAN) / _STD).astype(self.dtype)
        x = Unit(32, 3, 2, self.dtype, padding, name="stem")(x, train)
        maps = []
        for number, (_, _, strides, _, _) in enumerate(_STAGES, start=1):
            strides = self.last_stride if number - 1 == _LAST else strides
            x = stage(x, number, strides, train, self.dtype, padding)
            x = attend(x, number, self.attention, train, self.dtype)
            maps.append(x)
        x = finish(Unit(1280, 1, 1, self.dtype, padding, name="head")(x, train))
        return pool_and_classify([*maps, x], self.classes or {}, self.pooling)

    @nn.nowrap
    def last_stage(self, name: str) -> LastStage:
        """Makes another copy of the last stage, for a part model's `__call__`.

        It takes the output "stage6" and returns a map like "map". Its layers have the same names as
        the backbone's, but parameters of their own, and no mask follows it.

        Args:
          name: the copy's name, under which its parameters are kept.
        """
        return LastStage(self.same_padding, self.dtype, name=name)


def make_pretrained() -> tuple[Model, PyTree]:
    """Makes the network with ImageNet's weights.

    Returns:
      The model and its variables.

    Raises:
      InputError: the package with the weights is not installed.
    """
    model = Model(same_padding=True)
    example = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    template = jax.eval_shape(model.init, jax.random.key(0), example)
    return model, pretrained.load(pretrained.find("auto"), template, TORCH_NAMES)[0]
