"""Layers that several models share.

Convolutions and pooling go through `market_jax.kernels`, which have a fast path on a CPU; models
use the layers here and need not care.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from market_jax.kernels import convolution, fused
from market_jax.kernels.fused import Pending, Planned, Spec, finish
from market_jax.kernels.pooling import max_pool, max_pool_with_indices, max_unpool
from market_jax.kernels.xla_convolution import LAYOUT
from market_jax.typing import Array, PyTree

__all__ = [
    "BatchNorm",
    "Conv",
    "Pending",
    "batch_norm",
    "conv",
    "conv_transpose",
    "finish",
    "fold",
    "max_pool",
    "max_pool_with_indices",
    "max_unpool",
    "mean_pool",
    "normalize",
    "normalized",
    "unit",
]

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of its channels


def normalize(image: Array) -> Array:
    """[N, H, W, 3] in [0, 1] -> normalised by ImageNet's mean and deviation, as in torchvision."""
    mean, deviation = map(jnp.asarray, _IMAGENET)
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
        fuses = geometry is not None and x.shape[0] > 0 and convolution.is_fused(self.dtype)
        if affine is not None:
            kernel, bias = self._fold(spec, kernel, bias, affine, fuses)
        if not fuses:
            return self._compose(spec, x, kernel, bias, residual)
        residual = None if residual is None else residual.astype(self.dtype)
        if affine is not None:
            x = x if isinstance(x, Planned) else finish(x).astype(self.dtype)
            return fused.plan(x, spec, kernel, bias, residual)
        kernel = convolution.flip(kernel, groups) if transposed else kernel
        x = x if isinstance(x, Pending) else Pending(finish(x))
        spec = spec._replace(before=x.activation)
        arrays = (x.map.astype(self.dtype), x.affine, kernel, bias)
        if activation or residual is not None:
            y, sums = fused.infer(spec, *arrays, residual)
        else:
            y, sums = fused.convolve(spec, *arrays)
        y = convolution.named(y)
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
        """Weights and bias of a convolution whose output is scaled and shifted, see `fold`."""
        if self.has_variable("folded", "kernel"):
            return self.get_variable("folded", "kernel"), self.get_variable("folded", "bias")
        scale, shift = affine
        kernel, bias = kernel * scale, shift + (0 if bias is None else bias * scale)
        if fuses and spec.transposed:
            kernel = convolution.flip(kernel, self.feature_group_count)
        if self.is_mutable_collection("folded") and not self.is_initializing():
            kept = fused.pack(spec, kernel, self.dtype) if fuses else kernel
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


def batch_norm(train: bool, **kwargs) -> "BatchNorm":
    """BatchNorm with PyTorch's defaults (running average 0.9 of the old, epsilon 1e-5).

    Its statistics are those of the whole batch, over all devices, because the training step
    is one program over a sharded batch.

    Args:
      train: whether BatchNorm uses the batch's statistics, as in training.
      **kwargs: further arguments of `BatchNorm`.
    """
    return BatchNorm(use_running_average=not train, **kwargs)


