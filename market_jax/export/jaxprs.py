"""From a jaxpr, the program that JAX traces of a function, to a graph of ONNX nodes.

What follows from constants alone is computed now: weights come out as they are used.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from market_jax.errors import InputError
from market_jax.export import elementwise, products, shaping, slicing
from market_jax.export.functions import IMAGES, Function, for_any_batch, images_like
from market_jax.export.graph import Graph, Value, arrange, constant, expand

__all__ = ["PRIMITIVES", "trace"]

PRIMITIVES = {
    **elementwise.PRIMITIVES,
    **products.PRIMITIVES,
    **shaping.PRIMITIVES,
    **slicing.PRIMITIVES,
}
_CALLS = {  # primitives that call a function -> the parameter that holds it
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "jit": "jaxpr",
    "remat2": "jaxpr",
}


def trace(function: Function, image_size: tuple[int, int]) -> tuple[Graph, dict[str, Value]]:
    """The graph of a function, and its outputs by name, as tensors with JAX's order of axes.

    Args:
      function: uint8 images [N, H, W, 3] -> named outputs [N, ...], as of `make_function`.
      image_size: (height, width) of the images.

    Raises:
      InputError: the function computes something for which no ONNX is written here.
    """
    images = images_like(image_size)
    with for_any_batch():
        closed, outputs = jax.make_jaxpr(function, return_shape=True)(images)
    graph = Graph(IMAGES, images.shape[0])
    order = tuple(range(len(images.shape)))
    given = [Value(images.shape, np.dtype(images.dtype), order, IMAGES)]
    found = _convert(graph, closed, given, [True] * len(closed.jaxpr.outvars))
    straight = {}
    for name, shape, value in zip(sorted(outputs), jax.tree.leaves(outputs), found, strict=True):
        value = expand(graph, value, shape.shape)
        order = tuple(range(value.rank))
        straight[name] = Value(value.shape, value.dtype, order, arrange(graph, value, order))
    return graph, straight


def _convert(
    graph: Graph, closed: ClosedJaxpr, given: Sequence[Value], wanted: Sequence[bool]
) -> list[Value | None]:
    """The results of a jaxpr; None where they are not wanted and not there."""
    jaxpr = closed.jaxpr
    values: dict[Any, Value] = dict(zip(jaxpr.constvars, map(constant, closed.consts), strict=True))
    values |= zip(jaxpr.invars, given, strict=True)

    def read(atom) -> Value | None:
        if isinstance(atom, Literal):
            return constant(np.asarray(atom.val, atom.aval.dtype))
        return values.get(atom)

    for equation, needed in _needed(jaxpr, wanted):
        operands = [read(atom) for atom in equation.invars]
        found = _apply(graph, equation, operands, needed)
        values |= zip(equation.outvars, found, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _needed(jaxpr: Jaxpr, wanted: Sequence[bool]) -> list[tuple[Any, list[bool]]]:
    """The equations that the wanted results need, and which of their results are."""
    atoms = zip(jaxpr.outvars, wanted, strict=True)
    needed = {atom for atom, want in atoms if want and not isinstance(atom, Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        used = [variable in needed for variable in equation.outvars]
        if any(used):
            kept.append((equation, used))
            needed |= {atom for atom in equation.invars if not isinstance(atom, Literal)}
    return kept[::-1]


def _apply(graph: Graph, equation, operands: Sequence[Value], needed: Sequence[bool]) -> list:
    """The results of an equation."""
    name, given = equation.primitive.name, equation.params
    if name == "platform_index":
        return [constant(_default_branch(given["platforms"]))]
    if name == "cond":
        return _convert(graph, _branch(equation, operands[0]), operands[1:], needed)
    if name in _CALLS:
        inner = given[_CALLS[name]]
        closed = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
        return _convert(graph, closed, operands, needed)
    if _is_known(equation, operands):
        return _compute(equation, operands)
    if name not in PRIMITIVES:
        raise InputError(
            f"the network computes {name!r}, an operation of JAX for which market_jax.export "
            "writes no ONNX; --to=stablehlo and --to=saved_model take every network"
        )
    found = PRIMITIVES[name](graph, equation, *operands)
    return [found] if isinstance(found, Value) else found


def _default_branch(platforms: Sequence) -> np.int32:
    """The branch for a platform that JAX does not know."""
    if None not in platforms:
        raise InputError(f"the network has no program for platforms other than {platforms}")
    return np.int32(list(platforms).index(None))


def _branch(equation, index: Value) -> ClosedJaxpr:
    """The branch of a `cond` that is always taken."""
    if index.number is None:
        raise InputError(
            "the network decides by its numbers what it computes (cond), for which "
            "market_jax.export writes no ONNX; --to=stablehlo and --to=saved_model take it"
        )
    return equation.params["branches"][int(index.number)]


def _is_known(equation, operands: Sequence[Value]) -> bool:
    """Whether all operands are whole constants, and the results' shapes are numbers."""
    if not operands and equation.primitive.name != "iota":
        return False
    pairs = zip(operands, equation.invars, strict=True)
    whole = all(v.array is not None and v.shape == tuple(i.aval.shape) for v, i in pairs)
    shapes = [variable.aval.shape for variable in equation.outvars]
    return whole and all(isinstance(size, int) for shape in shapes for size in shape)


def _compute(equation, operands: Sequence[Value]) -> list[Value]:
    """The results of an equation of constants."""
    arrays = [value.array for value in operands]
    found = equation.primitive.bind(*arrays, **equation.params)
    return list(map(constant, found if equation.primitive.multiple_results else [found]))
