"""Inverted residuals, the blocks of small networks (Sandler et al. 2018), with ReLU6."""

import flax.linen as nn
import jax.numpy as jnp

from market_jax.models.layers import Pending, conv, finish
from market_jax.models.norms import batch_norm, unit
from market_jax.typing import Array


class Unit(nn.Module):
    """A convolution without bias, BatchNorm, and an activation.

    Attributes:
      features: the number of output channels.
      kernel: rows and columns of the window.
      strides: rows and columns from one window to the next.
      dtype: dtype of the computation; parameters are float32.
      padding: "SAME" for TensorFlow's padding, None for PyTorch's.
      depthwise: whether each channel is filtered on its own.
      epsilon: a number that BatchNorm adds to the variance.
      activation: what follows, a name in `fused.ACTIVATIONS`.
    """

    features: int
    kernel: int
    strides: int
    dtype: jnp.dtype
    padding: str | None = None
    depthwise: bool = False
    epsilon: float = 1e-3
    activation: str = "relu6"

    @nn.compact
    def __call__(
        self, x: Array | Pending, train: bool, residual: Array | None = None
    ) -> Array | Pending:
        """Applies the layers.

        Args:
          x: the map, [N, H, W, C].
          train: whether BatchNorm uses the batch's statistics, as in training.
          residual: what is added, of the output's shape, or None.

        Returns:
          The map after them, [N, h, w, features]; `finish` makes it an array.
        """
        groups = x.shape[-1] if self.depthwise else 1
        settings = {"feature_group_count": groups, "bias": False, "dtype": self.dtype}
        if self.padding:
            settings["padding"] = self.padding
        convolve = conv(self.features, self.kernel, self.strides, **settings, name="conv")
        norm = batch_norm(train, epsilon=self.epsilon, dtype=self.dtype, name="bn")
        return unit(convolve, norm, x, self.activation, residual)


class Block(nn.Module):
    """An inverted residual: widen by 1x1, filter each channel, narrow by 1x1.

    Attributes:
      features: the number of output channels.
      kernel: rows and columns of the filter's window.
      strides: rows and columns from one window to the next.
      expansion: how many times wider the map is inside the block.
      dtype: dtype of the computation; parameters are float32.
      padding: "SAME" for TensorFlow's padding, None for PyTorch's.
    """

    features: int
    kernel: int
    strides: int
    expansion: int
    dtype: jnp.dtype
    padding: str | None = None

    @nn.compact
    def __call__(self, x: Array | Pending, train: bool) -> Array:
        """Applies the block.

        Args:
          x: the map, [N, H, W, C].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          The map after it, [N, h, w, features].
        """
        inner, ways, y = self.expansion * x.shape[-1], (self.dtype, self.padding), x
        if self.expansion > 1:
            y = Unit(inner, 1, 1, *ways, name="expand")(y, train)
        y = Unit(inner, self.kernel, self.strides, *ways, depthwise=True, name="filter")(y, train)
        same = self.strides == 1 and x.shape[-1] == self.features
        project = Unit(self.features, 1, 1, *ways, activation="", name="project")
        return finish(project(y, train, finish(x) if same else None))
