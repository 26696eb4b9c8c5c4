"""Kinds of plain values: what an annotation allows, converted and checked.

An annotation is a type, a union, a list or mapping of them, a `Literal`, or `Annotated` with a
`typing.Range`.
"""

import collections.abc
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np

from market_jax.errors import InputError
from market_jax.typing import Range

_PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_UNIONS = (typing.Union, types.UnionType)
_LISTS = (tuple, list, collections.abc.Sequence)
_MAPPINGS = (dict, collections.abc.Mapping)
_LARGEST = float(np.finfo(np.float32).max)


class _KindError(ValueError):
    """A value that an annotation refuses; its text is the rule.

    Args:
      rule: what the value must be.
      value: the value, or the one of a mapping's that is wrong.
      path: where it is in a mapping: ".age".
    """

    def __init__(self, rule: str, value: Any, path: str = ""):
        super().__init__(rule)
        self.value, self.path = value, path


def _describe(kind: Any) -> str:
    """A kind in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind is type(None):
        return "nothing"
    if origin is Annotated:
        return ", ".join(filter(None, [_describe(arguments[0]), *map(str, arguments[1:])]))
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in _UNIONS:
        return " or ".join(_describe(a) for a in arguments if a is not type(None))
    if origin is tuple and Ellipsis not in arguments:
        return f"{len(arguments)} values, each {_describe(arguments[0])}"
    if origin in _LISTS:
        return f"a list of values, each {_describe(arguments[0])}"
    if origin in _MAPPINGS:
        return f"names, each with {_describe(arguments[1])}"
    return str(kind)


def is_plain(kind: Any) -> bool:
    """Whether values of this type can be written in a config: numbers, texts, lists of them."""
    if kind in _PLAIN or kind in (Any, type(None)):
        return True
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return is_plain(arguments[0])
    if origin in (*_UNIONS, *_LISTS, *_MAPPINGS):
        return all(a is Ellipsis or is_plain(a) for a in arguments)
    return origin is Literal


def convert(value: Any, kind: Any) -> Any:
    """Converts a value to an annotated type: lists become tuples, whole numbers become floats.

    A float must be finite in float32, in which arrays are computed, and a whole number fit into 64
    bits.

    Args:
      value: plain data, as a config or JSON holds it.
      kind: the type annotation.

    Raises:
      ValueError: the value is of another type or out of range; the message says what is needed.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        converted = convert(value, arguments[0])
        for limit in arguments[1:]:
            if isinstance(limit, Range) and converted not in limit:
                raise _KindError(str(limit), value)
        return converted
    if origin is Literal:
        if any(value == a and type(value) is type(a) for a in arguments):
            return value
    elif origin in _UNIONS:
        return _convert_to_one(value, kind)
    elif origin in _LISTS:
        return _convert_list(value, kind)
    elif origin in _MAPPINGS:
        if isinstance(value, Mapping):
            return {k: _convert_entry(k, v, arguments) for k, v in value.items()}
    elif kind is type(None):
        if value is None:
            return None
    elif kind in (int, float):
        wanted = numbers.Integral if kind is int else numbers.Real
        if isinstance(value, wanted) and not isinstance(value, bool):
            return _convert_number(value, kind)
    elif isinstance(value, kind):
        return value
    raise _KindError(_describe(kind), value)


def _convert_to_one(value: Any, kind: Any) -> Any:
    """Converts to the first type of a union that takes the value."""
    refused = []
    for argument in typing.get_args(kind):
        try:
            return convert(value, argument)
        except _KindError as error:
            if argument is not type(None):
                refused.append(error)
    raise refused[0] if len(refused) == 1 else _KindError(_describe(kind), value)


def _convert_list(value: Any, kind: Any) -> tuple:
    """Converts to a tuple; what is wrong with one value is said of the whole."""
    arguments = typing.get_args(kind)
    if isinstance(value, tuple | list):
        is_any_length = typing.get_origin(kind) is not tuple or arguments[-1] is Ellipsis
        kinds = arguments[:1] * len(value) if is_any_length else arguments
        try:
            return tuple(convert(v, k) for v, k in zip(value, kinds, strict=True))
        except ValueError:  # of another length, too
            pass
    raise _KindError(_describe(kind), value)


def _convert_entry(key: Any, value: Any, kinds: tuple) -> Any:
    """Converts a value of a mapping; the error says of which key."""
    try:
        convert(key, kinds[0])
        return convert(value, kinds[1])
    except _KindError as error:
        raise _KindError(str(error), error.value, f".{key}{error.path}") from None


def _convert_number(value: numbers.Real, kind: type) -> Any:
    """Converts to int or float; what arrays cannot hold is refused."""
    if kind is int:
        if -(2**63) <= value < 2**63:
            return int(value)
        raise _KindError("a whole number of 64 bits", value)
    if abs(value) <= _LARGEST:
        return float(value)
    raise _KindError("a finite number, in float32", value)


def check(name: str, value: Any, kind: Any) -> Any:
    """Converts a value as `convert` does.

    Args:
      name: what the value is, for the message: "optimizer.clip_norm".
      value: plain data, as a config or JSON holds it.
      kind: the type annotation.

    Raises:
      InputError: the value is of another type or out of range; the message names it.
    """
    try:
        return convert(value, kind)
    except _KindError as error:
        raise InputError(f"{name}{error.path} is {error.value!r}; it must be {error}") from None
