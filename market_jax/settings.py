"""The config as a run keeps it: saved as JSON, read again, compared."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from market_jax.errors import InputError

FILE = "config.json"
# of a run that goes on: how long, how loud, and what computes the same to rounding
MAY_CHANGE = ("epochs", "patience", "log_every", "convolution", "remat", "profile", "tasks")
MAY_CHANGE_BELOW = "retrieval."  # it is about evaluation alone


def to_json(config: ConfigDict) -> dict:
    """The config as JSON knows it."""
    return json.loads(config.to_json())


def from_json(value: dict, defaults: ConfigDict | None = None) -> ConfigDict:
    """The inverse of `to_json`; JSON's lists become tuples again.

    Args:
      value: of a saved config.
      defaults: for the settings that the version which saved it did not have yet.
    """

    def tuples(x):
        if isinstance(x, dict):
            return {k: tuples(v) for k, v in x.items()}
        return tuple(map(tuples, x)) if isinstance(x, list) else x

    config = ConfigDict(defaults or {})
    config.update(tuples(value))
    return config


def flatten(value: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key, item in value.items():
        nested = isinstance(item, dict)
        flat |= flatten(item, f"{prefix}{key}.") if nested else {prefix + key: item}
    return flat


def check_same_run(workdir: Path, config: ConfigDict) -> None:
    """Refuses to go on with a run whose settings were others.

    Raises:
      InputError: names the settings that differ and their values.
    """
    path = workdir / FILE
    if not path.exists():
        return
    old, new = flatten(json.loads(path.read_text())), flatten(to_json(config))
    differing = [
        f"{key} {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and key not in MAY_CHANGE
        and not key.startswith(MAY_CHANGE_BELOW)
    ]
    if differing:
        raise InputError(
            f"{workdir} holds a run with other settings ({'; '.join(differing)}); "
            "give another --workdir"
        )
