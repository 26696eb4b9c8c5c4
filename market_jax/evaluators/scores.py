"""What a network is worth, query by query or picture by picture, as a file.

Another network can be compared with it by pairs, where it is not at hand itself.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from market_jax.errors import InputError
from market_jax.files import read_json, write_atomically

ENDING = ".json"
_FIELDS = {"about": dict, "transductive": bool, "name": list, "pid": list, "values": dict}


class Scores(NamedTuple):
    """The values of one network.

    Attributes:
      path: the folder of the run, or the file that was read.
      about: what was judged and how, as `--task=compare` was asked for it.
      names: the name of each query, or of each picture with labels, [N].
      pids: whom each of them shows, int [N].
      values: metric -> a value of each, float [N]; NaN where it has none. Their mean is the metric.
      transductive: whether the network has learned from the judged pictures, without their labels.
    """

    path: Path
    about: Mapping[str, Any]
    names: np.ndarray
    pids: np.ndarray
    values: Mapping[str, np.ndarray]
    transductive: bool = False


def write(path: Path, scores: Scores) -> None:
    """Writes scores as JSON; no value is rounded.

    Args:
      path: the file.
      scores: the scores; their own path is not written.

    Raises:
      InputError: it cannot be written.
    """
    values = {
        key: [None if np.isnan(value) else value for value in row.tolist()]
        for key, row in scores.values.items()
    }
    content = {
        "about": dict(scores.about),
        "transductive": scores.transductive,
        "name": scores.names.tolist(),
        "pid": scores.pids.tolist(),
        "values": values,
    }
    write_atomically(path, json.dumps(content) + "\n")


def read(path: Path | str) -> Scores:
    """Reads what `write` has written.

    Args:
      path: the file.

    Raises:
      InputError: there is no such file, or it holds no scores; the message names it.
    """
    found = read_json(path)
    for field, kind in _FIELDS.items():
        if not isinstance(found.get(field), kind):
            raise InputError(
                f"{path}: holds no scores of --task=compare: {field!r} must be a {kind.__name__}"
            )
    try:
        names, pids = np.asarray(found["name"], str), np.asarray(found["pid"], np.int64)
        values = {key: np.asarray(row, np.float64) for key, row in found["values"].items()}
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{path}: a value of its scores is no number") from None
    if not values or any(row.shape != (len(names),) for row in (names, pids, *values.values())):
        raise InputError(f"{path}: its lists are not all as long as its {len(names)} names")
    for key, row in values.items():
        if np.isinf(row).any() or np.isnan(row).all():
            raise InputError(
                f"{path}: {key!r} must have finite values, or null where there is none"
            )
    return Scores(Path(path), found["about"], names, pids, values, found["transductive"])
