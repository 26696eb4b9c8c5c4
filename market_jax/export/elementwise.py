"""Primitives of JAX that work on each number by itself, as nodes of ONNX.

A function for a primitive takes the graph, the equation of the jaxpr, and its operands, adds nodes,
and returns what the equation makes; so it is in `products`, `shaping` and `slicing`.
"""

import functools
from collections.abc import Sequence

import numpy as np

from market_jax.errors import InputError
from market_jax.export.graph import Graph, Order, Shape, Value, arrange, constant

__all__ = ["PRIMITIVES", "apply"]


def _common_order(values: Sequence[Value]) -> Order:
    """The order of axes in which the fewest tensors must be transposed: that of a moved map."""
    rank = max(value.rank for value in values)
    straight = tuple(range(rank))
    orders = [value.order for value in values if value.array is None and value.rank == rank]
    return next((order for order in orders if order != straight), straight)


def _common_shape(values: Sequence[Value]) -> Shape:
    """The shape of what several arrays make together, each of which may repeat itself."""
    rank = max(value.rank for value in values)
    shapes = [value.shape for value in values if value.rank == rank]
    columns = zip(*shapes, strict=True)
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in columns)


def apply(
    graph: Graph, operator: str, values: Sequence[Value], dtype: np.dtype, **attributes
) -> Value:
    """Adds an operator that works on each number by itself.

    Args:
      graph: the graph.
      operator: its name in ONNX.
      values: its operands, of one rank, or scalars.
      dtype: of the result.
      **attributes: of the operator.
    """
    order = _common_order(values)
    names = [arrange(graph, value, order if value.rank else ()) for value in values]
    name = graph.add(operator, *names, **attributes)
    return Value(_common_shape(values), dtype, order, name)


def _same(graph: Graph, equation, *values: Value) -> list[Value]:
    return list(values)


def _simple(operator: str, graph: Graph, equation, *values: Value) -> Value:
    return apply(graph, operator, values, equation.outvars[0].aval.dtype)


def _chain(operators: Sequence[str], graph: Graph, equation, *values: Value) -> Value:
    for operator in operators:
        values = (_simple(operator, graph, equation, *values),)
    return values[0]


def _logical(operator: str, graph: Graph, equation, *values: Value) -> Value:
    if any(value.dtype != bool for value in values):
        raise InputError(
            f"the network computes {equation.primitive.name!r} of the bits of integers, for which "
            "market_jax.export writes no ONNX"
        )
    return _simple(operator, graph, equation, *values)


def _one_number(values: Sequence[Value]) -> tuple[Value, float | None]:
    """Of two operands the first that is no plain number, and the other's number, if it is one."""
    first, second = values
    if second.number is not None:
        return first, second.number
    return (second, first.number) if first.number is not None else (first, None)


def _add(graph: Graph, equation, *values: Value) -> Value:
    """A sum; a constant of each channel becomes the bias of the convolution before it."""
    for x, bias in (values, values[::-1]):
        node = graph.producers.get(x.name)
        if bias.array is None or node is None or node.operator != "Conv" or len(node.inputs) > 2:
            continue
        channel = x.order[1]
        if bias.shape == tuple(x.shape[i] if i == channel else 1 for i in range(x.rank)):
            vector = graph.constant(bias.array.reshape(-1))
            name = graph.add("Conv", *node.inputs, vector, **dict(node.attributes))
            return Value(x.shape, x.dtype, x.order, name)
    return _simple("Add", graph, equation, *values)


def _maximum(graph: Graph, equation, *values: Value) -> Value:
    """A maximum; with 0 the node Relu, which convolutions are computed together with."""
    x, number = _one_number(values)
    if number == -np.inf:
        return x
    if number == 0 and np.issubdtype(x.dtype, np.floating):
        return _simple("Relu", graph, equation, x)
    return _simple("Max", graph, equation, *values)


def _minimum(graph: Graph, equation, *values: Value) -> Value:
    """A minimum; behind a Relu the node Clip instead of both."""
    x, number = _one_number(values)
    node = graph.producers.get(x.name)
    if number is None or node is None or node.operator != "Relu":
        return _simple("Min", graph, equation, *values)
    bounds = [graph.constant(np.array(bound, x.dtype)) for bound in (0, number)]
    return Value(x.shape, x.dtype, x.order, graph.add("Clip", *node.inputs, *bounds))


def _clamp(graph: Graph, equation, low: Value, x: Value, high: Value) -> Value:
    return _simple("Min", graph, equation, _simple("Max", graph, equation, x, low), high)


def _select(graph: Graph, equation, which: Value, *cases: Value) -> Value:
    if which.dtype != bool or len(cases) != 2:
        raise InputError(
            f"the network selects among {len(cases)} arrays by {which.dtype.name}; "
            "market_jax.export writes ONNX for two, by bool"
        )
    return _simple("Where", graph, equation, which, cases[1], cases[0])


def _convert(graph: Graph, equation, x: Value) -> Value:
    dtype = np.dtype(equation.outvars[0].aval.dtype)
    return x if dtype == x.dtype else apply(graph, "Cast", [x], dtype, to=dtype)


def _integer_power(graph: Graph, equation, x: Value) -> Value:
    exponent = equation.params["y"]
    if exponent == 2:
        return _square(graph, equation, x)
    return _simple("Pow", graph, equation, x, constant(np.array(exponent, x.dtype)))


def _erfc(graph: Graph, equation, x: Value) -> Value:
    one = constant(np.array(1, x.dtype))
    return _simple("Sub", graph, equation, one, _simple("Erf", graph, equation, x))


def _square(graph: Graph, equation, x: Value) -> Value:
    return _simple("Mul", graph, equation, x, x)


_SIMPLE = {
    "abs": "Abs",
    "ceil": "Ceil",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "mul": "Mul",
    "neg": "Neg",
    "pow": "Pow",
    "sign": "Sign",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tanh": "Tanh",
}
_LOGICAL = {"and": "And", "not": "Not", "or": "Or", "xor": "Xor"}

PRIMITIVES = {
    **{name: functools.partial(_simple, operator) for name, operator in _SIMPLE.items()},
    **{name: functools.partial(_logical, operator) for name, operator in _LOGICAL.items()},
    **dict.fromkeys(("copy", "name", "optimization_barrier", "stop_gradient"), _same),
    "add": _add,
    "add_any": _add,
    "clamp": _clamp,
    "convert_element_type": _convert,
    "erfc": _erfc,
    "integer_pow": _integer_power,
    "max": _maximum,
    "min": _minimum,
    "ne": functools.partial(_chain, ("Equal", "Not")),
    "rsqrt": functools.partial(_chain, ("Sqrt", "Reciprocal")),
    "select_n": _select,
    "square": _square,
}
