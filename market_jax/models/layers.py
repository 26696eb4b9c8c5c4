"""Layers that several models share.

Convolutions and pooling go through `market_jax.kernels`, which have a fast path on a CPU; models
use the layers here and need not care.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from market_jax.kernels import convolution, fused, planned, remat
from market_jax.kernels.fused import Pending, Spec, finish
from market_jax.kernels.planned import Planned
from market_jax.kernels.pooling import max_pool, max_pool_with_indices, max_unpool
from market_jax.kernels.xla_convolution import LAYOUT
from market_jax.typing import Array

__all__ = [
    "CLIP",
    "HALF",
    "IMAGENET",
    "Conv",
    "Pending",
    "conv",
    "conv_transpose",
    "finish",
    "max_pool",
    "max_pool_with_indices",
    "max_unpool",
    "mean_pool",
    "normalize",
    "shares_of_cells",
]

# mean and deviation of the channels in [0, 1] that published networks were trained with
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def normalize(image: Array, pixels: tuple[Sequence[float], Sequence[float]] = IMAGENET) -> Array:
    """[N, H, W, 3] in [0, 1] -> normalised by a mean and a deviation of each channel.

    Args:
      image: RGB crops, [N, H, W, 3] float32 in [0, 1].
      pixels: mean and deviation; those of ImageNet as in torchvision.
    """
    mean, deviation = map(jnp.asarray, pixels)
    return (image - mean) / deviation


class Conv(nn.Module):
    """A convolution of [N, H, W, C], which may apply what is pending before it, and what follows.

    Parameters are those of `nn.Conv`. The bias is added in float32 whatever the dtype: its
    gradient, a sum over all pixels, is then taken in float32 too.

    Attributes:
      features: the number of output channels.
      kernel_size: rows and columns of the window.
      strides: rows and columns from one window to the next.
      padding: "SAME" for TensorFlow's, or ((rows before, after), (columns before, after)).
      input_dilation: above 1 in a transposed convolution.
      feature_group_count: the number of groups of channels.
      bias: whether a bias is added.
      dtype: dtype of the computation; parameters are float32.
      kernel_init: the initializer of the weights.
      bias_init: the initializer of the bias.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: str | Sequence[tuple[int, int]] = "SAME"
    input_dilation: tuple[int, int] = (1, 1)
    feature_group_count: int = 1
    bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(
        self,
        x: Array | Pending,
        *,
        affine: Array | None = None,
        activation: str = "",
        residual: Array | None = None,
        moments: bool = False,
    ) -> Array | tuple[Array, Array]:
        """Convolves a map.

        Args:
          x: the map, [N, H, W, C].
          affine: [2, features], scale and shift of the output (a BatchNorm in inference), which go
            into weights and bias; None without.
          activation: what is applied to the output, a name in `fused.ACTIVATIONS`.
          residual: what is added before that, of the output's shape, or None.
          moments: whether the output and its squares are summed over all pixels.

        Returns:
          [N, h, w, features] in `dtype`; with `moments` also [2, features] float32.
        """
        shape = (*self.kernel_size, x.shape[-1] // self.feature_group_count, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", self.bias_init, shape[-1:]) if self.bias else None
        groups = self.feature_group_count
        geometry, transposed = convolution.describe(
            x.shape[1:3], self.kernel_size, self.strides, self.padding, self.input_dilation, None,
            groups,
        )  # fmt: skip
        spec = Spec(geometry, transposed, "", activation, moments)
        fuses = geometry is not None and geometry.sees_map and x.shape[0] > 0
        fuses = fuses and convolution.is_fused(self.dtype)
        if affine is not None:
            kernel, bias = self._fold(spec, kernel, bias, affine, fuses)
        if not fuses:
            return self._compose(spec, x, kernel, bias, residual)
        residual = None if residual is None else residual.astype(self.dtype)
        if affine is not None:
            x = x if isinstance(x, Planned) else finish(x).astype(self.dtype)
            return planned.plan(x, spec, kernel, bias, residual)
        kernel = convolution.flip(kernel, groups) if transposed else kernel
        x = x if isinstance(x, Pending) else Pending(finish(x))
        spec = spec._replace(before=x.activation)
        arrays = (x.map.astype(self.dtype), x.affine, kernel, bias)
        if activation or residual is not None:
            y, sums = planned.infer(spec, *arrays, residual)
        else:
            y, sums = fused.convolve(spec, *arrays)
        y = remat.keep(y)
        return (y, sums) if moments else y

    def _compose(self, spec: Spec, x: Array | Pending, kernel, bias, residual):
        """The layer in JAX, by the convolution that is fast on this platform."""
        x = x if isinstance(x, Pending) else Pending(x)

        def multiply(z, w):
            return convolution.conv_general_dilated(
                z, w, self.strides, self.padding, self.input_dilation, None, LAYOUT,
                self.feature_group_count,
            )  # fmt: skip

        spec = spec._replace(before=x.activation)
        value = x.map.astype(self.dtype)
        y, sums = fused.plain(spec, value, x.affine, kernel, bias, residual, multiply)
        return (y, sums) if spec.moments else y

    def _fold(
        self, spec: Spec, kernel: Array, bias: Array | None, affine: Array, fuses: bool
    ) -> tuple[Array, Array]:
        """Weights and bias of a convolution with scaled and shifted output, see `norms.fold`."""
        if self.has_variable("folded", "kernel"):
            return self.get_variable("folded", "kernel"), self.get_variable("folded", "bias")
        scale, shift = affine
        kernel, bias = kernel * scale, shift + (0 if bias is None else bias * scale)
        if fuses and spec.transposed:
            kernel = convolution.flip(kernel, self.feature_group_count)
        if self.is_mutable_collection("folded") and not self.is_initializing():
            kept = planned.pack(spec, kernel, self.dtype) if fuses else kernel
            self.put_variable("folded", "kernel", kept)
            self.put_variable("folded", "bias", bias)
        return kernel, bias


def conv(features: int, kernel: int, strides: int = 1, **kwargs) -> Conv:
    """A convolution with a square window; the default padding is PyTorch's, (kernel - 1) // 2.

    Args:
      features: the number of output channels.
      kernel: rows and columns of the window.
      strides: rows and columns from one window to the next.
      **kwargs: further arguments of `Conv`.
    """
    settings = {"padding": (kernel - 1) // 2} | kwargs
    if isinstance(settings["padding"], int):
        settings["padding"] = ((settings["padding"],) * 2,) * 2
    return Conv(features, (kernel, kernel), strides=(strides,) * 2, **settings)


def conv_transpose(features: int, kernel: int, strides: int = 1, **kwargs) -> Conv:
    """The transpose of `conv`: [N, H, W, C] -> [N, H * strides, W * strides, features].

    As PyTorch's `ConvTranspose2d` with padding (kernel - 1) // 2 and output padding strides - 1,
    whose kernel is this one turned by 180 degrees. It is written as a convolution of the dilated
    input, because `nn.ConvTranspose` cannot be given another convolution function.

    Args:
      features: the number of output channels.
      kernel: rows and columns of the window; an odd number.
      strides: how many times larger the output is along each axis.
      **kwargs: further arguments of `Conv`.
    """
    before = kernel - 1 - (kernel - 1) // 2
    padding = [(before, before + strides - 1)] * 2
    return Conv(
        features, (kernel, kernel), padding=padding, input_dilation=(strides,) * 2, **kwargs
    )


def mean_pool(x: Array, window: tuple[int, int]) -> Array:
    """Mean over windows that do not overlap: [N, H, W, C] -> [N, H//p, W//q, C].

    Args:
      x: the map, [N, H, W, C].
      window: (p, q), rows and columns of a window; what does not fill one is left out.
    """
    n, h, w, c = x.shape
    p, q = window
    x = x[:, : h // p * p, : w // q * q]
    return jnp.mean(x.reshape(n, h // p, p, w // q, q, c), axis=(2, 4))


def shares_of_cells(size: int, cells: int) -> np.ndarray:
    """PyTorch's adaptive average pooling of one axis, as a matrix: [cells, size].

    Where the size is no multiple of the number of cells, neighbours overlap.

    Args:
      size: of the axis.
      cells: how many averages are taken, which together see the whole axis.
    """
    starts = np.arange(cells) * size // cells
    ends = -(-np.arange(1, cells + 1) * size // cells)
    at = np.arange(size)
    inside = (at >= starts[:, None]) & (at < ends[:, None])
    return inside / inside.sum(axis=1, keepdims=True)
