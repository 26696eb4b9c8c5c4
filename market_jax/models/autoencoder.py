"""The autoencoder of Facchinetti & Bellumat: max-pooling with indices, max-unpooling back."""

import functools

import flax.linen as nn
import jax.numpy as jnp

from market_jax.models.checks import check_halvings, check_widths
from market_jax.models.layers import conv, conv_transpose, finish, max_pool_with_indices, max_unpool
from market_jax.models.norms import batch_norm, normalized, unit
from market_jax.typing import Array, Width, WidthOrNone


class Model(nn.Module):
    """RGB crops in [0, 1] -> their reconstructions in (0, 1).

    Attributes:
      widths: channels of the encoder's blocks, each of which halves the map; the decoder
        mirrors them.
      switches: whether the decoder is told where each maximum was, so that detail gets past the
        innermost map; otherwise it repeats pixels.
      bottleneck: dimensions of a dense layer that the innermost map goes through; 0 has no such
        layer.
      dtype: dtype of the computation; parameters are float32.
    """

    widths: tuple[Width, ...] = (64, 128, 256)
    switches: bool = True
    bottleneck: WidthOrNone = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        """Reconstructs crops.

        Args:
          image: RGB crops, [N, H, W, 3] float32 in [0, 1].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          {"reconstruction": [N, H, W, 3], "target": the crop, "embedding": [N, D] the bottleneck,
          or without one the innermost map's mean}, float32.

        Raises:
          InputError: the image cannot be halved as often as `widths` asks, or there are no widths.
        """
        check_widths(self.widths)
        check_halvings(image.shape[1:3], len(self.widths))
        norm = functools.partial(batch_norm, train, dtype=self.dtype)
        x, pooled = image.astype(self.dtype), []
        for width in self.widths:
            for _ in range(2):
                x = unit(conv(width, 3, dtype=self.dtype), norm(), x, "relu")
            x = finish(x)
            shape = x.shape[1:3]
            x, indices = max_pool_with_indices(x, (2, 2))
            pooled.append((indices, shape))
        embedding = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        if self.bottleneck:
            shape = x.shape[1:]
            code = nn.Dense(self.bottleneck, dtype=self.dtype, name="code")(x.reshape(len(x), -1))
            embedding = code.astype(jnp.float32)
            cells = shape[0] * shape[1] * shape[2]
            x = nn.Dense(cells, dtype=self.dtype, name="decode")(code).reshape(-1, *shape)
        narrower = (image.shape[-1], *self.widths[:-1])
        for width, next_width in zip(self.widths[::-1], narrower[::-1], strict=True):
            indices, shape = pooled.pop()
            x = max_unpool(x, indices, shape, (2, 2)) if self.switches else _repeat(x)
            for features in (width, next_width):
                x = normalized(norm(), nn.relu(x))
                x = conv_transpose(features, 3, dtype=self.dtype)(x)
        reconstruction = nn.sigmoid(x.astype(jnp.float32))
        return {"reconstruction": reconstruction, "target": image, "embedding": embedding}


def _repeat(x: Array) -> Array:
    """Every pixel twice along each axis."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
