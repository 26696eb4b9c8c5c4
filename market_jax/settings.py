"""The config that is saved with a run: written as JSON, read again, compared."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from market_jax.errors import InputError

FILE = "config.json"
FORMAT = 2  # of what a run keeps: config, checkpoints; 1 was version 0.1.0's
# of a run that goes on: how long, how loud, where the data lie, what computes the same to rounding
MAY_CHANGE = (
    *("epochs", "patience", "log_every", "convolution", "remat", "profile", "tasks"),
    *("data.dir", "data.in_memory"),
)
MAY_CHANGE_BELOW = "evaluators."  # they look on


def to_json(config: ConfigDict) -> dict:
    """The config as nested dicts and lists that JSON can hold."""
    return json.loads(config.to_json())


def from_json(value: dict) -> ConfigDict:
    """The inverse of `to_json`; lists become tuples again."""

    def tuples(x):
        if isinstance(x, dict):
            return {k: tuples(v) for k, v in x.items()}
        return tuple(map(tuples, x)) if isinstance(x, list) else x

    return ConfigDict(tuples(value))


def flatten(value: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}.

    Args:
      value: dicts in dicts.
      prefix: put before every key.
    """
    flat = {}
    for key, item in value.items():
        nested = isinstance(item, dict)
        flat |= flatten(item, f"{prefix}{key}.") if nested else {prefix + key: item}
    return flat


def check_format(saved: dict, where: Path) -> None:
    """Refuses files that an older version of market_jax has written.

    Args:
      saved: the JSON that a run has saved, with its "format".
      where: the file or folder that it was read from, for the message.

    Raises:
      InputError: the format is another one than `FORMAT`.
    """
    if saved.get("format") != FORMAT:
        raise InputError(
            f"{where}: this run was trained by an older version of market_jax, which wrote format "
            f"{saved.get('format', 1)}; this one reads {FORMAT}. Train it again, or evaluate it "
            "with the version that trained it."
        )


def check_same_run(workdir: Path, config: ConfigDict, defaults: ConfigDict | None = None) -> None:
    """Refuses to continue a run that was started with other settings.

    Args:
      workdir: the folder of the run; nothing is checked where it holds no run yet.
      config: the config of the training that would continue it.
      defaults: the settings as the config's file has them. A setting that the saved run does not
        know yet may have its default.

    Raises:
      InputError: the settings differ; the message names them and their values. Or an older version
        has written the run.
    """
    path = Path(workdir) / FILE
    if not path.exists():
        return
    saved = json.loads(path.read_text())
    check_format(saved, path)
    old, new = flatten(saved["config"]), flatten(to_json(config))
    usual = flatten(to_json(defaults)) if defaults is not None else {}
    differing = [
        f"{key} {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, usual.get(key)) != new.get(key)
        and key not in MAY_CHANGE
        and not key.startswith(MAY_CHANGE_BELOW)
    ]
    if differing:
        raise InputError(
            f"{workdir} holds a run with other settings ({'; '.join(differing)}); "
            "give another --workdir"
        )
