"""AlexNet (Krizhevsky 2014), as torchvision builds it."""

from collections.abc import Mapping
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp

from market_jax.models.attention import attend
from market_jax.models.checks import check_smallest
from market_jax.models.heads import classify, pool_and_classify
from market_jax.models.layers import conv, max_pool, normalize, shares_of_cells
from market_jax.typing import Array, Classes, FractionBelow1, Range

# kernel, stride, padding, channels, whether a maximum is taken after it
_CONVOLUTIONS = (
    (11, 4, 2, 64, True),
    (5, 1, 2, 192, True),
    (3, 1, 1, 384, False),
    (3, 1, 1, 256, False),
    (3, 1, 1, 256, True),
)
_AT = (0, 3, 6, 8, 10)  # where torchvision's list has them
_SMALLEST = 63  # side of an image that leaves one cell
_CELLS = 6  # of a side of the map that the dense layers read

TORCH_NAMES = {
    "torchvision": (
        (r"^conv(\d)", lambda match: f"features.{_AT[int(match[1]) - 1]}"),
        (r"^dense1", "classifier.1"),
        (r"^dense2", "classifier.4"),
        (r"^head_imagenet", "classifier.6"),
    ),
}


def convolve(
    x: Array, number: int, dtype: jnp.dtype, attention: tuple[int, ...], train: bool
) -> Array:
    """Applies a convolution and the layers that follow it; called within a `__call__`.

    Args:
      x: the map, [N, H, W, C].
      number: the number of the convolution, 1 to 5.
      dtype: dtype of the computation.
      attention: the numbers of the convolutions after which a mask weighs the map.
      train: whether BatchNorm in a mask uses the batch's statistics, as in training.
    """
    kernel, stride, padding, width, pooled = _CONVOLUTIONS[number - 1]
    settings = {"padding": padding, "dtype": dtype, "name": f"conv{number}"}
    x = nn.relu(conv(width, kernel, stride, **settings)(x))
    x = attend(x, number, attention, train, dtype)
    return max_pool(x, (3, 3), strides=(2, 2)) if pooled else x


class LastStage(nn.Module):
    """Another copy of the last convolution, with parameters of its own: [N, h, w, 256] -> map.

    Attributes:
      dtype: dtype of the computation; parameters are float32.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Applies the convolution.

        Args:
          x: the map before it, [N, h, w, 256].
          train: not used.

        Returns:
          The map after it, [N, h, w, 256].
        """
        return convolve(x, len(_CONVOLUTIONS), self.dtype, (), train)


class Model(nn.Module):
    """RGB crops in [0, 1], 63x63 or larger -> feature map, features, logits of linear heads.

    Sides that are multiples of 32 are seen whole; of others, as in torchvision, the poolings may
    leave a last row or column of a map out.

    Attributes:
      classes: output name -> number of classes; each gets a linear head. Published weights have the
        head "imagenet" with 1000 classes.
      dense: whether there are the two dense layers of 4,096 units, the second of which gives
        "feature"; otherwise that is the pooled map.
      dropout: dropout rate before each of the dense layers, 0 or more and below 1.
      pooling: how the map is pooled, "average", "max" or "gem".
      attention: the convolutions, 1 to 5, after which a mask weighs the map.
      dtype: dtype of the computation; parameters are float32.
    """

    classes: Mapping[str, Classes] | None = None
    dense: bool = True
    dropout: FractionBelow1 = 0.5
    pooling: str = "average"
    attention: tuple[Annotated[int, Range(1, 5)], ...] = ()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        """Computes feature map, pooled features and logits.

        Args:
          image: RGB crops, [N, H, W, 3] float32 in [0, 1].
          train: whether dropout is active and BatchNorm uses the batch's statistics.

        Returns:
          See `heads.pool_and_classify`; the map is [N, h, w, 256], the feature [N, 4096 or 256].

        Raises:
          InputError: the image is too small, or there is no such pooling.
        """
        check_smallest(image.shape[1:3], _SMALLEST)
        x, maps = normalize(image).astype(self.dtype), []
        for number in range(1, len(_CONVOLUTIONS) + 1):
            x = convolve(x, number, self.dtype, self.attention, train)
            maps.append(x)
        classes = self.classes or {}
        if not self.dense:
            return pool_and_classify([*maps, x], classes, self.pooling)
        rows, columns = (shares_of_cells(size, _CELLS) for size in x.shape[1:3])
        # channels first, as the published weights have them
        y = jnp.einsum("nhwc,ph,qw->ncpq", x, rows, columns).reshape(x.shape[0], -1)
        for i in (1, 2):
            y = nn.Dropout(self.dropout, deterministic=not train)(y)
            y = nn.relu(nn.Dense(4096, dtype=self.dtype, name=f"dense{i}")(y.astype(self.dtype)))
        return classify([*maps, x], y, classes)

    @nn.nowrap
    def last_stage(self, name: str) -> LastStage:
        """Makes another copy of the last stage, for a part model's `__call__`.

        It takes the output "stage4" and returns a map like "map". Its layers have the same names as
        the backbone's, but parameters of their own, and no mask follows it.

        Args:
          name: the copy's name, under which its parameters are kept.
        """
        return LastStage(self.dtype, name=name)
