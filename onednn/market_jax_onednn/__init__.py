"""oneDNN's convolutions for market_jax on CPUs, with what stands around them, through `jax.ffi`.

A batch goes through a convolution in pieces that fit into a core's cache: scale, shift and
activation before it, bias, residual and activation behind it, and the sums that BatchNorm wants,
without a pass over the memory of their own. float32 and bfloat16; everything is summed in float32.

A geometry is what is static about a convolution of x [N, H, W, C] with w [i, j, C/groups, K] to
y [N, h, w, K]; it has the fields shape, window, strides, padding, dilation, groups and output
(`market_jax.kernels.xla_convolution.Geometry`). What an operation is not given is None.
"""

import ctypes
import functools
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "ACTIVATIONS",
    "backward",
    "block",
    "finish",
    "finish_gradient",
    "forward",
    "pack",
    "register",
]

ACTIVATIONS = ("", "relu", "relu6", "leaky_relu")  # by their numbers in kernels.h
_HANDLERS = ("Pack", "Forward", "Block", "Backward", "Finish", "FinishGradient")


def register() -> None:
    """Loads the library, once.

    Raises:
      OSError: it cannot be loaded, or this CPU has no AVX2.
    """
    _library()


@functools.cache
def _library() -> ctypes.CDLL:
    files = [p.locate() for p in metadata.files("onednn-cpu-gomp") if p.name == "libdnnl.so.3"]
    own = list(Path(__file__).parent.glob("_library*.so"))
    if not files or not own:
        raise OSError("a library of market_jax_onednn is missing; install it again")
    ctypes.CDLL(str(Path(files[0]).resolve()), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(own[0]))
    if not library.MarketJaxSupported():
        raise OSError("market_jax_onednn needs a CPU with AVX2")
    for name in _HANDLERS:
        handler = jax.ffi.pycapsule(getattr(library, f"MarketJax{name}"))
        jax.ffi.register_ffi_target(f"market_jax_{name}", handler, platform="cpu")
    library.MarketJaxPackedSize.restype = ctypes.c_int64
    return library


def _call(name: str, results, *arguments: jax.Array | None, **attributes):
    register()
    results = [jax.ShapeDtypeStruct((0,), jnp.float32) if r is None else r for r in results]
    arguments = [jnp.zeros((0,), jnp.float32) if a is None else a for a in arguments]
    call = jax.ffi.ffi_call(f"market_jax_{name}", results, vmap_method="sequential")
    return call(*arguments, **attributes)


@functools.cache
def supports(dtype: jnp.dtype) -> bool:
    """Whether oneDNN convolves maps of a dtype on this CPU: bfloat16 needs AVX-512.

    Args:
      dtype: float32 or bfloat16.
    """
    register()
    map_, window, ones = (8, 8, 16), (3, 3), (1,) * 9  # and one group, strides, padding, dilation
    numbers = (*map_, *map_, *window, *ones)
    size = _library().MarketJaxPackedSize(
        int(dtype == jnp.bfloat16), (ctypes.c_int64 * len(numbers))(*numbers)
    )
    return size >= 0


def _numbers(geometry) -> np.ndarray:
    (top, bottom), (left, right) = geometry.padding
    numbers = (geometry.groups, *geometry.strides, top, left, bottom, right, *geometry.dilation)
    return np.array((*numbers, *geometry.window), np.int64)


def _kind(activation: str) -> np.int64:
    return np.int64(ACTIVATIONS.index(activation))


def pack(geometry, w: jax.Array) -> jax.Array:
    """Weights as oneDNN wants them, for `forward`, so that they are not moved at every call.

    Args:
      geometry: of the convolution.
      w: the weights, [i, j, C/groups, K], in the dtype of the maps.

    Returns:
      Bytes, uint8 [size].
    """
    (top, bottom), (left, right) = geometry.padding
    channels = w.shape[2] * geometry.groups
    numbers = (
        *geometry.shape, channels, *geometry.output, w.shape[-1], *geometry.window, geometry.groups,
        *geometry.strides, top, left, bottom, right, *geometry.dilation,
    )  # fmt: skip
    size = _library().MarketJaxPackedSize(
        int(w.dtype == jnp.bfloat16), (ctypes.c_int64 * len(numbers))(*numbers)
    )
    result = jax.ShapeDtypeStruct((size,), jnp.uint8)
    return _call("Pack", (result,), w, geometry=np.array(numbers, np.int64))[0]


