"""Primitives of JAX that give an array another shape, as nodes of ONNX."""

import math
from collections.abc import Sequence

import numpy as np

from market_jax.errors import InputError
from market_jax.export.graph import Graph, Order, Shape, Value, arrange, constant, expand

__all__ = ["PRIMITIVES", "reshape", "whole"]


def _straight(rank: int) -> Order:
    return tuple(range(rank))


def whole(graph: Graph, equation, *values: Value) -> list[Value]:
    """The operands of an equation, none of which repeats itself any more.

    Args:
      graph: the graph.
      equation: the equation of the jaxpr.
      *values: its operands.
    """
    pairs = zip(values, equation.invars, strict=True)
    return [expand(graph, value, variable.aval.shape) for value, variable in pairs]


def _out(equation) -> tuple[Shape, np.dtype]:
    """Shape and dtype of what an equation makes."""
    aval = equation.outvars[0].aval
    return aval.shape, aval.dtype


def _broadcast(graph: Graph, equation, x: Value) -> Value:
    """An array with more axes, which repeats itself along them."""
    shape, dtype = _out(equation)
    kept = equation.params["broadcast_dimensions"]
    shape = tuple(x.shape[kept.index(i)] if i in kept else 1 for i in range(len(shape)))
    if x.array is not None:
        return constant(x.array.reshape(shape))
    if len(shape) == x.rank:
        return x
    new = [axis for axis in range(len(shape)) if axis not in kept]
    name = arrange(graph, x, _straight(x.rank))
    return Value(
        shape, dtype, _straight(len(shape)), graph.add("Unsqueeze", name, graph.integers(new))
    )


def _groups(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]]:
    """The axes before and after a reshape in the smallest groups of equally many numbers."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        sizes = [
            (a, b) for a in range(i + 1, len(before) + 1) for b in range(j + 1, len(after) + 1)
        ]
        sizes.sort(key=sum)
        a, b = next((a, b) for a, b in sizes if math.prod(before[i:a]) == math.prod(after[j:b]))
        groups.append(([*range(i, a)], [*range(j, b)]))
        i, j = a, b
    if groups:  # what is left over has size 1
        groups[-1][0].extend(range(i, len(before)))
        groups[-1][1].extend(range(j, len(after)))
    return groups


def _moved(order: Order, groups: Sequence[tuple[list[int], list[int]]]) -> Order | None:
    """The order after a reshape of a tensor that stays in its order; None where it cannot."""
    starts = sorted(range(len(groups)), key=lambda i: order.index(groups[i][0][0]))
    if tuple(axis for i in starts for axis in groups[i][0]) != order:
        return None
    return tuple(axis for i in starts for axis in groups[i][1])


def reshape(graph: Graph, x: Value, shape: Shape) -> Value:
    """A value in another shape; a map with channels first stays so where it can.

    Args:
      graph: the graph.
      x: the value, which repeats itself along no axis.
      shape: the new shape, in JAX's order of axes.

    Raises:
      InputError: the number of images enters two dimensions.
    """
    shape = tuple(shape)
    if x.shape == shape:
        return x
    groups = _groups(x.shape, shape)
    order = _moved(x.order, groups) if groups else None
    name = arrange(graph, x, x.order if order else _straight(x.rank))
    order = order or _straight(len(shape))
    sizes = [shape[axis] if isinstance(shape[axis], int) else -1 for axis in order]
    if sizes.count(-1) > 1:
        raise InputError(
            f"the network makes an array of shape {shape}; ONNX takes the number of images in one "
            "dimension alone"
        )
    return Value(shape, x.dtype, order, graph.add("Reshape", name, graph.integers(sizes)))


def _reshape(graph: Graph, equation, x: Value) -> Value:
    return reshape(graph, *whole(graph, equation, x), _out(equation)[0])


def _squeeze(graph: Graph, equation, x: Value) -> Value:
    gone = equation.params["dimensions"]
    kept = [axis for axis in range(x.rank) if axis not in gone]
    axes = graph.integers([x.order.index(axis) for axis in gone])
    order = tuple(kept.index(axis) for axis in x.order if axis in kept)
    name = graph.add("Squeeze", arrange(graph, x, x.order), axes)
    return Value(tuple(x.shape[axis] for axis in kept), x.dtype, order, name)


def _transpose(graph: Graph, equation, x: Value) -> Value:
    permutation = equation.params["permutation"]
    if x.array is not None:
        return constant(x.array.transpose(permutation))
    shape = tuple(x.shape[axis] for axis in permutation)
    order = tuple(permutation.index(axis) for axis in x.order)  # the tensor stays as it is
    return Value(shape, x.dtype, order, x.name)


def _concatenate(graph: Graph, equation, *values: Value) -> Value:
    shape, dtype = _out(equation)
    values = whole(graph, equation, *values)
    straight = _straight(len(shape))
    orders = [value.order for value in values if value.array is None]
    order = next((order for order in orders if order != straight), straight)
    names = [arrange(graph, value, order) for value in values]
    axis = order.index(equation.params["dimension"])
    return Value(shape, dtype, order, graph.add("Concat", *names, axis=axis))


def _stack(graph: Graph, equation, *values: Value) -> Value:
    shape, dtype = _out(equation)
    axis, rank = equation.params["axis"], len(shape)
    axes = graph.integers([axis])
    names = [arrange(graph, v, _straight(rank - 1)) for v in whole(graph, equation, *values)]
    names = [graph.add("Unsqueeze", name, axes) for name in names]
    return Value(shape, dtype, _straight(rank), graph.add("Concat", *names, axis=axis))


def _split(graph: Graph, equation, x: Value) -> list[Value]:
    (x,) = whole(graph, equation, x)
    axis, sizes = x.order.index(equation.params["axis"]), equation.params["sizes"]
    name = arrange(graph, x, x.order)
    names = graph.add("Split", name, graph.integers(sizes), outputs=len(sizes), axis=axis)
    names = names if len(sizes) > 1 else (names,)
    shapes = [variable.aval.shape for variable in equation.outvars]
    return [Value(s, x.dtype, x.order, n) for s, n in zip(shapes, names, strict=True)]


PRIMITIVES = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "reshape": _reshape,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "transpose": _transpose,
}
