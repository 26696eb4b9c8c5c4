"""EfficientNet-Lite: EfficientNet (Tan & Le 2019) without squeeze-and-excitation, with ReLU6.

Larger variants are wider and deeper, but for the stem and the last convolution, which keep their
widths, and the first and last stage, which keep their one block. The published weights were
trained with TensorFlow's padding, which is not symmetric if a stride is 2.
"""

import functools
import math
from collections.abc import Mapping
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from market_jax.models.heads import pool_and_classify
from market_jax.models.inverted_residuals import (
    TIMM_NAMES,
    Design,
    LastStage,
    Stage,
    make_maps,
    position,
    round_channels,
)
from market_jax.typing import Array, Classes, NonNegativeInt, PyTree, Range
from market_jax.weights import pretrained

Variant = Literal[0, 1, 2, 3, 4]


_STAGES = (  # of variant 0
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
_SCALES = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2), 3: (1.2, 1.4), 4: (1.4, 1.8)}
_MEAN, _STD = 127 / 255, 128 / 255


def _stages(variant: int) -> tuple[Stage, ...]:
    """The stages of a variant: channels and blocks times its two numbers in `_SCALES`."""
    wider, deeper = _SCALES[variant]
    rows = []
    for row in _STAGES:
        blocks = row.blocks if row in (_STAGES[0], _STAGES[-1]) else math.ceil(row.blocks * deeper)
        rows.append(row._replace(blocks=blocks, channels=round_channels(row.channels * wider)))
    return tuple(rows)


def _flat(match, variant: int) -> str:
    """A block's number where blocks are counted through all stages."""
    return f"_blocks.{position(_stages(variant), *map(int, match.groups()))}"


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
    "timm": TIMM_NAMES,
}


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
        maps = make_maps(
            (image - _MEAN) / _STD,
            self._design(),
            train,
            self.dtype,
            last_stride=self.last_stride,
            attention=self.attention,
            non_local=self.non_local,
        )
        return pool_and_classify(maps, self.classes or {}, self.pooling)

    @nn.nowrap
    def last_stage(self, name: str) -> LastStage:
        """Makes another copy of the last stage, for a part model's `__call__`.

        It takes the output "stage6" and returns a map like "map". Its layers have the same names as
        the backbone's, but parameters of their own, and no mask or non-local block follows it.

        Args:
          name: the copy's name, under which its parameters are kept.
        """
        return LastStage(self._design(), self.dtype, name=name)

    @nn.nowrap
    def _design(self) -> Design:
        padding = "SAME" if self.same_padding else None
        return Design(32, _stages(self.variant), 1280, epsilon=1e-3, padding=padding)


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
