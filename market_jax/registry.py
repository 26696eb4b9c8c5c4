"""A thing with arguments is written the same way everywhere: `{"name": "resnet", "depth": 34}`.

`bind` checks the name, the arguments' names, their kinds and their ranges against the function's
signature, whose annotations say them (`typing.Range`). On the command line of `evaluate.py` the
same is written as words, "k_reciprocal k1=20", which `read_words` reads. A name
`package.module:Attribute` stands for something outside this package.
"""

import ast
import collections.abc
import difflib
import functools
import importlib
import inspect
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from market_jax import kinds
from market_jax.errors import InputError

Spec = Mapping[str, Any]
LATER = object()  # for `bind`: an argument that is given when what was bound is called


def choose(name: Any, known: Mapping, what: str) -> Any:
    """Returns `known[name]`.

    Args:
      name: the key to look up.
      known: the choices by name.
      what: a word for the choices, for the message: "pooling".

    Raises:
      InputError: the name is unknown; the message suggests the nearest known name and lists all.
    """
    if isinstance(name, collections.abc.Hashable) and name in known:
        return known[name]
    near = difflib.get_close_matches(str(name), map(str, known), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    names = ", ".join(map(str, sorted(known)))
    raise InputError(f"unknown {what} {name!r}; {hint}known: {names}")


def names_of(*modules: types.ModuleType) -> dict[str, Callable]:
    """Name -> function or class, for everything in the `__all__` of the modules."""
    return {name: getattr(module, name) for module in modules for name in module.__all__}


def files_of(package: types.ModuleType) -> dict[str, str]:
    """File name -> module name, for the files of a package."""
    return {m.name: f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__)}


def find(name: str, known: Mapping, what: str) -> Any:
    """Looks a name up in `known`, or imports `package.module:Attribute` from another package.

    Args:
      name: a key of `known`, or `package.module:Attribute`.
      known: the choices by name.
      what: a word for the choices, for the message: "data set".

    Raises:
      InputError: the name is unknown, or the outside module or attribute does not exist.
    """
    if not isinstance(name, str) or ":" not in name:
        return choose(name, known, what)
    module_name, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, ValueError, AttributeError) as error:
        raise InputError(f"{what} {name!r} cannot be imported ({error})") from None


def find_file(package: types.ModuleType, name: str, what: str, attribute: str) -> Any:
    """Finds what a file of a package defines, or imports `package.module:Attribute` from outside.

    Args:
      package: the package that holds the files.
      name: the file's name without ".py", or `package.module:Attribute`.
      what: a word for the files, for the message: "recipe".
      attribute: the attribute that each file defines: "Model", "fit", "run".

    Raises:
      InputError: the name is unknown, or the outside module or attribute does not exist.
    """
    if ":" in str(name):
        return find(name, {}, what)
    return getattr(importlib.import_module(choose(name, files_of(package), what)), attribute)


def _hints(make: Callable) -> dict[str, Any]:
    """Argument that may be given by name -> its annotation; without one, Any."""
    target = make.func if isinstance(make, functools.partial) else make
    source = target.__init__ if inspect.isclass(target) and "__init__" in vars(target) else target
    try:
        known = typing.get_type_hints(source, include_extras=True)
        if inspect.isclass(target):
            known = typing.get_type_hints(target, include_extras=True) | known
    except NameError:
        known = {}
    parameters = inspect.signature(make).parameters.values()
    return {p.name: known.get(p.name, Any) for p in parameters if p.kind != p.POSITIONAL_ONLY}


def bind(spec: Spec, known: Mapping, what: str, **given: Any) -> functools.partial:
    """Binds a spec's arguments to what it names; call the result to make the thing.

    Args:
      spec: "name", a key of `known` or `package.module:Attribute`; and arguments by name.
      known: name -> function or class.
      what: a word for such a thing, for the message: "backbone".
      **given: arguments that the program gives and no config may set, or `LATER` for those of the
        later call; arguments that the signature does not have are left out.

    Raises:
      InputError: the name or an argument is unknown, or a value is of another kind or out of range.
    """
    if not isinstance(spec, Mapping) and not hasattr(spec, "items"):
        raise InputError(f"a {what} is {spec!r}; it must be a name with arguments: {{'name': ...}}")
    arguments = dict(spec)
    if not arguments.get("name"):
        raise InputError(f"a {what} has no name; known: {', '.join(sorted(known))}")
    name = arguments.pop("name")
    make = find(name, known, what)
    hints = _hints(make)
    settable = {
        key: kind
        for key, kind in hints.items()
        if key not in given and key not in ("name", "parent") and kinds.is_plain(kind)
    }
    for key, value in arguments.items():
        kind = choose(key, settable, f"argument of {what} {name!r}:")
        arguments[key] = kinds.check(f"{what} {name!r}: {key}", value, kind)
    fitting = {k: v for k, v in given.items() if k in hints and v is not LATER}
    return functools.partial(make, **arguments, **fitting)


def complete(bound: functools.partial, what: str, *later: Any) -> functools.partial:
    """Checks that nothing is missing that the signature asks for, and returns `bound`.

    Args:
      bound: the result of `bind`.
      what: a word for such a thing, for the message: "backbone".
      *later: placeholders for the positional arguments of the later call.

    Raises:
      InputError: an argument is missing; the message names it.
    """
    try:
        inspect.signature(bound).bind(*later)
    except TypeError as error:
        raise InputError(f"{what}: {error}") from None
    return bound


def make(spec: Spec, known: Mapping, what: str, **given: Any) -> Any:
    """What a spec names, made.

    Args:
      spec: as for `bind`.
      known: as for `bind`.
      what: as for `bind`.
      **given: as for `bind`.

    Raises:
      InputError: as for `bind`, or an argument is missing.
    """
    return complete(bind(spec, known, what, **given), what)()


def read_value(text: str) -> Any:
    """Reads a value: a Python literal, true or false in any case, or else the text itself.

    Args:
      text: the value; a number with underscores, which Python reads as if they were not there, is
        a text.
    """
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.search(r"\d_", re.sub(r"'[^']*'|\"[^\"]*\"", "", text)):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def read_words(text: str, known: Mapping, what: str) -> dict[str, Any]:
    """Reads a spec from words: "k_reciprocal k1=20" -> {"name": "k_reciprocal", "k1": 20}.

    Args:
      text: the name, then KEY=VALUE, separated by spaces. Where the signature asks for a bool,
        `True`, `true` and `1` are the same, and so are `False`, `false` and `0`.
      known: name -> function or class, whose signature says which values are bools.
      what: a word for such a thing, for the message: "re-ranker".

    Raises:
      InputError: there is no name, a word has no "=", or a key comes twice.
    """
    if not text.split():
        raise InputError(f"a {what} has no name; known: {', '.join(sorted(known))}")
    name, *words = text.split()
    hints = _hints(find(name, known, what))
    spec = {"name": name}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or not value:
            raise InputError(f"{what} {text!r}: {word!r} is not KEY=VALUE")
        if key in spec:
            raise InputError(f"{what} {text!r}: {key!r} is given twice")
        spec[key] = read_value(value)
        if hints.get(key) is bool and spec[key] in (0, 1):
            spec[key] = bool(spec[key])
        if hints.get(key) is str and not isinstance(spec[key], str):
            spec[key] = value
    return spec


def accepts(make: Callable, name: str) -> bool:
    """Whether a function, class or partial has an argument of that name.

    Args:
      make: the function, class or partial.
      name: the argument's name.
    """
    return name in inspect.signature(make).parameters
