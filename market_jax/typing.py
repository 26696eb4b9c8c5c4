"""Array types, the dimension alphabet, and the error that a user can mend.

Shapes are written with one alphabet everywhere:

N batch, M images of a split, H height, W width, C channels, D embedding,
K classes, P identities, Q queries, G gallery.
"""

import importlib
import json
import pkgutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray
Outputs = Mapping[str, Array]  # what a model returns: name -> [N, ...]
Batch = Mapping[str, Array]  # columns of N images, "image" and "mask" among them
Columns = dict[str, Any]  # columns of a split, each with M entries
PyTree = Any


class InputError(ValueError):
    """What the user gave is wrong; the message names the file, the value and the rule.

    The scripts print the message alone, without a traceback.
    """


def choose(name, known, what: str):
    """Returns `known[name]`, or raises an `InputError` that lists the known names."""
    if name not in known:
        raise InputError(f"unknown {what} {name!r}; known: {', '.join(map(str, sorted(known)))}")
    return known[name]


def find_module(package, name: str, what: str):
    """The module `name` of a package; an unknown name's error lists the known ones."""
    known = {m.name: f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__)}
    return importlib.import_module(choose(name, known, what))


def parse(text: str, what: str) -> tuple[str, dict]:
    """A name and its arguments: "k_reciprocal k1=20" -> ("k_reciprocal", {"k1": 20}).

    Args:
      text: the name, then KEY=VALUE, between blanks; a value is JSON, or else itself.
      what: for the error's text.

    Raises:
      InputError: there is no name, or a word has no "=".
    """
    if not text.split():
        raise InputError(f"a {what} has no name")
    name, *words = text.split()
    arguments = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise InputError(f"{what} {text!r}: {word!r} is not KEY=VALUE")
        try:
            arguments[key] = json.loads(value)
        except json.JSONDecodeError:
            arguments[key] = value
    return name, arguments
