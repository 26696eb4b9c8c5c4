"""Source A's autoencoder: three VGG blocks, max-pooling with indices, and max-unpooling back."""

import flax.linen as nn
import jax.numpy as jnp

from market_jax.models.layers import (
    batch_norm,
    conv,
    conv_transpose,
    max_pool_with_indices,
    max_unpool,
)
from market_jax.typing import Array


class Model(nn.Module):
    """RGB crops in [0, 1] -> their reconstructions in (0, 1).

    Attributes:
      widths: channels of the encoder's blocks, each of which halves the map; the decoder
        mirrors them.

    Returns (from `__call__`):
      {"reconstruction": [N, H, W, 3], "embedding": [N, D] the innermost map's mean}, float32.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        x, switches = image.astype(self.dtype), []
        for width in self.widths:
            for _ in range(2):
                x = conv(width, 3, dtype=self.dtype)(x)
                x = nn.relu(batch_norm(train, dtype=self.dtype)(x))
            shape = x.shape[1:3]
            x, indices = max_pool_with_indices(x, (2, 2))
            switches.append((indices, shape))
        embedding = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        narrower = (image.shape[-1], *self.widths[:-1])
        for width, next_width in zip(self.widths[::-1], narrower[::-1], strict=True):
            x = max_unpool(x, *switches.pop(), (2, 2))
            x = batch_norm(train, dtype=self.dtype)(nn.relu(x))
            x = conv_transpose(width, 3, dtype=self.dtype)(x)
            x = batch_norm(train, dtype=self.dtype)(nn.relu(x))
            x = conv_transpose(next_width, 3, dtype=self.dtype)(x)
        reconstruction = nn.sigmoid(x.astype(jnp.float32))
        return {"reconstruction": reconstruction, "embedding": embedding}
