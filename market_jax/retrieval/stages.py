"""Ranking stages by name: "k_reciprocal k1=20 one_more=true" -> a function."""

import functools
import inspect
from collections.abc import Callable

from market_jax.errors import InputError
from market_jax.registry import choose, parse
from market_jax.retrieval import centroids, expansion, mahalanobis, reranking, spatio_temporal
from market_jax.typing import Columns

WHAT = "retrieval stage"  # in errors
_GIVEN = {"query", "gallery", "distances"}
_KINDS = {
    bool: ("true or false", lambda v: isinstance(v, bool)),
    int: ("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    float: ("a number", lambda v: isinstance(v, int | float) and not isinstance(v, bool)),
    str: ("a name", lambda v: isinstance(v, str)),
}


def make(text: str, *, metric: str, **learned_from: Callable[[], Columns]) -> Callable:
    """The stage (query, gallery, distances) -> distances that the text names.

    Args:
      text: see `market_jax.typing.parse`.
      metric: for stages that compute distances of their own.
      **learned_from: for stages that learn: "training", () -> columns of the training images,
        and "training_features", the same with their features.

    Raises:
      InputError: the stage or an argument does not exist, or the argument is of another kind.
    """
    modules = (reranking, expansion, spatio_temporal, mahalanobis, centroids)
    known = {name: getattr(module, name) for module in modules for name in module.__all__}
    name, arguments = parse(text, WHAT)
    stage = choose(name, known, WHAT)
    parameters = inspect.signature(stage).parameters
    accepted = {key: p.annotation for key, p in parameters.items() if key not in _GIVEN}
    settable = {key: kind for key, kind in accepted.items() if kind in _KINDS}
    for key, value in arguments.items():
        kind, fits = _KINDS[choose(key, settable, f"argument of the stage {name}")]
        if not fits(value):
            raise InputError(f"{WHAT} {text!r}: {key} is {value!r}; it must be {kind}")
    if "metric" in accepted:
        arguments = {"metric": metric} | arguments
    arguments |= {key: make() for key, make in learned_from.items() if key in accepted}
    if missing := {"training", "training_features"} & accepted.keys() - arguments.keys():
        raise InputError(f"{WHAT} {name} needs the {min(missing).replace('_', ' ')}")
    return functools.partial(stage, **arguments)
