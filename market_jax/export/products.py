"""Primitives of JAX that sum: convolutions, matrix products, pooling, reductions, as nodes of ONNX.

Convolutions and pooling take maps with channels first in ONNX. What a convolution makes stays so.
"""

import functools
import math

from market_jax.errors import InputError
from market_jax.export import elementwise
from market_jax.export.graph import Graph, Order, Value, arrange, constant
from market_jax.export.shaping import reshape, whole

__all__ = ["PRIMITIVES"]


def _sides(padding) -> tuple[int, ...]:
    """Padding as ONNX has it: before each axis, then after each."""
    return tuple(pair[side] for side in (0, 1) for pair in padding)


def _refuse(condition: bool, what: str) -> None:
    if condition:
        raise InputError(f"the network has {what}, for which market_jax.export writes no ONNX")


def _convolution(graph: Graph, equation, x: Value, weights: Value) -> Value:
    x, weights = whole(graph, equation, x, weights)
    given = equation.params
    numbers, padding = given["dimension_numbers"], given["padding"]
    _refuse(max(given["lhs_dilation"]) > 1, "a transposed convolution with strides (lhs_dilation)")
    _refuse(given["batch_group_count"] > 1, "a convolution in groups of images")
    _refuse(min(map(min, padding)) < 0, "a convolution that cuts its map (negative padding)")
    name = graph.add(
        "Conv",
        arrange(graph, x, numbers.lhs_spec),
        arrange(graph, weights, numbers.rhs_spec),
        kernel_shape=tuple(weights.shape[axis] for axis in numbers.rhs_spec[2:]),
        strides=tuple(given["window_strides"]),
        pads=_sides(padding),
        dilations=tuple(given["rhs_dilation"]),
        group=given["feature_group_count"],
    )
    aval = equation.outvars[0].aval
    return Value(aval.shape, aval.dtype, tuple(numbers.out_spec), name)


def _dot(graph: Graph, equation, a: Value, b: Value) -> Value:
    """A product of two arrays over any axes: that of two matrices where it is one."""
    a, b = whole(graph, equation, a, b)
    (a_summed, b_summed), (a_batch, b_batch) = equation.params["dimension_numbers"]
    a_free = [i for i in range(a.rank) if i not in (*a_summed, *a_batch)]
    b_free = [i for i in range(b.rank) if i not in (*b_summed, *b_batch)]
    aval = equation.outvars[0].aval
    order = tuple(range(len(aval.shape)))
    a_order, b_order = (*a_batch, *a_free, *a_summed), (*b_batch, *b_summed, *b_free)
    if a_batch or len(a_free) != 1 or len(b_free) < 2:
        plain = len(b_free) <= 1 if not a_batch else len(a_free) == len(b_free) == 1
        names = [arrange(graph, a, a_order), arrange(graph, b, b_order)]
    else:  # the other way round it is one, whose result has its axes in another order
        plain, order = True, (*order[1:], 0)
        names = [arrange(graph, b, (*b_free, *b_summed)), arrange(graph, a, (*a_summed, *a_free))]
    if plain and len(a_summed) == 1:
        return Value(aval.shape, aval.dtype, order, graph.add("MatMul", *names))
    return _flat_dot(graph, equation, a, b, (a_order, b_order))


def _flat_dot(graph: Graph, equation, a: Value, b: Value, orders: tuple[Order, Order]) -> Value:
    """The same, of arrays whose axes are made one matrix for each place of the batch."""
    (summed, _), (batch, _) = equation.params["dimension_numbers"]
    aval = equation.outvars[0].aval
    a, b = _ordered(graph, a, orders[0]), _ordered(graph, b, orders[1])
    kept, count = a.shape[: len(batch)], len(batch) + len(summed)
    inner = math.prod(a.shape[a.rank - len(summed) :])
    rows = math.prod(a.shape[len(batch) : a.rank - len(summed)])
    columns = math.prod(b.shape[count:])
    a, b = reshape(graph, a, (*kept, rows, inner)), reshape(graph, b, (*kept, inner, columns))
    order = tuple(range(a.rank))
    name = graph.add("MatMul", arrange(graph, a, order), arrange(graph, b, order))
    return reshape(graph, Value((*kept, rows, columns), aval.dtype, order, name), aval.shape)


def _ordered(graph: Graph, value: Value, order: Order) -> Value:
    """The value with its axes renamed, so that they are in an order."""
    shape = tuple(value.shape[axis] for axis in order)
    name = arrange(graph, value, order)
    return Value(shape, value.dtype, tuple(range(value.rank)), name)


def _reduce(operator: str, graph: Graph, equation, x: Value) -> Value:
    (x,) = whole(graph, equation, x)
    axes, aval = equation.params["axes"], equation.outvars[0].aval
    kept = [axis for axis in range(x.rank) if axis not in axes]
    order = tuple(kept.index(axis) for axis in x.order if axis in kept)
    places = graph.integers([x.order.index(axis) for axis in axes])
    name = graph.add(operator, arrange(graph, x, x.order), places, keepdims=0)
    return Value(aval.shape, aval.dtype, order, name)


def _pool(operator: str, graph: Graph, equation, x: Value, **attributes) -> Value:
    (x,) = whole(graph, equation, x)
    given = equation.params
    window, aval = given["window_dimensions"], equation.outvars[0].aval
    axes = zip(window, given["window_strides"], given["padding"], strict=True)
    fixed = [axis for axis, how in enumerate(axes) if how == (1, 1, (0, 0))]
    _refuse(len(fixed) < 2, f"pooling over windows {window}, of images or channels too")
    gaps = max(*given["base_dilation"], *given["window_dilation"]) > 1
    _refuse(gaps, "pooling with gaps (dilation)")
    order = (fixed[0], fixed[-1], *(i for i in range(x.rank) if i not in (fixed[0], fixed[-1])))
    inner = order[2:]
    name = graph.add(
        operator,
        arrange(graph, x, order),
        kernel_shape=tuple(window[i] for i in inner),
        strides=tuple(given["window_strides"][i] for i in inner),
        pads=_sides([given["padding"][i] for i in inner]),
        **attributes,
    )
    return Value(aval.shape, aval.dtype, order, name)


def _sum_pool(graph: Graph, equation, x: Value) -> Value:
    """Sums over windows: ONNX has their means."""
    mean = _pool("AveragePool", graph, equation, x, count_include_pad=1)
    size = math.prod(equation.params["window_dimensions"])
    return elementwise.apply(graph, "Mul", [mean, constant(mean.dtype.type(size))], mean.dtype)


PRIMITIVES = {
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "reduce_max": functools.partial(_reduce, "ReduceMax"),
    "reduce_min": functools.partial(_reduce, "ReduceMin"),
    "reduce_prod": functools.partial(_reduce, "ReduceProd"),
    "reduce_sum": functools.partial(_reduce, "ReduceSum"),
    "reduce_window_max": functools.partial(_pool, "MaxPool"),
    "reduce_window_sum": _sum_pool,
}
