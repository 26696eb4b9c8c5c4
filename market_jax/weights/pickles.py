"""Reads what `torch.save` pickles, by an interpreter of its own that can do nothing else.

Python's unpickler believes what a pickle says about sizes, depth and functions. This one knows
containers, numbers, texts and where a tensor lies, and passes over NumPy's numbers, which trainings
keep beside them. It bounds how many instructions there are, how deep containers nest and how large
a number is, so that time and memory are bounded too. A container that lies in another one can no
longer change, so none ever holds itself.
"""

import pickletools
from collections.abc import Callable, Iterable
from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from market_jax.errors import InputError

MOST_BYTES = 64 << 20  # of a pickle; a network's is around 100 kB
_MOST_STEPS = 1_000_000  # a tensor takes around 25
_DEEPEST = 64  # containers within containers
_LARGEST_KEY = 1 << 60  # up to here no two numbers have one hash
_LARGEST = 1 << 62  # of offsets, sizes and strides
_MOST_AXES = 32
_MOST_ARGUMENTS = 8
_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class Storage(NamedTuple):
    """The memory of tensors: its kind of numbers, its name in the file, how many numbers."""

    dtype: np.dtype
    key: str
    count: int


class Tensor(NamedTuple):
    """Where a tensor lies: in a storage, from an offset, with strides, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Global(NamedTuple):
    """The name of a function or class; it is never imported."""

    module: str
    name: str


def load(stream: BinaryIO) -> tuple[object, dict[str, Storage]]:
    """Reads one pickle.

    Args:
      stream: where the pickle begins; afterwards it stands behind the pickle. It must be of bounded
        size, for a text as long as the stream is read whole.

    Returns:
      The value, of dicts, lists, tuples, texts, numbers and `Tensor`s; and the storages that it
      names, by key.

    Raises:
      InputError: the pickle holds something that no tensor needs, or is too long or too deep.
      Exception: whatever else a broken pickle brings about; nothing lasting has happened then.
    """
    machine = _Machine()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count >= _MOST_STEPS:
            raise InputError(f"its pickle has more than {_MOST_STEPS} instructions")
        if opcode.name not in _STEPS:
            raise InputError(f"its pickle uses {opcode.name}, which no tensor needs")
        machine.count = count
        _STEPS[opcode.name](machine, argument)
    if len(machine.stack) != 1 or machine.marks:
        raise InputError("its pickle is broken: it does not end with one value")
    return machine.stack[0], machine.storages


class _Machine:
    """The state of the interpreter.

    Attributes:
      stack: the values at hand.
      marks: the heights of the stack at which the open groups of values begin.
      memo: the values that the pickle keeps to use again.
      storages: the storages named so far, by key.
      count: the number of instructions before this one.
      copied: the number of pairs that were copied from lists into dicts.
    """

    def __init__(self):
        self.stack, self.marks, self.memo, self.storages = [], [], {}, {}
        self.count = self.copied = 0
        self._depths = {}  # id of a container -> (the container, so that it stays, and its depth)
        self._closed = set()  # ids of containers that may not change any more

    def pop(self, count: int) -> list:
        """Takes the last values off the stack."""
        if count > len(self.stack) - (self.marks[-1] if self.marks else 0):
            raise InputError("its pickle is broken: it takes more values than there are")
        at = len(self.stack) - count
        values, self.stack[at:] = self.stack[at:], []
        return values

    def group(self) -> list:
        """Takes the values since the last mark off the stack."""
        if not self.marks:
            raise InputError("its pickle is broken: it takes more values than there are")
        at = self.marks.pop()
        values, self.stack[at:] = self.stack[at:], []
        return values

    def hold(self, container: list | dict | tuple, parts: Iterable) -> None:
        """Notes that a container holds these parts, which therefore change no more."""
        depth = self._depths.get(id(container), (None, 1))[1]
        for part in parts:
            if id(part) in self._depths:
                self._closed.add(id(part))
                depth = max(depth, self._depths[id(part)][1] + 1)
        if depth > _DEEPEST:
            raise InputError(f"its pickle nests containers more than {_DEEPEST} deep")
        self._depths[id(container)] = container, depth

    def push(self, container: list | dict | tuple, parts: Iterable = ()) -> None:
        """Puts a container with these parts on the stack."""
        self.hold(container, parts)
        self.stack.append(container)

    def grow(self, kind: type, parts: list) -> list | dict:
        """The container on top of the stack, which may take these parts."""
        (target,) = self.pop(1)
        self.stack.append(target)
        if type(target) is not kind:
            raise InputError("its pickle is broken: it fills what is no container")
        self.hold(target, parts)
        if id(target) in self._closed:
            raise InputError("its pickle fills a container that another one, or itself, holds")
        return target

    def fill(self, values: list) -> None:
        """Puts keys and values, in turn, into the dict on top of the stack."""
        keys, parts = values[::2], values[1::2]
        target = self.grow(dict, parts)
        for key in keys:
            if type(key) is not str and not (type(key) is int and abs(key) < _LARGEST_KEY):
                raise InputError("its pickle has a key of a dict that is neither text nor number")
        target.update(zip(keys, parts, strict=True))

    def append(self, values: list) -> None:
        """Puts values into the list on top of the stack."""
        self.grow(list, values).extend(values)

    def put(self, index: int) -> None:
        """Keeps the last value under an index; a pickler counts what it keeps."""
        if not 0 <= index <= self.count:
            raise InputError(f"its pickle keeps a value under {index}, after {self.count} steps")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        """Puts a kept value on the stack."""
        if index not in self.memo:
            raise InputError(f"its pickle asks for the value {index}, which it has not kept")
        self.stack.append(self.memo[index])

    def name(self, module: str, name: str) -> None:
        """Puts the name of a function or class on the stack, if it is one of those known."""
        found = _Global(module, name)
        if type(module) is not str or type(name) is not str:
            raise InputError("its pickle is broken: a function's name is no text")
        if found not in _CALLS and not (module == "torch" and name in _STORAGES):
            asked = f"{module}.{name}"[:100]
            raise InputError(f"it asks for {asked}; only tensors are read from a pickle")
        self.stack.append(found)

    def call(self) -> None:
        """Makes what a known function would make of its arguments."""
        function, arguments = self.pop(2)
        if type(function) is not _Global or function not in _CALLS:
            raise InputError("its pickle calls what is no function")
        if type(arguments) is not tuple or len(arguments) > _MOST_ARGUMENTS:
            raise InputError(f"its pickle calls {function.name} with other arguments than PyTorch")
        _CALLS[function](self, *arguments)

    def storage(self) -> None:
        """Puts a storage on the stack, whose description lies there."""
        (entry,) = self.pop(1)
        if type(entry) is not tuple or len(entry) not in (5, 6):
            raise InputError("its pickle is broken: it describes a storage in another way")
        kind, name, key, _, count = entry[:5]
        if kind != "storage":
            raise InputError("it holds something stored apart that is no storage of a tensor")
        if len(entry) > 5 and entry[5] is not None:
            raise InputError("it holds a view of a storage, which is not read")
        if type(name) is not _Global or name.name not in _STORAGES:
            raise InputError("its pickle is broken: a storage has no kind")
        if type(key) not in (str, int) or not _is_sizes((count,)):
            raise InputError("its pickle is broken: a storage has no name or no size")
        found = Storage(np.dtype(_STORAGES[name.name]), str(key), count)
        if self.storages.setdefault(found.key, found) != found:
            raise InputError(f"storage {found.key[:100]} has two sizes or kinds of numbers")
        self.stack.append(found)


def _is_sizes(values: Iterable) -> bool:
    return all(type(n) is int and 0 <= n < _LARGEST for n in values)


def _ordered_dict(machine: _Machine, pairs: list = (), *_) -> None:
    if type(pairs) not in (list, tuple):
        raise InputError("its pickle is broken: a dict is made of what are no pairs")
    machine.copied += len(pairs)
    if machine.copied > _MOST_STEPS:
        raise InputError(f"its pickle makes dicts of more than {_MOST_STEPS} pairs")
    values = [value for pair in pairs for value in _pair(pair)]
    machine.push({})
    machine.fill(values)


def _pair(pair: object) -> list | tuple:
    if type(pair) not in (list, tuple) or len(pair) != 2:
        raise InputError("its pickle is broken: a dict is made of what are no pairs")
    return pair


def _tensor(machine: _Machine, storage, offset, shape, strides, *_) -> None:
    for values in (shape, strides):
        if type(values) is not tuple or len(values) > _MOST_AXES:
            raise InputError("its pickle is broken: a tensor has no shape or no strides")
    if len(shape) != len(strides) or type(storage) is not Storage:
        raise InputError("its pickle is broken: a tensor has no storage or not a stride per axis")
    if not _is_sizes((offset, *shape, *map(abs, strides))):
        raise InputError("its pickle is broken: a tensor's offset, shape or strides are no sizes")
    machine.stack.append(Tensor(storage, offset, shape, strides))


def _parameter(machine: _Machine, tensor, *_) -> None:
    if type(tensor) is not Tensor:
        raise InputError("its pickle is broken: a parameter is no tensor")
    machine.stack.append(tensor)


def _pass_over(machine: _Machine, *_) -> None:
    machine.stack.append(None)


_PASSED_OVER = (  # a figure, as torchreid keeps one, and the milestones of a schedule
    _Global("numpy.core.multiarray", "scalar"),
    _Global("numpy._core.multiarray", "scalar"),
    _Global("numpy", "dtype"),
    _Global("_codecs", "encode"),
    _Global("collections", "Counter"),
)
_CALLS: dict[_Global, Callable] = {
    _Global("collections", "OrderedDict"): _ordered_dict,
    _Global("torch._utils", "_rebuild_tensor"): _tensor,
    _Global("torch._utils", "_rebuild_tensor_v2"): _tensor,
    _Global("torch._utils", "_rebuild_parameter"): _parameter,
    **dict.fromkeys(_PASSED_OVER, _pass_over),
}


def _tuple(machine: _Machine, values: list) -> None:
    machine.push(tuple(values), values)


def _ignore(machine: _Machine, argument) -> None:
    pass


def _literal(machine: _Machine, argument) -> None:
    machine.stack.append(argument)


_STEPS: dict[str, Callable] = {  # what pickles of protocols 2 to 5 use for containers and tensors
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _ignore),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _literal),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE"), _literal),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"), _literal),
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": lambda m, _: m.pop(1),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "TUPLE": lambda m, _: _tuple(m, m.group()),
    "TUPLE1": lambda m, _: _tuple(m, m.pop(1)),
    "TUPLE2": lambda m, _: _tuple(m, m.pop(2)),
    "TUPLE3": lambda m, _: _tuple(m, m.pop(3)),
    "SETITEM": lambda m, _: m.fill(m.pop(2)),
    "SETITEMS": lambda m, _: m.fill(m.group()),
    "APPEND": lambda m, _: m.append(m.pop(1)),
    "APPENDS": lambda m, _: m.append(m.group()),
    "BINPUT": lambda m, index: m.put(index),
    "LONG_BINPUT": lambda m, index: m.put(index),
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    "BINGET": lambda m, index: m.get(index),
    "LONG_BINGET": lambda m, index: m.get(index),
    "GLOBAL": lambda m, name: m.name(*name.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.name(*m.pop(2)),
    "REDUCE": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.pop(1),  # what a state dict says about its modules' versions
    "BINPERSID": lambda m, _: m.storage(),
}
