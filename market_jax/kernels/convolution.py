"""Convolutions that are fast on a CPU too, instead of `lax.conv_general_dilated`.

A convolution y = x * w is the derivative by y of a form that is linear in x, w and y. Its
gradients by x and w are the other two derivatives, and the gradients of each of the three are made
of the other two. So there are three functions here, and each can be computed in two ways:

- "lax": XLA's own convolution, which accelerators always compile.
- "jax": on a CPU, XLA's own convolution, but written differently where that is slow.

`using` chooses. There is a third way, "onednn", in which the optional package `market_jax_onednn`
computes a layer as a whole (`market_jax.kernels.fused`); what stands alone is then computed as by
"jax". "auto" is "onednn" on a CPU with the package, else "jax".
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from absl import logging
from jax import lax

from market_jax.errors import InputError
from market_jax.kernels import cpu_convolution, remat, xla_convolution
from market_jax.kernels.windows import Pair
from market_jax.kernels.xla_convolution import LAYOUT, Geometry
from market_jax.typing import Array

__all__ = [
    "IMPLEMENTATIONS",
    "Applied",
    "applying",
    "conv_general_dilated",
    "describe",
    "flip",
    "has_onednn",
    "is_fused",
    "onednn_computes",
    "using",
]

IMPLEMENTATIONS = ("auto", "onednn", "jax", "lax")
_implementation = contextvars.ContextVar("convolution", default="auto")


def _check(name: str) -> None:
    if name not in IMPLEMENTATIONS:
        raise InputError(f"convolution is {name!r}; known: {', '.join(IMPLEMENTATIONS)}")
    if name == "onednn" and not has_onednn():
        raise InputError("convolution is 'onednn', which needs: pip install ./onednn")


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """A context in which convolutions are traced with the named implementation.

    Functions that were jitted before keep the implementation that they were traced with.

    Args:
      name: one of `IMPLEMENTATIONS`.

    Raises:
      InputError: the name is unknown, or "onednn" is not installed.
    """
    _check(name)
    token = _implementation.set(name)
    try:
        yield
    finally:
        _implementation.reset(token)


@dataclasses.dataclass(frozen=True)
class Applied:
    """A function whose convolutions are computed by a named implementation.

    Attributes:
      implementation: one of `IMPLEMENTATIONS`.
      apply: the function.
      inputs: the columns of a batch that it takes beside the pictures, see `models.inputs`.
    """

    implementation: str
    apply: Callable
    inputs: tuple[str, ...] = ()

    def __call__(self, *args, **kwargs):
        with using(self.implementation):
            return self.apply(*args, **kwargs)


def applying(name: str, apply: Callable, inputs: tuple[str, ...] = ()) -> Applied:
    """Wraps a function so that its convolutions are computed by the named implementation.

    Args:
      name: one of `IMPLEMENTATIONS`.
      apply: the function, such as a module's `apply`.
      inputs: the columns of a batch that it takes beside the pictures, see `models.inputs`.

    Raises:
      InputError: as for `using`.
    """
    _check(name)
    return Applied(name, apply, inputs)


@functools.cache
def has_onednn() -> bool:
    """Whether the optional package is installed, new enough, and can be loaded."""
    try:
        import market_jax_onednn

        market_jax_onednn.register()
    except ImportError:
        return False
    except OSError as error:
        logging.warning("oneDNN is installed but cannot be loaded, so XLA computes: %s", error)
        return False
    if not hasattr(market_jax_onednn, "supports"):
        logging.warning("market_jax_onednn is too old; install it again: pip install ./onednn")
        return False
    return True


def is_fused(dtype: jnp.dtype) -> bool:
    """Whether layers of this dtype are computed as a whole, by the optional package.

    Args:
      dtype: of the maps.

    Raises:
      InputError: the package is asked for by name and does not compute this dtype on this CPU.
    """
    wanted = _implementation.get() in ("auto", "onednn") and has_onednn()
    if not wanted or jax.default_backend() != "cpu" or dtype not in (jnp.float32, jnp.bfloat16):
        return False
    if not onednn_computes(dtype) and _implementation.get() == "onednn":
        raise InputError(
            f"convolution is 'onednn', which does not compute {jnp.dtype(dtype).name} on this CPU "
            "(it needs AVX-512): --config.convolution=auto or --config.dtype=float32"
        )
    return onednn_computes(dtype)


@functools.cache
def onednn_computes(dtype: jnp.dtype) -> bool:
    """Whether the optional package is installed and computes this dtype on this CPU.

    Args:
      dtype: of the maps, float32 or bfloat16.
    """
    if not has_onednn():
        return False
    import market_jax_onednn

    return market_jax_onednn.supports(dtype)


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[Pair],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers=None,
    feature_group_count: int = 1,
    **kwargs,
) -> Array:
    """`lax.conv_general_dilated` up to rounding, for `nn.Conv(conv_general_dilated=...)`.

    Two-dimensional convolutions of [N, H, W, C] with [h, w, C, K], as in `nn.Conv`, take the fast
    path; everything else goes to lax as it is.

    Args:
      lhs: the map, [N, H, W, C].
      rhs: the window's weights, [h, w, C / feature_group_count, K].
      window_strides: rows and columns from one window to the next.
      padding: "SAME", "VALID", or ((rows before, after), (columns before, after)).
      lhs_dilation: dilation of the map; above 1 in a transposed convolution.
      rhs_dilation: dilation of the window.
      dimension_numbers: the meaning of the axes, as in lax.
      feature_group_count: the number of groups of channels.
      **kwargs: other arguments of lax; if one is not None, lax computes the convolution.

    Returns:
      [N, rows, columns, K], in the dtype of `lhs` and `rhs`.
    """
    fallback = functools.partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        **kwargs,
    )
    if _implementation.get() == "lax" or not _is_plain(lhs, rhs, dimension_numbers, kwargs):
        return remat.keep(fallback(lhs, rhs))
    geometry, transposed = describe(
        lhs.shape[1:3], rhs.shape[:2], window_strides, padding, lhs_dilation, rhs_dilation,
        feature_group_count,
    )  # fmt: skip
    if geometry is None:
        return remat.keep(fallback(lhs, rhs))
    if transposed:
        return remat.keep(_input_gradient(geometry, flip(rhs, feature_group_count), lhs))
    return remat.keep(_convolve(geometry, lhs, rhs))


def _is_plain(lhs: Array, rhs: Array, dimension_numbers, kwargs: dict) -> bool:
    """True for what `Geometry` can describe."""
    if lhs.ndim != 4 or lhs.dtype != rhs.dtype or lhs.size == 0:
        return False
    if lhs.dtype not in (jnp.float32, jnp.bfloat16) or any(v is not None for v in kwargs.values()):
        return False
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    return numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, LAYOUT)


def describe(
    shape, window, strides, padding, lhs_dilation=None, rhs_dilation=None, groups: int = 1
) -> tuple[Geometry | None, bool]:
    """Describes a convolution as lax has it.

    Args:
      shape: rows and columns of the map.
      window: rows and columns of the window.
      strides: as for `conv_general_dilated`, and so are the others.
      padding: "SAME", "VALID" or numbers.
      lhs_dilation: dilation of the map.
      rhs_dilation: dilation of the window.
      groups: the number of groups of channels.

    Returns:
      (geometry, False), or (that of the convolution whose transpose this is, True); (None, False)
      where there is neither.
    """
    strides = tuple(strides)
    lhs_dilation, dilation = (tuple(d) if d else (1, 1) for d in (lhs_dilation, rhs_dilation))
    reach = tuple((k - 1) * d for k, d in zip(window, dilation, strict=True))
    if isinstance(padding, str):
        if lhs_dilation != (1, 1):
            return None, False
        extent = [r + 1 for r in reach]
        padding = lax.padtype_to_pads(shape, extent, strides, padding)
    padding = tuple((int(a), int(b)) for a, b in padding)
    transposed = lhs_dilation != (1, 1)
    if transposed:
        if strides != (1, 1):
            return None, False
        shape = tuple(
            (n - 1) * s + 1 + sum(sides) - r
            for n, s, sides, r in zip(shape, lhs_dilation, padding, reach, strict=True)
        )
        padding = tuple((r - a, r - b) for (a, b), r in zip(padding, reach, strict=True))
        strides = lhs_dilation
    geometry = Geometry(tuple(shape), tuple(window), strides, padding, dilation, groups)
    good = min(shape) > 0 and min(map(min, padding)) >= 0 and min(geometry.output) > 0
    return (geometry, transposed) if good else (None, False)


def flip(w: Array, groups: int) -> Array:
    """The kernel of the transpose: turned by 180 degrees, inputs and outputs exchanged.

    Args:
      w: the kernel, [i, j, C/groups, K].
      groups: the number of groups of channels.
    """
    h, k, c, o = w.shape
    w = w[::-1, ::-1].reshape(h, k, c, groups, o // groups)
    return w.transpose(0, 1, 4, 3, 2).reshape(h, k, o // groups, groups * c)


# The three derivatives. Each: (geometry, two of x, w and y) -> the third's.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(geometry: Geometry, x: Array, w: Array) -> Array:
    return _compute("convolve", geometry, x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _input_gradient(geometry: Geometry, w: Array, y: Array) -> Array:
    return _compute("input_gradient", geometry, w, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weight_gradient(geometry: Geometry, x: Array, y: Array) -> Array:
    return _compute("weight_gradient", geometry, x, y)


def _save(function):
    return lambda geometry, a, b: (function(geometry, a, b), (a, b))


_convolve.defvjp(
    _save(_convolve),
    lambda geometry, xw, y: (
        _input_gradient(geometry, xw[1], y),
        _weight_gradient(geometry, xw[0], y),
    ),
)
_input_gradient.defvjp(
    _save(_input_gradient),
    lambda geometry, wy, x: (
        _weight_gradient(geometry, x, wy[1]),
        _convolve(geometry, x, wy[0]),
    ),
)
_weight_gradient.defvjp(
    _save(_weight_gradient),
    lambda geometry, xy, w: (
        _input_gradient(geometry, w, xy[1]),
        _convolve(geometry, xy[0], w),
    ),
)


def _compute(what: str, geometry: Geometry, a: Array, b: Array) -> Array:
    """Which way is taken is decided when the computation is lowered for its platform."""
    cpu, default = (
        functools.partial(getattr(module, what), geometry)
        for module in (cpu_convolution, xla_convolution)
    )
    return lax.platform_dependent(a, b, cpu=cpu, default=default)
