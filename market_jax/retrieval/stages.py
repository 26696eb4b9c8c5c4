"""Ranking stages by name: "k_reciprocal k1=20 one_more=true" -> a function."""

import functools
import inspect
import json
from collections.abc import Callable

from market_jax.retrieval import centroids, expansion, reranking, spatio_temporal
from market_jax.typing import Columns, InputError, choose

_GIVEN = {"query", "gallery", "distances"}
_KINDS = {
    bool: ("true or false", lambda v: isinstance(v, bool)),
    int: ("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    float: ("a number", lambda v: isinstance(v, int | float) and not isinstance(v, bool)),
    str: ("a name", lambda v: isinstance(v, str)),
}


def parse(text: str) -> tuple[str, dict]:
    """A name and its arguments: KEY=VALUE each, a number, true, false or a name.

    Raises:
      InputError: there is no name, or a word has no "=".
    """
    if not text.split():
        raise InputError("a retrieval stage has no name")
    name, *words = text.split()
    arguments = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise InputError(f"stage {text!r}: {word!r} is not KEY=VALUE")
        try:
            arguments[key] = json.loads(value)
        except json.JSONDecodeError:
            arguments[key] = value
    return name, arguments


def make(text: str, *, metric: str, training: Callable[[], Columns]) -> Callable:
    """The stage (query, gallery, distances) -> distances that the text names.

    Args:
      text: as `parse` reads it.
      metric: for stages that compute distances of their own.
      training: () -> columns of the training images, for stages that learn from them.

    Raises:
      InputError: the stage or an argument does not exist, or the argument is of another kind.
    """
    modules = (reranking, expansion, spatio_temporal, centroids)
    known = {name: getattr(module, name) for module in modules for name in module.__all__}
    name, arguments = parse(text)
    stage = choose(name, known, "retrieval stage")
    parameters = inspect.signature(stage).parameters
    accepted = {key: p.annotation for key, p in parameters.items() if key not in _GIVEN}
    settable = {key: kind for key, kind in accepted.items() if kind in _KINDS}
    for key, value in arguments.items():
        kind, fits = _KINDS[choose(key, settable, f"argument of the stage {name}")]
        if not fits(value):
            raise InputError(f"stage {text!r}: {key} is {value!r}; it must be {kind}")
    if "metric" in accepted:
        arguments = {"metric": metric} | arguments
    if "training" in accepted:
        arguments["training"] = training()
    return functools.partial(stage, **arguments)
