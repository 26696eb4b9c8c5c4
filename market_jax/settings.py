"""The config that is saved with a run: written as JSON, read again, compared."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from market_jax import files
from market_jax.errors import InputError

FILE = "config.json"
FORMAT = 4  # of what a run keeps: config, checkpoints, who was trained on; 1 was version 0.1.0's
# of a run that goes on: how long, how loud, where the data lie, what computes the same to rounding
MAY_CHANGE = (
    *("epochs", "patience", "log_every", "convolution", "remat", "profile", "tasks"),
    *("report_every", "data.dir", "data.in_memory"),
)
_OPEN = (-1, [-1])  # is filled in with what the data say
# what may be so -> what stands for it where no data are open
COUNTED = {"model.identities": 2, "model.backbone.cameras": (1, 2), "hooks.memory.slots": 2}
MAY_CHANGE_BELOW = ("evaluators.", "writers.")  # they look on


def to_json(config: ConfigDict) -> dict:
    """The config as nested dicts and lists that JSON can hold."""
    return json.loads(config.to_json())


def count(config: ConfigDict, numbers: Mapping[str, Any]) -> ConfigDict:
    """The config with what the data say; the same object where nothing is to be filled in.

    Args:
      config: of the experiment.
      numbers: a setting of `COUNTED` -> its value, where the config has -1 or (-1,).
    """
    known = flatten(to_json(config))
    asked = {key: number for key, number in numbers.items() if known.get(key) in _OPEN}
    if not asked:
        return config
    counted = config.copy_and_resolve_references()
    counted.update_from_flattened_dict(asked)
    return counted


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


def check_folder(workdir: Path) -> None:
    """Refuses the folder of a run that an older version of market_jax has trained.

    Args:
      workdir: the folder of the run.

    Raises:
      InputError: the config that is kept there has another format, or is damaged.
    """
    path = Path(workdir) / FILE
    if path.exists():
        check_format(files.read_json(path), path)


def check_same_run(
    workdir: Path, saved: dict, config: ConfigDict, defaults: ConfigDict | None = None
) -> None:
    """Refuses to continue a run that was started with other settings.

    Args:
      workdir: the folder of the run, for the message.
      saved: the config that the run was started with, as JSON.
      config: the config of the training that would continue it.
      defaults: the settings as the config's file has them. A setting that the saved run does not
        know yet may have its default.

    Raises:
      InputError: the settings differ; the message names them and their values.
    """
    old, new = flatten(saved), flatten(to_json(config))
    usual = flatten(to_json(defaults)) if defaults is not None else {}
    differing = [
        f"{key} {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, usual.get(key)) != new.get(key)
        and key not in MAY_CHANGE
        and not (key in COUNTED and new.get(key) in _OPEN)
        and not key.startswith(MAY_CHANGE_BELOW)
    ]
    if differing:
        raise InputError(
            f"{workdir} holds a run with other settings ({'; '.join(differing)}); "
            "give another --workdir"
        )


def outside_names(value, key: str = "config") -> dict[str, str]:
    """The names in a saved config that stand for code outside this package: key -> name.

    Args:
      value: the config as JSON, or a part of it.
      key: where the part is in the config.
    """
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    else:
        is_name = isinstance(value, str) and key.rsplit(".", 1)[-1] in ("name", "recipe")
        return {key: value} if is_name and ":" in value else {}
    found: dict[str, str] = {}
    for name, part in parts:
        found |= outside_names(part, f"{key}.{name}")
    return found
