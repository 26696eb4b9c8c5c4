"""A convolutional variational autoencoder (Kingma & Welling 2014), after Facchinetti & Bellumat.

The decoder ends in one more convolution, without an activation.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from market_jax.models.checks import check_halvings, check_widths
from market_jax.models.layers import Pending, conv, conv_transpose, finish
from market_jax.models.norms import batch_norm, unit
from market_jax.typing import Array, Classes, Width

_CHANNELS = 3


def _unit(layer, x: Array | Pending, train: bool, dtype: jnp.dtype) -> Array | Pending:
    return unit(layer, batch_norm(train, dtype=dtype), x, "leaky_relu")


class Encoder(nn.Module):
    """[N, H, W, 3] -> mean and log variance [N, latent] of the posterior, float32.

    Attributes:
      widths: channels of the convolutions, each of which halves the map.
      latent: dimensions of the latent.
      dtype: dtype of the computation; parameters are float32.
    """

    widths: tuple[int, ...]
    latent: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        """Encodes crops.

        Args:
          x: RGB crops, [N, H, W, 3] float32 in [-1, 1].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          Mean and log variance of the posterior, [N, latent] float32 each.
        """
        x = x.astype(self.dtype)
        for width in self.widths:
            x = _unit(conv(width, 3, 2, dtype=self.dtype), x, train, self.dtype)
        x = finish(x).reshape(x.shape[0], -1)
        mean, logvar = (
            nn.Dense(self.latent, dtype=self.dtype, name=name)(x).astype(jnp.float32)
            for name in ("mean", "logvar")
        )
        return mean, logvar


class Decoder(nn.Module):
    """[N, latent] -> [N, H, W, 3], float32.

    Attributes:
      widths: channels of the encoder's convolutions, which the decoder mirrors.
      dtype: dtype of the computation; parameters are float32.
    """

    widths: tuple[int, ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, latent: Array, image_size: tuple[int, int], train: bool) -> Array:
        """Decodes latents.

        Args:
          latent: [N, D].
          image_size: (H, W) of the images.
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          Images [N, H, W, 3] in the range [-1, 1], float32.
        """
        times = 2 ** len(self.widths)
        shape = (image_size[0] // times, image_size[1] // times, self.widths[-1])
        cells = shape[0] * shape[1] * shape[2]
        x = nn.Dense(cells, dtype=self.dtype, name="latent")(latent.astype(self.dtype))
        x = x.reshape(len(x), *shape)
        for width in (*self.widths[-2::-1], self.widths[0]):
            x = _unit(conv_transpose(width, 3, 2, dtype=self.dtype), x, train, self.dtype)
        return conv(_CHANNELS, 3, dtype=self.dtype, name="last")(x).astype(jnp.float32)


class Model(nn.Module):
    """RGB crops in [0, 1] -> their reconstructions in the range [-1, 1], through a Gaussian latent.

    Attributes:
      widths: channels of the encoder's convolutions, each of which halves the map; the decoder
        mirrors them.
      latent: dimensions of the latent.
      classes: output name -> number of classes; each gets a linear head on the latent.
      dtype: dtype of the computation; parameters are float32.
    """

    widths: tuple[Width, ...] = (32, 64, 128, 256)
    latent: Width = 128
    classes: Mapping[str, Classes] | None = None
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Makes the parts, so that each can be called alone."""
        self.encoder = Encoder(self.widths, self.latent, self.dtype)
        self.decoder = Decoder(self.widths, self.dtype)
        self.heads = {name: nn.Dense(k) for name, k in (self.classes or {}).items()}

    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        """Reconstructs crops.

        Args:
          image: RGB crops, [N, H, W, 3] float32 in [0, 1].
          train: whether BatchNorm uses the batch's statistics, and the latent is drawn (random
            stream "sample"); otherwise the decoder and the heads see its mean.

        Returns:
          {"reconstruction": [N, H, W, 3], "target": [N, H, W, 3] the crop in [-1, 1],
          "mean": [N, D], "logvar": [N, D], "embedding": [N, D] the mean, name of an output: [N, K]
          logits}, float32.

        Raises:
          InputError: the image cannot be halved as often as `widths` asks, or there are no widths.
        """
        check_widths(self.widths)
        size = image.shape[1:3]
        check_halvings(size, len(self.widths))
        target = 2 * image - 1
        mean, logvar = self.encoder(target, train)
        latent = mean
        if train:
            noise = jax.random.normal(self.make_rng("sample"), mean.shape)
            latent = mean + jnp.exp(0.5 * logvar) * noise
        outputs = {
            "reconstruction": self.decoder(latent, size, train),
            "target": target,
            "mean": mean,
            "logvar": logvar,
            "embedding": mean,
        }
        return outputs | {name: head(latent) for name, head in self.heads.items()}

    def decode(self, latent: Array, image_size: tuple[int, int]) -> Array:
        """Decodes latents; called as `model.apply(..., method="decode")`.

        Args:
          latent: [N, D].
          image_size: (H, W) of the images.

        Returns:
          Images [N, H, W, 3] in the range [-1, 1], float32.
        """
        return self.decoder(latent, image_size, False)
