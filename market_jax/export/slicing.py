"""Primitives of JAX that take parts of an array or put something around it, as nodes of ONNX."""

import numpy as np

from market_jax.errors import InputError
from market_jax.export.graph import Graph, Value, arrange
from market_jax.export.shaping import reshape, whole

__all__ = ["PRIMITIVES"]

_LEAST = np.iinfo(np.int64).min  # where a slice that goes backwards ends


def _cut(graph: Graph, x: Value, starts, stops, steps) -> Value:
    """The part from `starts` to before `stops` of each axis; axes that stay whole cost nothing."""
    axes = [
        axis
        for axis, (start, stop, step) in enumerate(zip(starts, stops, steps, strict=True))
        if not (start == 0 and step == 1 and stop == x.shape[axis])
    ]
    if not axes:
        return x
    if not all(isinstance(values[axis], int) for values in (starts, stops) for axis in axes):
        raise InputError(
            f"the network takes a part of an array of shape {x.shape} that depends on the number "
            "of images; market_jax.export writes ONNX for fixed parts"
        )
    places = [x.order.index(axis) for axis in axes]
    numbers = [[values[axis] for axis in axes] for values in (starts, stops, steps)]
    start, stop, step = map(graph.integers, numbers)
    name = arrange(graph, x, x.order)
    name = graph.add("Slice", name, start, stop, graph.integers(places), step)
    shape = list(x.shape)
    for axis in axes:
        shape[axis] = len(range(starts[axis], stops[axis], steps[axis]))
    return Value(tuple(shape), x.dtype, x.order, name)


def _slice(graph: Graph, equation, x: Value) -> Value:
    (x,) = whole(graph, equation, x)
    parameters = equation.params
    steps = parameters["strides"] or (1,) * x.rank
    return _cut(graph, x, parameters["start_indices"], parameters["limit_indices"], steps)


def _reverse(graph: Graph, equation, x: Value) -> Value:
    axes = equation.params["dimensions"]
    places = graph.integers([x.order.index(axis) for axis in axes])
    starts, stops, steps = (graph.integers([n] * len(axes)) for n in (-1, _LEAST, -1))
    name = graph.add("Slice", arrange(graph, x, x.order), starts, stops, places, steps)
    return Value(x.shape, x.dtype, x.order, name)


def _pad(graph: Graph, equation, x: Value, value: Value) -> Value:
    (x, _), config = whole(graph, equation, x, value), equation.params["padding_config"]
    if any(between or min(before, after) < 0 for before, after, between in config):
        raise InputError(
            f"the network pads an array by {config} (before, after, between); market_jax.export "
            "writes ONNX for numbers of 0 or more, and none between"
        )
    sides = [config[axis][side] for side in (0, 1) for axis in x.order]
    name = graph.add(
        "Pad", arrange(graph, x, x.order), graph.integers(sides), arrange(graph, value, ())
    )
    return Value(equation.outvars[0].aval.shape, x.dtype, x.order, name)


def _gather(graph: Graph, equation, x: Value, indices: Value) -> Value:
    """A part at a fixed place, x[:, 2:5]; or rows of one axis, x[:, [3, 1]]."""
    (x, indices), numbers = whole(graph, equation, x, indices), equation.params
    how, sizes = numbers["dimension_numbers"], numbers["slice_sizes"]
    if indices.array is not None and indices.rank == 1:
        starts = [0] * x.rank
        for axis, start in zip(how.start_index_map, indices.array, strict=True):
            starts[axis] = int(start)
        stops = [start + size for start, size in zip(starts, sizes, strict=True)]
        return reshape(
            graph, _cut(graph, x, starts, stops, [1] * x.rank), equation.outvars[0].aval.shape
        )
    return _take(graph, equation, x, indices.array)


def _take(graph: Graph, equation, x: Value, indices: np.ndarray | None) -> Value:
    """Rows of one axis, which stays where it is."""
    how, aval = equation.params["dimension_numbers"], equation.outvars[0].aval
    axis, *more = how.start_index_map
    others = tuple(i for i in range(x.rank) if i != axis)
    one = not more and how.collapsed_slice_dims == (axis,) and how.offset_dims == others
    if indices is None or indices.ndim != 2 or not one:
        raise InputError(
            "the network takes numbers from places that it computes, or along several axes "
            "(gather); market_jax.export writes ONNX for fixed places on one axis"
        )
    if np.array_equal(indices[:, 0], np.arange(x.shape[axis])):
        return x
    name, rows = arrange(graph, x, x.order), graph.integers(indices[:, 0])
    return Value(
        aval.shape, aval.dtype, x.order, graph.add("Gather", name, rows, axis=x.order.index(axis))
    )


PRIMITIVES = {"gather": _gather, "pad": _pad, "rev": _reverse, "slice": _slice}
