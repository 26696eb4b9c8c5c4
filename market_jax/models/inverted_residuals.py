"""Inverted residuals, the blocks of small networks (Sandler et al. 2018), and such networks."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from market_jax.models.attention import NonLocal, attend, check_non_local
from market_jax.models.layers import Pending, conv, finish
from market_jax.models.norms import batch_norm, unit
from market_jax.typing import Array

TIMM_NAMES = (
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
)


class Stage(NamedTuple):
    """A row of blocks.

    Attributes:
      blocks: how many there are.
      kernel: rows and columns of their filters' windows.
      strides: rows and columns from one window to the next, in the first block.
      expansion: how many times wider the map is inside a block.
      channels: of the stage's output.
    """

    blocks: int
    kernel: int
    strides: int
    expansion: int
    channels: int


class Design(NamedTuple):
    """What networks of inverted residuals differ in.

    Attributes:
      stem: channels of the first convolution.
      stages: between the first convolution and the last.
      head: channels of the last convolution.
      epsilon: a number that BatchNorm adds to the variance.
      padding: "SAME" for TensorFlow's padding, None for PyTorch's.
      widens: whether blocks with an expansion of 1 have the first convolution too.
    """

    stem: int
    stages: tuple[Stage, ...]
    head: int
    epsilon: float
    padding: str | None = None
    widens: bool = False


def round_channels(channels: float) -> int:
    """The nearest multiple of 8 that is not more than a tenth smaller; for channels of 8 or more.

    Args:
      channels: how many there would be.
    """
    rounded = 8 * int(channels / 8 + 0.5)
    return rounded + 8 * (rounded < 0.9 * channels)


def position(stages: Sequence[Stage], stage: int, block: int) -> int:
    """The number of a block, from 0, where blocks are counted through all stages.

    Args:
      stages: of the network.
      stage: the number of the stage, from 0.
      block: the number of the block in the stage, from 0.
    """
    return sum(row.blocks for row in stages[:stage]) + block


class Unit(nn.Module):
    """A convolution without bias, BatchNorm, and an activation.

    Attributes:
      features: the number of output channels.
      kernel: rows and columns of the window.
      strides: rows and columns from one window to the next.
      dtype: dtype of the computation; parameters are float32.
      padding: "SAME" for TensorFlow's padding, None for PyTorch's.
      depthwise: whether each channel is filtered on its own.
      epsilon: a number that BatchNorm adds to the variance.
      activation: what follows, a name in `fused.ACTIVATIONS`.
    """

    features: int
    kernel: int
    strides: int
    dtype: jnp.dtype
    padding: str | None = None
    depthwise: bool = False
    epsilon: float = 1e-3
    activation: str = "relu6"

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
        norm = batch_norm(train, epsilon=self.epsilon, dtype=self.dtype, name="bn")
        return unit(convolve, norm, x, self.activation, residual)


class Block(nn.Module):
    """An inverted residual: widen by 1x1, filter each channel, narrow by 1x1.

    Attributes:
      features: the number of output channels.
      kernel: rows and columns of the filter's window.
      strides: rows and columns from one window to the next.
      expansion: how many times wider the map is inside the block.
      dtype: dtype of the computation; parameters are float32.
      padding: "SAME" for TensorFlow's padding, None for PyTorch's.
      epsilon: a number that BatchNorm adds to the variance.
      widens: whether the first convolution is there with an expansion of 1 too.
    """

    features: int
    kernel: int
    strides: int
    expansion: int
    dtype: jnp.dtype
    padding: str | None = None
    epsilon: float = 1e-3
    widens: bool = False

    @nn.compact
    def __call__(self, x: Array | Pending, train: bool) -> Array:
        """Applies the block.

        Args:
          x: the map, [N, H, W, C].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          The map after it, [N, h, w, features].
        """
        make = functools.partial(Unit, dtype=self.dtype, padding=self.padding, epsilon=self.epsilon)
        inner, y = self.expansion * x.shape[-1], x
        if self.expansion > 1 or self.widens:
            y = make(inner, 1, 1, name="expand")(y, train)
        y = make(inner, self.kernel, self.strides, depthwise=True, name="filter")(y, train)
        same = self.strides == 1 and x.shape[-1] == self.features
        project = make(self.features, 1, 1, activation="", name="project")
        return finish(project(y, train, finish(x) if same else None))


def _stage(
    x: Array,
    number: int,
    design: Design,
    train: bool,
    dtype: jnp.dtype,
    *,
    strides: int = 0,
    non_local: int = 0,
) -> Array:
    """Applies the blocks of stage `number` from 1 on, named "block6_0"; within a `__call__`.

    `strides` replaces those of the design, if it is not 0; a non-local block, "non_local3_1",
    follows each of the last `non_local` blocks.
    """
    row = design.stages[number - 1]
    for i in range(row.blocks):
        first = (strides or row.strides) if i == 0 else 1
        block = Block(
            *(row.channels, row.kernel, first, row.expansion, dtype, design.padding),
            *(design.epsilon, design.widens),
            name=f"block{number - 1}_{i}",
        )
        x = block(x, train)
        if i >= row.blocks - non_local:
            x = NonLocal(dtype=dtype, name=f"non_local{number}_{i}")(x, train)
    return x


def _unit(features: int, kernel: int, strides: int, design: Design, dtype, name: str) -> Unit:
    """The first or the last convolution, with its BatchNorm and ReLU6."""
    settings = {"padding": design.padding, "epsilon": design.epsilon, "name": name}
    return Unit(features, kernel, strides, dtype, **settings)


class LastStage(nn.Module):
    """Another copy of the last stage and convolution, with parameters of its own.

    Attributes:
      design: of the network.
      dtype: dtype of the computation; parameters are float32.
    """

    design: Design
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
        x = _stage(x, len(self.design.stages), self.design, train, self.dtype)
        return finish(_unit(self.design.head, 1, 1, self.design, self.dtype, "head")(x, train))


def make_maps(
    x: Array,
    design: Design,
    train: bool,
    dtype: jnp.dtype,
    *,
    last_stride: int,
    attention: tuple[int, ...] = (),
    non_local: tuple[int, ...] = (),
) -> list[Array]:
    """Applies a network of inverted residuals; called within a `__call__`.

    Args:
      x: normalised images, [N, H, W, 3].
      design: of the network.
      train: whether BatchNorm uses the batch's statistics, as in training.
      dtype: dtype of the computation; parameters are float32.
      last_stride: the strides of the last stage that has a stride in the design.
      attention: the stages, from 1, after which a mask weighs the map.
      non_local: of each stage, how many of its last blocks a non-local block follows; () has none.

    Returns:
      The maps after each stage, [N, h, w, C], and that after the last convolution.

    Raises:
      InputError: `non_local` does not fit the stages.
    """
    counts = check_non_local(non_local, [row.blocks for row in design.stages])
    last = max(i for i, row in enumerate(design.stages, start=1) if row.strides > 1)
    x, maps = _unit(design.stem, 3, 2, design, dtype, "stem")(x.astype(dtype), train), []
    for number, count in enumerate(counts, start=1):
        strides = last_stride if number == last else 0
        x = _stage(x, number, design, train, dtype, strides=strides, non_local=count)
        x = attend(x, number, attention, train, dtype)
        maps.append(x)
    return [*maps, finish(_unit(design.head, 1, 1, design, dtype, "head")(x, train))]
