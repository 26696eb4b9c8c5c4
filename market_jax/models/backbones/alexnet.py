"""AlexNet (Krizhevsky 2014), as torchvision builds it."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from market_jax.errors import InputError
from market_jax.models.attention import attend
from market_jax.models.checks import check_classes, check_rate, check_stages
from market_jax.models.heads import pool_and_classify
from market_jax.models.layers import conv, max_pool, normalize
from market_jax.typing import Array

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


def _means(size: int) -> np.ndarray:
    """[6, size]: PyTorch's adaptive average pooling of one axis to six cells."""
    starts = np.arange(_CELLS) * size // _CELLS
    ends = -(-np.arange(1, _CELLS + 1) * size // _CELLS)
    at = np.arange(size)
    inside = (at >= starts[:, None]) & (at < ends[:, None])
    return inside / inside.sum(axis=1, keepdims=True)


def convolve(
    x: Array, number: int, dtype: jnp.dtype, attention: tuple[int, ...], train: bool
) -> Array:
    """A convolution, 1 to 5, with what follows it; called within a `__call__`.

    Args:
      x: [N, H, W, C].
      number: of the convolution.
      dtype: of the computation.
      attention: the convolutions after which a mask weighs the map.
      train: whether BatchNorm in a mask uses the batch's statistics.
    """
    kernel, stride, padding, width, pooled = _CONVOLUTIONS[number - 1]
    settings = {"padding": padding, "dtype": dtype, "name": f"conv{number}"}
    x = nn.relu(conv(width, kernel, stride, **settings)(x))
    x = attend(x, number, attention, train, dtype)
    return max_pool(x, (3, 3), strides=(2, 2)) if pooled else x


class LastStage(nn.Module):
    """The last convolution once more, with parameters of its own: [N, h, w, 256] -> map."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        return convolve(x, len(_CONVOLUTIONS), self.dtype, (), train)


class Model(nn.Module):
    """RGB crops in [0, 1], 63x63 or larger -> feature map, features, logits of linear heads.

    Attributes:
      classes: output name -> number of classes; one linear head each. "imagenet": 1000 is the
        published weights' own.
      dense: the two dense layers of 4,096 units are kept: "feature" is what the second gives, else
        it is the map pooled.
      dropout: before each of the dense layers.
      pooling: of the map, "average", "max" or "gem".
      attention: convolutions, 1 to 5, after which a mask weighs the map.

    Returns (from `__call__`):
      See `heads.pool_and_classify`; the map is [N, h, w, 256], the feature [N, 4096 or 256].

    Raises (from `__call__`):
      InputError: the image is too small, or a rate, a stage or a number of classes is out of range.
    """

    classes: Mapping[str, int] | None = None
    dense: bool = True
    dropout: float = 0.5
    pooling: str = "average"
    attention: tuple[int, ...] = ()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        check_rate(self.dropout, "dropout")
        check_stages(self.attention, len(_CONVOLUTIONS))
        if min(image.shape[1:3]) < _SMALLEST:
            height, width = image.shape[1:3]
            raise InputError(
                f"an image of {height}x{width} is too small; each side must be 63 or more"
            )
        x, maps = normalize(image).astype(self.dtype), []
        for number in range(1, len(_CONVOLUTIONS) + 1):
            x = convolve(x, number, self.dtype, self.attention, train)
            maps.append(x)
        classes = self.classes or {}
        check_classes(classes)
        if not self.dense:
            return pool_and_classify([*maps, x], classes, self.pooling)
        outputs = pool_and_classify([*maps, x], {}, self.pooling)
        rows, columns = _means(x.shape[1]), _means(x.shape[2])
        # channels first, as the published weights have them
        y = jnp.einsum("nhwc,ph,qw->ncpq", x, rows, columns).reshape(len(x), -1)
        for i in (1, 2):
            y = nn.Dropout(self.dropout, deterministic=not train)(y)
            y = nn.relu(nn.Dense(4096, dtype=self.dtype, name=f"dense{i}")(y.astype(self.dtype)))
        y = y.astype(jnp.float32)
        logits = {name: nn.Dense(k, name=f"head_{name}")(y) for name, k in classes.items()}
        return outputs | {"feature": y, "embedding": y} | logits

    @nn.nowrap
    def last_stage(self, name: str) -> LastStage:
        """The last stage once more, for a part model's `__call__`.

        It reads the output "stage4" and gives a map as "map" is. Its layers have the names that
        the backbone's own have, its parameters are its own, and no mask follows it.

        Args:
          name: of the copy, under which its parameters lie.
        """
        return LastStage(self.dtype, name=name)
