"""oneDNN's convolution and its gradients on a CPU, float32 and bfloat16, through `jax.ffi`.

A geometry is what is static about a convolution of x [N, H, W, C] with w [i, j, C/groups, K] to
y [N, h, w, K]; it has the fields shape, window, strides, padding, dilation, groups and output
(`market_jax.kernels.xla_convolution.Geometry`).
"""

import ctypes
import functools
import os
from importlib import metadata
from pathlib import Path

import jax
import numpy as np

__all__ = ["convolve", "input_gradient", "register", "weight_gradient"]

_NAME = "market_jax_convolution"


@functools.cache
def register() -> None:
    """Loads the library, once.

    Raises:
      OSError: it cannot be loaded.
    """
    # XLA has threads of its own on the same cores: OpenMP's must not spin while they compute
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    files = [p.locate() for p in metadata.files("onednn-cpu-gomp") if p.name == "libdnnl.so.3"]
    own = list(Path(__file__).parent.glob("_convolution*.so"))
    if not files or not own:
        raise OSError("a library of market_jax_onednn is missing; install it again")
    ctypes.CDLL(str(Path(files[0]).resolve()), mode=ctypes.RTLD_GLOBAL)
    handler = jax.ffi.pycapsule(ctypes.CDLL(str(own[0])).MarketJaxConvolution)
    jax.ffi.register_ffi_target(_NAME, handler, platform="cpu")


def _call(kind: int, geometry, shape: tuple[int, ...], a: jax.Array, b: jax.Array) -> jax.Array:
    register()
    (top, bottom), (left, right) = geometry.padding
    numbers = (geometry.groups, *geometry.strides, top, left, bottom, right, *geometry.dilation)
    call = jax.ffi.ffi_call(_NAME, jax.ShapeDtypeStruct(shape, a.dtype), vmap_method="sequential")
    return call(a, b, kind=np.int64(kind), geometry=np.array(numbers, np.int64))


def convolve(geometry, x: jax.Array, w: jax.Array) -> jax.Array:
    """Y from x and w."""
    return _call(0, geometry, (x.shape[0], *geometry.output, w.shape[-1]), x, w)


def input_gradient(geometry, w: jax.Array, y: jax.Array) -> jax.Array:
    """X from w and y."""
    channels = w.shape[2] * geometry.groups
    return _call(1, geometry, (y.shape[0], *geometry.shape, channels), w, y)


def weight_gradient(geometry, x: jax.Array, y: jax.Array) -> jax.Array:
    """W from x and y."""
    shape = (*geometry.window, x.shape[-1] // geometry.groups, y.shape[-1])
    return _call(2, geometry, shape, x, y)
