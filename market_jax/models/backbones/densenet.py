"""DenseNet-121 (Huang et al. 2017), as torchvision builds it."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from market_jax.models.attention import attend
from market_jax.models.heads import pool_and_classify
from market_jax.models.layers import batch_norm, conv, max_pool, mean_pool, normalize
from market_jax.typing import Array

_LAYERS = (6, 12, 24, 16)  # of each stage
_GROWTH, _BOTTLENECK = 32, 4

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
    """BatchNorm, ReLU, 1x1; BatchNorm, ReLU, 3x3; its input and its 32 channels side by side."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = x
        for i, (width, kernel) in enumerate(((_BOTTLENECK * _GROWTH, 1), (_GROWTH, 3)), start=1):
            y = nn.relu(batch_norm(train, dtype=self.dtype, name=f"norm{i}")(y))
            y = conv(width, kernel, bias=False, dtype=self.dtype, name=f"conv{i}")(y)
        return jnp.concatenate([x, y], axis=-1)


class Transition(nn.Module):
    """Half the channels, half the map."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = nn.relu(batch_norm(train, dtype=self.dtype, name="norm")(x))
        x = conv(x.shape[-1] // 2, 1, bias=False, dtype=self.dtype, name="conv")(x)
        return mean_pool(x, (2, 2))


class Model(nn.Module):
    """RGB crops in [0, 1] -> feature map, pooled features, and the logits of linear heads.

    Attributes:
      classes: output name -> number of classes; one linear head each. "imagenet": 1000 is the
        published weights' own.
      pooling: of the map, "average", "max" or "gem".
      attention: stages, 1 to 4, after which a mask weighs the map.

    Returns (from `__call__`):
      {"map": [N, H/32, W/32, 1024], "embedding": [N, 1024], name: [N, K] logits}, float32.
    """

    classes: Mapping[str, int] | None = None
    pooling: str = "average"
    attention: tuple[int, ...] = ()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        x = normalize(image).astype(self.dtype)
        x = conv(64, 7, 2, bias=False, dtype=self.dtype, name="conv0")(x)
        x = nn.relu(batch_norm(train, dtype=self.dtype, name="norm0")(x))
        x = max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, layers in enumerate(_LAYERS, start=1):
            for i in range(1, layers + 1):
                x = Layer(self.dtype, name=f"stage{stage}_layer{i}")(x, train)
            x = attend(x, stage, self.attention, train, self.dtype)
            if stage < len(_LAYERS):
                x = Transition(self.dtype, name=f"transition{stage}")(x, train)
        x = nn.relu(batch_norm(train, dtype=self.dtype, name="norm5")(x))
        return pool_and_classify(x, self.classes or {}, self.pooling)