def forward(
    geometry, transposed: bool, x, affine, w, bias, residual, *, before="", after="", slope=0.0,
    moments=False,
):  # fmt: skip
    """A convolution, or its transpose, with what is before and behind it.

    Args:
      geometry: of the convolution, even where its transpose is meant.
      transposed: whether y's role is that of the input.
      x: the input, [N, H, W, C].
      affine: [2, C] float32, scale and shift of each channel before the activation `before`; None
        where the input is not scaled.
      w: the weights in the dtype of x, or what `pack` made of them; of a depthwise convolution in
        float32.
      bias: [K] float32, or None; needed with packed weights.
      residual: what is added to the output, of its shape and dtype, or None.
      before: name of the activation before the convolution, one of `ACTIVATIONS`.
      after: name of the activation behind bias and residual.
      slope: that of leaky_relu, on negative numbers.
      moments: whether the output and its squares are summed.

    Returns:
      The output, and [2, K] float32 sums, or [0] without `moments`.
    """
    if transposed:
        size, channels = geometry.shape, w.shape[2] * geometry.groups
    else:
        size, channels = geometry.output, (bias if w.ndim == 1 else w).shape[-1]
    y = jax.ShapeDtypeStruct((x.shape[0], *size, channels), x.dtype)
    sums = jax.ShapeDtypeStruct((2, channels), jnp.float32) if moments else None
    return _call(
        "Forward", (y, sums), x, affine, w, bias, residual, geometry=_numbers(geometry),
        transposed=transposed, before=_kind(before), after=_kind(after), slope=np.float32(slope),
    )  # fmt: skip


def block(
    geometry, x, expand, expand_bias, filtering, filter_bias, project, project_bias, residual, *,
    before="", after="", slope=0.0,
):  # fmt: skip
    """An inverted residual in inference: 1x1, depthwise, 1x1, a strip of the map at a time.

    Args:
      geometry: of the depthwise convolution, one that has a loop of its own.
      x: the input, [N, H, W, C].
      expand: [1, 1, C, E], in the dtype of x; None where the input is wide already.
      expand_bias: [E] float32, or None.
      filtering: [i, j, 1, E] float32.
      filter_bias: [E] float32.
      project: [1, 1, E, K], in the dtype of x.
      project_bias: [K] float32.
      residual: what is added to the output, of its shape and dtype, or None.
      before: name of the activation behind the first convolution.
      after: name of the one behind the depthwise convolution.
      slope: that of leaky_relu.

    Returns:
      [N, h, w, K].
    """
    y = jax.ShapeDtypeStruct((x.shape[0], *geometry.output, project.shape[-1]), x.dtype)
    return _call(
        "Block", (y,), x, expand, expand_bias, filtering, filter_bias, project, project_bias,
        residual, geometry=_numbers(geometry), before=_kind(before), after=_kind(after),
        slope=np.float32(slope),
    )[0]  # fmt: skip


def backward(
    geometry, transposed: bool, x, affine, w, y, gy, gsums, *, before="", slope=0.0,
    wanted=(True, True, True, False),
):  # fmt: skip
    """Gradients of `forward` without residual and activation behind it.

    Args:
      geometry: as for `forward`.
      transposed: as for `forward`.
      x: the input.
      affine: as for `forward`.
      w: the weights.
      y: the output; None without `gsums`.
      gy: the gradient by the output.
      gsums: [2, K] float32, the gradient by the sums, or None.
      before: as for `forward`.
      slope: as for `forward`.
      wanted: which gradients are: by x, affine, w and bias.

    Returns:
      The gradients by x, affine, w (float32) and bias (float32); [0] where one is not wanted.
    """
    kinds = (
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        jax.ShapeDtypeStruct((2, x.shape[-1]), jnp.float32),
        jax.ShapeDtypeStruct(w.shape, jnp.float32),
        jax.ShapeDtypeStruct((gy.shape[-1],), jnp.float32),
    )
    results = [kind if want else None for kind, want in zip(kinds, wanted, strict=True)]
    return _call(
        "Backward", results, x, affine, w, y, gy, gsums, geometry=_numbers(geometry),
        transposed=transposed, before=_kind(before), slope=np.float32(slope),
    )  # fmt: skip


def finish(x, affine, residual, *, activation="", slope=0.0):
    """activation(scale * x + shift + residual), in one pass.

    Args:
      x: [..., C].
      affine: [2, C] float32, scale and shift.
      residual: of the shape and dtype of x, or None.
      activation: one of `ACTIVATIONS`.
      slope: that of leaky_relu.
    """
    result = jax.ShapeDtypeStruct(x.shape, x.dtype)
    numbers = {"kind": _kind(activation), "slope": np.float32(slope)}
    return _call("Finish", (result,), x, affine, residual, **numbers)[0]


def finish_gradient(x, affine, z, gz, *, residual: bool, activation="", slope=0.0):
    """Gradients of `finish` by x, affine and, where wanted, the residual (else [0]).

    Args:
      x: as for `finish`.
      affine: as for `finish`.
      z: what `finish` returned.
      gz: the gradient by it.
      residual: whether the gradient by the residual is wanted.
      activation: as for `finish`.
      slope: as for `finish`.
    """
    same = jax.ShapeDtypeStruct(x.shape, x.dtype)
    results = (same, jax.ShapeDtypeStruct(affine.shape, jnp.float32), same if residual else None)
    numbers = {"kind": _kind(activation), "slope": np.float32(slope)}
    return _call("FinishGradient", results, x, affine, z, gz, **numbers)