class BatchNorm(nn.Module):
    """`nn.BatchNorm` over all axes but the last, with a gradient that needs less memory.

    Parameters, statistics and values are `nn.BatchNorm`'s, to rounding; in training it keeps its
    input only for the backward pass; automatic differentiation would keep the centred input too.

    Attributes:
      use_running_average: whether to normalise by the running statistics, which then stay.
      momentum: the share of the old value in an update of the running statistics.
      epsilon: a number that is added to the variance.
      dtype: dtype of the output; the statistics are float32.
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def _variables(self, channels: int):
        """Scale, bias, and the running mean and variance."""
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        return scale, bias, (mean, var)

    def _update(self, running, moments: tuple[Array, Array]) -> None:
        if not self.is_initializing():
            for variable, new in zip(running, moments, strict=True):
                new = lax.stop_gradient(new)
                variable.value = self.momentum * variable.value + (1 - self.momentum) * new

    def __call__(self, x: Array) -> Array:
        """Normalises an array.

        Args:
          x: [..., C].

        Returns:
          The same shape, in `dtype`.
        """
        scale, bias, running = self._variables(x.shape[-1])
        if self.use_running_average:
            scale, shift = _affine(scale, bias, *(v.value for v in running), self.epsilon)
            return (x * scale + shift).astype(self.dtype)
        self._update(running, _moments(lax.stop_gradient(x)))
        return _normalize(x, scale, bias, self.epsilon).astype(self.dtype)

    def affine(self, channels: int, sums: Array | None = None, count: int = 1) -> Array:
        """What the layer does to a map, as scale and shift of each channel.

        Args:
          channels: of the map.
          sums: [2, C] float32, the map and its squares summed; not needed in inference.
          count: the number of pixels that were summed.

        Returns:
          [2, C] float32.
        """
        scale, bias, running = self._variables(channels)
        moments = tuple(v.value for v in running)
        if not self.use_running_average:
            mean = sums[0] / count
            moments = (mean, jnp.maximum(sums[1] / count - jnp.square(mean), 0))
            self._update(running, moments)
        return _affine(scale, bias, *moments, self.epsilon)


def _affine(scale: Array, bias: Array, mean: Array, var: Array, epsilon: float) -> Array:
    factor = scale * lax.rsqrt(var + epsilon)
    return jnp.stack([factor, bias - mean * factor])


def unit(
    conv: Conv,
    norm: BatchNorm,
    x: Array | Pending,
    activation: str = "",
    residual: Array | None = None,
) -> Array | Pending:
    """A convolution, its BatchNorm, a residual and an activation; called within a `__call__`.

    In training the optional package leaves what follows the convolution to the next one; in
    inference BatchNorm goes into the convolution's weights.

    Args:
      conv: the convolution.
      norm: its BatchNorm.
      x: the map, [N, H, W, C].
      activation: a name in `fused.ACTIVATIONS`.
      residual: what is added before the activation, of the output's shape, or None.

    Returns:
      [N, h, w, features]; `finish` makes it an array.
    """
    if norm.use_running_average:
        affine = norm.affine(conv.features)
        return conv(x, affine=affine, activation=activation, residual=residual)
    if not convolution.is_fused(conv.dtype):
        return finish(norm(conv(x)), residual, activation)
    y, sums = conv(x, moments=True)
    affine = norm.affine(conv.features, sums, y.size // y.shape[-1])
    if residual is None:
        return Pending(y, affine, activation)
    return finish(Pending(y, affine), residual, activation)


def normalized(norm: BatchNorm, x: Array, activation: str = "") -> Array | Pending:
    """BatchNorm and an activation, for a convolution that follows; called within a `__call__`.

    Args:
      norm: the BatchNorm.
      x: the map, [N, H, W, C].
      activation: a name in `fused.ACTIVATIONS`.

    Returns:
      [N, H, W, C]; `finish` makes it an array.
    """
    if not norm.use_running_average and not convolution.is_fused(norm.dtype):
        return finish(norm(x), activation=activation)
    sums = None if norm.use_running_average else fused.moments(x)
    affine = norm.affine(x.shape[-1], sums, x.size // x.shape[-1])
    return Pending(x.astype(norm.dtype), affine, activation)


def fold(apply: Callable, variables: PyTree, image_size: tuple[int, int]) -> PyTree:
    """The collection "folded" of a model: its convolutions that a BatchNorm has gone into.

    It is for inference: a model that is given it beside its variables takes those convolutions and
    does not look at the BatchNorms again.

    Args:
      apply: the model's apply.
      variables: of the model.
      image_size: rows and columns of an image that the model takes.

    Returns:
      {"folded": ...}, or {} where there is no such BatchNorm.
    """
    image = jnp.zeros((1, *image_size, 3), jnp.float32)
    return apply(variables, image, mutable=["folded"])[1]


def _moments(x: Array) -> tuple[Array, Array]:
    """Mean and variance over all axes but the last, float32."""
    x, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    return mean, jnp.maximum(jnp.mean(jnp.square(x), axes) - jnp.square(mean), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalize(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """Normalised by its own moments: float32, of the shape of x."""
    return _normalize_forward(x, scale, bias, epsilon)[0]


def _normalize_forward(x, scale, bias, epsilon):
    mean, var = _moments(x)
    inverse = lax.rsqrt(var + epsilon)
    y = x.astype(jnp.float32) * (inverse * scale) + (bias - mean * inverse * scale)
    return y, (x, scale, mean, inverse)


def _normalize_backward(epsilon, saved, g):
    x, scale, mean, inverse = saved
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    wide = x.astype(jnp.float32)
    d_bias = jnp.sum(g, axes)
    d_scale = inverse * (jnp.sum(g * wide, axes) - mean * d_bias)
    # x enters through itself, the mean and the variance: linear in g and x for each channel
    by_g = scale * inverse
    by_x = -by_g * inverse * d_scale / count
    d_x = by_g * g + by_x * wide - (by_g * d_bias / count + by_x * mean)
    return d_x.astype(x.dtype), d_scale, d_bias


_normalize.defvjp(_normalize_forward, _normalize_backward)


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
