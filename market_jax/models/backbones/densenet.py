"""DenseNet-121 (Huang et al. 2017), as torchvision builds it."""

from collections.abc import Mapping
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp

from market_jax.models.attention import attend
from market_jax.models.checks import check_smallest
from market_jax.models.heads import pool_and_classify
from market_jax.models.layers import conv, max_pool, mean_pool, normalize
from market_jax.models.norms import batch_norm, normalized
from market_jax.typing import Array, Classes, Range

_LAYERS = (6, 12, 24, 16)  # of each stage
_GROWTH, _BOTTLENECK = 32, 4
_SMALLEST = 29  # side of an image that leaves one cell

_RULES = (
    (r"^(norm0|conv0|norm5)", r"features.\1"),
    (r"^stage(\d)_layer(\d+)", r"features.denseblock\1.denselayer\2"),
    (r"^transition(\d)", r"features.transition\1"),
    (r"^head_imagenet", "classifier"),
)
TORCH_NAMES = {  # timm's are torchvision's
    "torchvision": _RULES,
    "torchvision, published files": (*_RULES, (r"(denselayer.*\.(?:norm|conv))(\d)$", r"\1.\2")),
}


class Layer(nn.Module):
    """BatchNorm, ReLU, 1x1, BatchNorm, ReLU, 3x3; the 32 new channels are put beside the input's.

    Attributes:
      dtype: dtype of the computation; parameters are float32.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Applies the layer.

        Args:
          x: the map, [N, H, W, C].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          [N, H, W, C + 32].
        """
        y = x
        for i, (width, kernel) in enumerate(((_BOTTLENECK * _GROWTH, 1), (_GROWTH, 3)), start=1):
            y = normalized(batch_norm(train, dtype=self.dtype, name=f"norm{i}"), y, "relu")
            y = conv(width, kernel, bias=False, dtype=self.dtype, name=f"conv{i}")(y)
        return jnp.concatenate([x, y], axis=-1)


class Transition(nn.Module):
    """Halves the channels, and the rows and columns of the map.

    Attributes:
      dtype: dtype of the computation; parameters are float32.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Applies the transition.

        Args:
          x: the map, [N, H, W, C].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          [N, H//2, W//2, C//2].
        """
        x = normalized(batch_norm(train, dtype=self.dtype, name="norm"), x, "relu")
        x = conv(x.shape[-1] // 2, 1, bias=False, dtype=self.dtype, name="conv")(x)
        return mean_pool(x, (2, 2))


def dense_block(x: Array, number: int, train: bool, dtype: jnp.dtype) -> Array:
    """Applies the layers of a dense block; called within a `__call__`.

    Args:
      x: the map, [N, H, W, C].
      number: the number of the block, 1 to 4.
      train: whether BatchNorm uses the batch's statistics, as in training.
      dtype: dtype of the computation.
    """
    for i in range(1, _LAYERS[number - 1] + 1):
        x = Layer(dtype, name=f"stage{number}_layer{i}")(x, train)
    return x


class LastStage(nn.Module):
    """Another copy of the last transition and dense block, with parameters of its own.

    Attributes:
      dtype: dtype of the computation; parameters are float32.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Applies the stage.

        Args:
          x: the map before the stage, [N, H, W, 1024].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          The map after the stage, [N, h, w, D].
        """
        number = len(_LAYERS)
        x = Transition(self.dtype, name=f"transition{number - 1}")(x, train)
        x = dense_block(x, number, train, self.dtype)
        return nn.relu(batch_norm(train, dtype=self.dtype, name="norm5")(x))


class Model(nn.Module):
    """RGB crops in [0, 1], 29x29 or larger -> feature map, features, logits of linear heads.

    Sides that are multiples of 32 are seen whole; of others, as in torchvision, the transitions may
    leave a last row or column of a map out.

    Attributes:
      classes: output name -> number of classes; each gets a linear head. Published weights have the
        head "imagenet" with 1000 classes.
      pooling: how the map is pooled, "average", "max" or "gem".
      attention: the stages, 1 to 4, after which a mask weighs the map.
      dtype: dtype of the computation; parameters are float32.
    """

    classes: Mapping[str, Classes] | None = None
    pooling: str = "average"
    attention: tuple[Annotated[int, Range(1, 4)], ...] = ()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        """Computes feature map, pooled features and logits.

        Args:
          image: RGB crops, [N, H, W, 3] float32 in [0, 1].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          See `heads.pool_and_classify`; the map is [N, H/32, W/32, 1024].

        Raises:
          InputError: the image is too small, or there is no such pooling.
        """
        check_smallest(image.shape[1:3], _SMALLEST)
        x = normalize(image).astype(self.dtype)
        x = conv(64, 7, 2, bias=False, dtype=self.dtype, name="conv0")(x)
        x = nn.relu(batch_norm(train, dtype=self.dtype, name="norm0")(x))
        x = max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        maps = []
        for number in range(1, len(_LAYERS)):
            x = dense_block(x, number, train, self.dtype)
            x = attend(x, number, self.attention, train, self.dtype)
            maps.append(x)
            x = Transition(self.dtype, name=f"transition{number}")(x, train)
        x = dense_block(x, len(_LAYERS), train, self.dtype)
        x = attend(x, len(_LAYERS), self.attention, train, self.dtype)
        maps.append(x)
        x = nn.relu(batch_norm(train, dtype=self.dtype, name="norm5")(x))
        return pool_and_classify([*maps, x], self.classes or {}, self.pooling)

    @nn.nowrap
    def last_stage(self, name: str) -> LastStage:
        """Makes another copy of the last stage, for a part model's `__call__`.

        It takes the output "stage3" and returns a map like "map". Its layers have the same names as
        the backbone's, but parameters of their own, and no mask follows it.

        Args:
          name: the copy's name, under which its parameters are kept.
        """
        return LastStage(self.dtype, name=name)
