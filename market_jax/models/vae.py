"""A convolutional variational autoencoder (Kingma & Welling 2014), as source A describes its own.

The decoder ends in one more convolution, without an activation.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from market_jax.models.layers import batch_norm, conv, conv_transpose
from market_jax.typing import Array, InputError


class Model(nn.Module):
    """RGB crops in [-1, 1] -> their reconstructions, through a Gaussian latent.

    Attributes:
      widths: channels of the encoder's convolutions, each of which halves the map; the decoder
        mirrors them.
      latent: dimensions of the latent.

    Returns (from `__call__`):
      {"reconstruction": [N, H, W, 3], "mean": [N, D], "logvar": [N, D], "embedding": [N, D] the
      mean}, float32. In training the decoder sees a draw of the latent (random stream "sample"),
      otherwise its mean.

    Raises:
      InputError: the image cannot be halved so often.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256)
    latent: int = 128
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        n, h, w, channels = image.shape
        if h % 2 ** len(self.widths) or w % 2 ** len(self.widths):
            raise InputError(
                f"an image of {h}x{w} cannot be halved {len(self.widths)} times; "
                "change data.image_size or model.widths"
            )

        def unit(layer, x):
            x = batch_norm(train, dtype=self.dtype)(layer(x))
            return nn.leaky_relu(x, 0.01)

        x = image.astype(self.dtype)
        for width in self.widths:
            x = unit(conv(width, 3, 2, dtype=self.dtype), x)
        shape = x.shape[1:]
        x = x.reshape(n, -1)
        mean = nn.Dense(self.latent, dtype=self.dtype, name="mean")(x).astype(jnp.float32)
        logvar = nn.Dense(self.latent, dtype=self.dtype, name="logvar")(x).astype(jnp.float32)
        latent = mean
        if train:
            noise = jax.random.normal(self.make_rng("sample"), mean.shape)
            latent = mean + jnp.exp(0.5 * logvar) * noise
        x = nn.Dense(x.shape[-1], dtype=self.dtype, name="decode")(latent.astype(self.dtype))
        x = x.reshape(n, *shape)
        for width in (*self.widths[-2::-1], self.widths[0]):
            x = unit(conv_transpose(width, 3, 2, dtype=self.dtype), x)
        x = conv(channels, 3, dtype=self.dtype, name="last")(x).astype(jnp.float32)
        return {"reconstruction": x, "mean": mean, "logvar": logvar, "embedding": mean}
