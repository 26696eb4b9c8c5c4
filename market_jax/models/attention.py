"""Attention: masks, which weigh a map, x * (1 + mask); and non-local blocks, which add to it."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from market_jax.errors import InputError
from market_jax.models.layers import conv, conv_transpose, max_pool
from market_jax.models.norms import batch_norm, unit
from market_jax.registry import choose
from market_jax.typing import Array, WidthOrNone

MASKS = {
    # the authors' own: one sum over all cells, which leaves each mask near 0
    "softmax_all": lambda x: jax.nn.softmax(x.reshape(x.shape[0], -1)).reshape(x.shape),
    "softmax": lambda x: jax.nn.softmax(x, axis=(1, 2)),  # of each channel, over the places
    "sigmoid": jax.nn.sigmoid,
}


class ResidualAttention(nn.Module):
    """A mask from transposed convolutions and convolutions (Cunegatti, Diprima & Farina).

    Attributes:
      mask: the last activation, "softmax_all", "softmax" or "sigmoid".
      widths: channels of the transposed convolutions; the convolutions lead back to those of the
        input.
      dtype: dtype of the computation; parameters are float32.
    """

    mask: str = "sigmoid"
    widths: tuple[int, int] = (256, 128)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[Array, Array]:
        """Weighs a map by its mask.

        Args:
          x: the map, [N, H, W, C].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          The weighed map, and the mask, both [N, H, W, C].

        Raises:
          InputError: there is no such mask.
        """
        outer, inner = self.widths
        layers = [conv_transpose(w, 3, dtype=self.dtype) for w in (outer, inner)]
        layers += [conv(w, 3, dtype=self.dtype) for w in (outer, x.shape[-1])]
        y = x
        for layer in layers:
            y = jnp.tanh(batch_norm(train, dtype=self.dtype)(layer(y)))
        mask = choose(self.mask, MASKS, "attention mask")(y.astype(jnp.float32))
        return (x * (1 + mask)).astype(self.dtype), mask


class StageAttention(nn.Module):
    """A mask between a backbone's stages: down, up, sigmoid (Wang et al. 2017, shortened).

    The last layer begins with weights of 0 and a bias of -3, so that the mask begins at 0.05
    everywhere and published weights still get nearly the maps that they were trained on.

    Attributes:
      reduction: the map's channels over those inside the mask, which are at least 8.
      dtype: dtype of the computation; parameters are float32.
    """

    reduction: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Weighs a map by its mask.

        Args:
          x: the map, [N, H, W, C].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          The weighed map, [N, H, W, C].
        """
        channels = x.shape[-1]
        y = conv(max(channels // self.reduction, 8), 1, bias=False, dtype=self.dtype)(x)
        y = nn.relu(batch_norm(train, dtype=self.dtype)(y))
        down = max_pool(y, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        down = conv(y.shape[-1], 3, bias=False, dtype=self.dtype)(down)
        down = nn.relu(batch_norm(train, dtype=self.dtype)(down))
        y = y + jax.image.resize(down, y.shape, "linear")
        y = conv(
            channels,
            1,
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            bias_init=nn.initializers.constant(-3.0),
            name="mask",
        )(y)
        return x * (1 + nn.sigmoid(y))


def attend(x: Array, stage: int, attention: tuple[int, ...], train: bool, dtype) -> Array:
    """Weighs a backbone's map after a stage, if it has a mask; called within a `__call__`.

    Args:
      x: the map, [N, H, W, C].
      stage: the number of the stage that the map comes from, from 1.
      attention: the stages with a mask; after others the map is returned as it is.
      train: whether BatchNorm uses the batch's statistics, as in training.
      dtype: dtype of the computation.
    """
    if stage not in attention:
        return x
    return StageAttention(dtype=dtype, name=f"attention{stage}")(x, train)


class NonLocal(nn.Module):
    """Adds to each place of a map what all places say to it (Wang et al. 2018, the dot product).

    With three 1x1 convolutions theta, phi and g, a place p gets the mean over all places q of
    theta(p) . phi(q) * g(q), through a 1x1 convolution and a BatchNorm whose scale begins at 0, so
    that the block begins as the identity.

    Attributes:
      inner: channels of theta, phi and g; 0 has half of the map's, at least 1. AGW (Ye et al. 2021)
        means half too, but its public code has 1.
      dtype: dtype of the computation; parameters are float32.
    """

    inner: WidthOrNone = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Applies the block.

        Args:
          x: the map, [N, H, W, C].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          [N, H, W, C].
        """
        n, h, w, channels = x.shape
        inner = self.inner or max(channels // 2, 1)
        theta, phi, g = (
            conv(inner, 1, dtype=self.dtype, name=name)(x).reshape(n, h * w, inner)
            for name in ("theta", "phi", "g")
        )
        # the order of the products is free, for no softmax stands between them
        y = jnp.einsum("npi,nqi,nqj->npj", theta, phi, g / (h * w)).reshape(n, h, w, inner)
        norm = batch_norm(train, scale_init=nn.initializers.zeros, dtype=self.dtype, name="bn")
        return unit(conv(channels, 1, dtype=self.dtype, name="out"), norm, y, residual=x)


def check_non_local(non_local: Sequence[int], blocks: Sequence[int]) -> Sequence[int]:
    """The number of non-local blocks of each stage, checked.

    Args:
      non_local: of each stage, how many of its last blocks a non-local block follows; () for none.
      blocks: how many blocks each stage has.

    Raises:
      InputError: there are more stages or fewer, or a stage has not so many blocks.
    """
    counts = tuple(non_local) or (0,) * len(blocks)
    fits = len(counts) == len(blocks) and all(a <= b for a, b in zip(counts, blocks, strict=True))
    if not fits:
        raise InputError(
            f"non_local is {tuple(non_local)}; it must be () or a number for each stage, at most "
            f"its blocks: {tuple(blocks)}"
        )
    return counts
