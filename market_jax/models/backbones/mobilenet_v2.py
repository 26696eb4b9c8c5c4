"""MobileNetV2 (Sandler et al. 2018): inverted residuals with linear bottlenecks.

Two ways to build it have published weights. torchvision and timm round channels to multiples of 8,
and the first block does not widen the map; torchreid rounds channels down, and the first block has
the convolution that would widen it, by a factor of 1.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import flax.linen as nn
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
from market_jax.models.layers import normalize
from market_jax.typing import Array, Classes, NonNegativeInt, Range

_STAGES = (  # of width 1
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(3, 3, 2, 6, 32),
    Stage(4, 3, 2, 6, 64),
    Stage(3, 3, 1, 6, 96),
    Stage(3, 3, 2, 6, 160),
    Stage(1, 3, 1, 6, 320),
)
_STEM, _HEAD = 32, 1280  # channels of the first and the last convolution


def _flat(match) -> str:
    """A block's number where the stem and all blocks are counted."""
    return f"features.{1 + position(_STAGES, *map(int, match.groups()))}.conv"


def _numbered(match) -> str:
    """A stage's number where the stem is the first one."""
    stage, block = map(int, match.groups())
    return f"conv{stage + 2}.{block}"


TORCH_NAMES = {
    "torchvision": (
        (r"^stem\.conv", "features.0.0"),
        (r"^stem\.bn", "features.0.1"),
        (r"^head\.conv", "features.18.0"),
        (r"^head\.bn", "features.18.1"),
        (r"^head_imagenet", "classifier.1"),
        (r"^block0_0\.filter\.conv", "features.1.conv.0.0"),
        (r"^block0_0\.filter\.bn", "features.1.conv.0.1"),
        (r"^block0_0\.project\.conv", "features.1.conv.1"),
        (r"^block0_0\.project\.bn", "features.1.conv.2"),
        (r"^block(\d)_(\d)", _flat),
        (r"expand\.conv", "0.0"),
        (r"expand\.bn", "0.1"),
        (r"filter\.conv", "1.0"),
        (r"filter\.bn", "1.1"),
        (r"project\.conv", "2"),
        (r"project\.bn", "3"),
    ),
    "timm": TIMM_NAMES,
    "torchreid": (
        (r"^stem", "conv1"),
        (r"^head\.", "conv9."),
        (r"^head_imagenet", "classifier"),
        (r"^block(\d)_(\d)", _numbered),
        (r"expand", "conv1"),
        (r"filter", "dwconv2"),
        (r"project\.conv", "conv3.0"),
        (r"project\.bn", "conv3.1"),
    ),
}


class Model(nn.Module):
    """RGB crops in [0, 1] -> feature map, pooled features, and the logits of linear heads.

    Attributes:
      width: how many times wider the stages are than those of the paper's first network; published
        weights have 1 or 1.4.
      build: whose way to build the network, "torchvision" (timm's too) or "torchreid".
      classes: output name -> number of classes; each gets a linear head. Published weights have the
        head "imagenet" with 1000 classes.
      pooling: how the map is pooled, "average", "max" or "gem".
      attention: the stages, 1 to 7, after which a mask weighs the map.
      non_local: of each of the seven stages, how many of its last blocks a non-local block follows;
        () has none.
      last_stride: the stride of stage 6, the last one with a stride; 1 keeps a larger map.
      dtype: dtype of the computation; parameters are float32.
    """

    width: Annotated[float, Range(0.25, 4)] = 1.0
    build: Literal["torchvision", "torchreid"] = "torchvision"
    classes: Mapping[str, Classes] | None = None
    pooling: str = "average"
    attention: tuple[Annotated[int, Range(1, 7)], ...] = ()
    non_local: tuple[NonNegativeInt, ...] = ()
    last_stride: Literal[1, 2] = 2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        """Computes feature map, pooled features and logits.

        Args:
          image: RGB crops, [N, H, W, 3] float32 in [0, 1].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          See `heads.pool_and_classify`; the map is [N, H/32, W/32, 1280 or more].

        Raises:
          InputError: there is no such pooling, or `non_local` does not fit the stages.
        """
        maps = make_maps(
            normalize(image),
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
        own = self.build == "torchreid"
        to_whole = int if own else round_channels
        rows = [row._replace(channels=to_whole(row.channels * self.width)) for row in _STAGES]
        head = to_whole(_HEAD * max(self.width, 1))
        return Design(to_whole(_STEM * self.width), tuple(rows), head, epsilon=1e-5, widens=own)
