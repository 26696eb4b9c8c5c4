"""A graph of ONNX operators that grows, and the arrays of a jaxpr as it has them.

Axes keep JAX's numbers everywhere. Which of them a tensor has first is noted beside it, so that
maps stay with channels first from one convolution to the next, and transposing costs nothing. An
array that only repeats itself along an axis is kept short there, for ONNX repeats it by itself.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from market_jax.errors import InputError

__all__ = ["Graph", "Node", "Value", "arrange", "constant", "expand"]

Order = tuple[int, ...]  # axes of JAX, as a tensor has them
Shape = tuple[Any, ...]  # numbers, and one dimension that may be symbolic: the number of images


class Node(NamedTuple):
    """An operator with its tensors.

    Attributes:
      operator: its name in ONNX.
      inputs: names of tensors.
      outputs: names of tensors.
      attributes: pairs of name and value; lists are tuples, and dtypes are NumPy's.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[tuple[str, Any], ...]


class Graph:
    """Nodes and constants, each of which is there once.

    Args:
      image: the name of the input.
      batch: the symbolic number of images.
    """

    def __init__(self, image: str, batch: Any):
        self.image, self.batch = image, batch
        self.constants: dict[str, np.ndarray] = {}  # name of a tensor -> its value
        self.producers: dict[str, Node] = {}  # name of a tensor -> the node that makes it
        self.nodes: list[Node] = []
        self._known: dict[Any, Any] = {}

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node, unless there is the same one already.

        Args:
          operator: its name in ONNX.
          *inputs: names of tensors.
          outputs: how many tensors it makes.
          **attributes: of the operator.

        Returns:
          The name of the tensor that it makes, or a tuple of their names.
        """
        key = (operator, inputs, outputs, tuple(sorted(attributes.items())))
        if key not in self._known:
            number = len(self.nodes)
            names = tuple(f"{operator}_{number}_{i}" for i in range(outputs))
            self.nodes.append(Node(operator, inputs, names, key[-1]))
            self.producers |= dict.fromkeys(names, self.nodes[-1])
            self._known[key] = names if outputs > 1 else names[0]
        return self._known[key]

    def constant(self, array: Any) -> str:
        """The name of a tensor with a fixed value.

        Args:
          array: its value.
        """
        array = np.array(array, order="C")
        digest = hashlib.sha256(array.tobytes()).digest()
        key = (array.dtype.name, array.shape, digest)
        if key not in self._known:
            self._known[key] = f"constant_{len(self.constants)}"
            self.constants[self._known[key]] = array
        return self._known[key]

    def integers(self, values: Sequence[int]) -> str:
        """The name of a tensor of axes, sizes or positions, as ONNX wants them: int64.

        Args:
          values: the numbers.
        """
        return self.constant(np.array([int(value) for value in values], np.int64))

    def sizes(self, shape: Shape) -> str:
        """The name of a tensor with a shape, int64, the number of images as it is when run.

        Args:
          shape: numbers, and the symbolic number of images.

        Raises:
          InputError: a dimension is another function of the number of images.
        """
        if all(isinstance(size, int) for size in shape):
            return self.integers(shape)
        parts = [self._size(size) for size in shape]
        return self.add("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]

    def _size(self, size: Any) -> str:
        if isinstance(size, int):
            return self.integers([size])
        if size != self.batch:
            raise InputError(
                f"the network makes an array with {size} rows; ONNX takes their number, "
                f"{self.batch}, as it is"
            )
        return self.add("Shape", self.image, start=0, end=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """An array of the jaxpr.

    Attributes:
      shape: of JAX's axes; 1 where the array repeats itself and was not expanded yet.
      dtype: NumPy's.
      order: which of these axes the tensor has first, second, ...
      name: of the tensor; "" for a constant, which is none yet.
      array: the value of a constant, of this shape; else None.
    """

    shape: Shape
    dtype: np.dtype
    order: Order
    name: str = ""
    array: np.ndarray | None = None

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def number(self) -> Any:
        """The value of a constant that is the same everywhere; else None."""
        one = self.array is not None and self.array.size == 1
        return self.array.item() if one else None


def constant(array: Any) -> Value:
    """An array that is known now.

    Args:
      array: the array, of any kind that NumPy takes.
    """
    array = np.asarray(array)
    return Value(array.shape, array.dtype, tuple(range(array.ndim)), "", array)


def arrange(graph: Graph, value: Value, order: Sequence[int]) -> str:
    """The name of a tensor with the value's axes in an order; a constant is transposed now.

    Args:
      graph: the graph.
      value: the value.
      order: the axes, as the tensor has them.
    """
    order = tuple(order)
    if value.array is not None:
        return graph.constant(value.array.transpose(order))
    if value.order == order:
        return value.name
    permutation = tuple(value.order.index(axis) for axis in order)
    return graph.add("Transpose", value.name, perm=permutation)


def expand(graph: Graph, value: Value, shape: Shape) -> Value:
    """A value that repeats itself along no axis.

    Args:
      graph: the graph.
      value: the value.
      shape: the whole shape, in JAX's order of axes.
    """
    shape = tuple(shape)
    if value.shape == shape:
        return value
    if value.array is not None and all(isinstance(size, int) for size in shape):
        return constant(np.broadcast_to(value.array, shape))
    name = arrange(graph, value, value.order)
    # a size of 1 asks for nothing, so that the number of images is not asked where it is there
    wanted = [1 if old == new else new for old, new in zip(value.shape, shape, strict=True)]
    sizes = graph.sizes([wanted[axis] for axis in value.order])
    return Value(shape, value.dtype, value.order, graph.add("Expand", name, sizes))
