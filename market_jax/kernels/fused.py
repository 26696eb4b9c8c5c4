"""A convolution with what stands before and behind it, in one pass over the memory on a CPU.

    z = activation(scale * x + shift)
    y = activation(z * w + bias + residual)
    sums = of y, and of its squares, which BatchNorm makes its statistics of

A small network's step is mostly the traffic of such maps, not arithmetic. The optional package
`market_jax_onednn` computes these lines together, and their gradients together; `plain` is
the same in JAX. A map whose BatchNorm and activation the next convolution will apply is `Pending`:
it is never written.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from market_jax.kernels import batched, xla_convolution
from market_jax.kernels.xla_convolution import Geometry
from market_jax.typing import Array

__all__ = [
    "ACTIVATIONS",
    "Pending",
    "Spec",
    "activate",
    "convolve",
    "differentiable",
    "finish",
    "is_depthwise",
    "moments",
    "plain",
    "prepare_weights",
]

SLOPE = 0.01  # of leaky_relu, PyTorch's default
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "": lambda x: x,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": functools.partial(jax.nn.leaky_relu, negative_slope=SLOPE),
}


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("map", "affine"), meta_fields=("activation",)
)
@dataclasses.dataclass(frozen=True)
class Pending:
    """A map to which something is still to be applied: activation(scale * map + shift).

    Attributes:
      map: [N, H, W, C].
      affine: [2, C] float32, scale and shift of each channel, or None.
      activation: a name in `ACTIVATIONS`.
    """

    map: Array
    affine: Array | None = None
    activation: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the map."""
        return self.map.shape


class Spec(NamedTuple):
    """What is static about a convolution and what stands around it.

    Attributes:
      geometry: of the convolution, also where its transpose is meant.
      transposed: whether x is what the convolution makes of y.
      before: the name of the activation before the convolution.
      after: the name of the activation behind it.
      moments: whether y and its squares are summed.
    """

    geometry: Geometry
    transposed: bool = False
    before: str = ""
    after: str = ""
    moments: bool = False


def is_depthwise(spec: Spec, w: Array) -> bool:
    """Whether the package has a loop of its own for it, which takes float32 weights.

    Args:
      spec: what is static.
      w: the weights.
    """
    if w.ndim == 1:
        return False
    g = spec.geometry
    (rows, columns), (down, right) = g.window, g.strides
    square = rows == columns and rows in (3, 5) and down == right and down <= 2
    own = g.groups > 1 and w.shape[2:] == (1, g.groups) and g.dilation == (1, 1)
    return own and square and g.sees_map and not spec.transposed


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def activate(x: Array, affine: Array | None, activation: str, residual: Array | None = None):
    """activation(scale * x + shift + residual), computed in float32 or wider, in the dtype of x.

    Args:
      x: [..., C].
      affine: [2, C] float32, scale and shift, or None.
      activation: a name in `ACTIVATIONS`.
      residual: of the shape of x, or None.
    """
    u = _wide(x) if affine is not None or residual is not None else x
    if affine is not None:
        u = u * affine[0] + affine[1]
    if residual is not None:
        u = u + residual
    return ACTIVATIONS[activation](u).astype(x.dtype)


def plain(spec: Spec, x, affine, w, bias, residual, multiply: Callable | None = None):
    """The convolution with what stands around it, in JAX.

    Args:
      spec: what is static.
      x: the input, [N, H, W, C].
      affine: [2, C] float32, or None.
      w: the weights, [i, j, C/groups, K] of the convolution or of the one that is transposed.
      bias: [K] float32, or None.
      residual: of the output's shape, or None.
      multiply: (z, w) -> their convolution; by default XLA's.

    Returns:
      The output [N, h, w, K] in the dtype of x, and [2, K] float32 sums, or None.
    """
    z = activate(x, affine, spec.before)
    if multiply is None:
        y = _multiply(spec, z, w.astype(x.dtype))
    else:
        y = multiply(z, w.astype(x.dtype))
    if bias is not None or residual is not None:
        added = _wide(y)
        added = added if bias is None else added + bias
        y = (added if residual is None else added + residual).astype(x.dtype)
    y = ACTIVATIONS[spec.after](y)
    return y, moments(y) if spec.moments else None


def moments(x: Array) -> Array:
    """The sums over all pixels of a map and of its squares, [2, C] float32.

    Args:
      x: the map, [N, H, W, C].
    """
    x = x.astype(jnp.float32)
    return jnp.stack([jnp.sum(x, (0, 1, 2)), jnp.sum(jnp.square(x), (0, 1, 2))])


def _multiply(spec: Spec, z: Array, w: Array) -> Array:
    if spec.transposed:
        return xla_convolution.input_gradient(spec.geometry, w, z)
    return xla_convolution.convolve(spec.geometry, z, w)


def differentiable(plainly: Callable) -> Callable:
    """Lets an operation (spec, *arrays) of the package have the gradient of the same in JAX.

    Args:
      plainly: the same operation in JAX.
    """

    def decorate(function: Callable) -> Callable:
        wrapped = jax.custom_vjp(function, nondiff_argnums=(0,))

        def backward(spec, arrays, cotangents):
            return jax.vjp(functools.partial(plainly, spec), *arrays)[1](cotangents)

        wrapped.defvjp(lambda spec, *arrays: (function(spec, *arrays), arrays), backward)
        return wrapped

    return decorate


def prepare_weights(spec: Spec, x: Array, w: Array) -> Array:
    """The weights in the dtype that the package wants.

    Args:
      spec: what is static.
      x: the input.
      w: the weights, or packed ones.
    """
    if w.ndim == 1:  # packed
        return w
    return w.astype(jnp.float32 if is_depthwise(spec, w) else x.dtype)


def _plain_backward(spec: Spec, x, affine, w, bias, y, gy, gsums):
    """What `_backward` computes, in JAX: the gradients by x, affine, w and bias."""
    del y
    function = functools.partial(plain, spec)
    _, pull = jax.vjp(lambda *arrays: function(*arrays, None), x, affine, w, bias)
    return pull((gy, gsums))


@differentiable(_plain_backward)
def _backward(spec: Spec, x, affine, w, bias, y, gy, gsums):
    return _call_backward(spec, (True,) * 4, x, affine, w, bias, y, gy, gsums)


def _call_backward(spec: Spec, wanted, x, affine, w, bias, y, gy, gsums):
    """The wanted gradients by x, affine, w and bias; None for the others."""
    given = [a is not None for a in (x, affine, w, bias)]
    wanted = [a and b for a, b in zip(wanted, given, strict=True)]
    wanted[0] |= wanted[1]  # they are computed together
    inputs = (x, affine, prepare_weights(spec, x, w), y, gy, gsums)
    gradients = batched.backward(spec, SLOPE, wanted, *inputs)
    return tuple(g if want else None for g, want in zip(gradients, wanted, strict=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def convolve(spec: Spec, x, affine, w, bias) -> tuple[Array, Array | None]:
    """`plain` without a residual, by the optional package, and so are its gradients.

    Args:
      spec: what is static; there is no activation behind it.
      x: the input, [N, H, W, C], float32 or bfloat16.
      affine: [2, C] float32, or None.
      w: the weights, float32.
      bias: [K] float32, or None.

    Returns:
      The output [N, h, w, K] in the dtype of x, and [2, K] float32 sums, or None.
    """
    return batched.forward(spec, SLOPE, x, affine, prepare_weights(spec, x, w), bias, None)


def _convolve_forward(spec: Spec, *primals):
    # the gradient by the images, which nobody wants, is a tenth of a small network's step
    wanted = tuple(() if p is None or p.perturbed else None for p in primals)
    x, affine, w, bias = (None if p is None else p.value for p in primals)
    y, sums = convolve(spec, x, affine, w, bias)
    return (y, sums), (wanted, x, affine, w, bias, y if spec.moments else None)


def _convolve_backward(spec: Spec, saved, cotangents):
    wanted, x, affine, w, bias, y = saved
    gy, gsums = (_instantiate(c) for c in cotangents)
    if all(want is not None for want in wanted):
        return _backward(spec, x, affine, w, bias, y, gy, gsums)
    wanted = tuple(want is not None for want in wanted)
    return _call_backward(spec, wanted, x, affine, w, bias, y, gy, gsums)


def _instantiate(cotangent):
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return jnp.zeros(cotangent.shape, cotangent.dtype)
    return cotangent


convolve.defvjp(_convolve_forward, _convolve_backward, symbolic_zeros=True)


def finish(x: Array | Pending, residual: Array | None = None, activation: str = "") -> Array:
    """The map as an array, with all that is pending, and a residual and an activation behind it.

    Args:
      x: the map, [N, H, W, C]; with a residual or an activation none may be pending.
      residual: what is added, of its shape, or None.
      activation: a name in `ACTIVATIONS`, what is applied last.
    """
    if hasattr(x, "compute"):  # a `planned.Planned`
        x = x.compute()
    if not isinstance(x, Pending):
        return activate(x, None, activation, residual)
    if x.activation and (residual is not None or activation):
        return activate(finish(x), None, activation, residual)
    if x.affine is None:
        return activate(x.map, None, x.activation or activation, residual)
    residual = None if residual is None else residual.astype(x.map.dtype)
    return _finish(x.activation or activation, x.map, x.affine, residual)


def _plain_finish(activation: str, x, affine, residual):
    return activate(x, affine, activation, residual)


def _plain_finish_gradient(spec, x, affine, z, gz):
    del z
    activation, residual = spec
    value = jnp.zeros_like(x) if residual else None
    _, pull = jax.vjp(functools.partial(_plain_finish, activation), x, affine, value)
    return pull(gz)


@differentiable(_plain_finish_gradient)
def _finish_gradient(spec, x, affine, z, gz):
    activation, residual = spec
    gx, gaffine, gresidual = batched.finish_gradient(activation, SLOPE, residual, x, affine, z, gz)
    return gx, gaffine, gresidual if residual else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _finish(activation: str, x, affine, residual):
    return batched.finish(activation, SLOPE, x, affine, residual)


def _finish_forward(activation: str, x, affine, residual):
    z = _finish(activation, x, affine, residual)
    return z, (x, affine, z, () if residual is not None else None)


def _finish_backward(activation: str, saved, gz):
    x, affine, z, residual = saved
    return _finish_gradient((activation, residual is not None), x, affine, z, gz)


_finish.defvjp(_finish_forward, _finish_backward)
