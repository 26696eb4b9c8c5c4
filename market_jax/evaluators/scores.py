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


class Scores(NamedTuple):
    """The values of one network.

    Attributes:
      path: the folder of the run, or the file that was read.
      run: the name of the run.
      about: what was judged and how, as values that JSON can hold; where the network has seen what
        it is judged on, the entries of `seen.known_people`, whose sentence is "caution".
      names: the name of each query, or of each picture with labels, [N].
      pids: whom each of them shows, int [N].
      values: metric -> a value of each, float [N]; NaN where it has none. Their mean is the metric.
    """

    path: Path
    run: str
    about: Mapping[str, Any]
    names: np.ndarray
    pids: np.ndarray
    values: Mapping[str, np.ndarray]


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
    lists = {"name": scores.names.tolist(), "pid": scores.pids.tolist(), "values": values}
    content = {"run": scores.run, "about": dict(scores.about)} | lists
    write_atomically(path, json.dumps(content) + "\n")


def read(path: Path | str) -> Scores:
    """Reads what `write` has written.

    Args:
      path: the file.

    Raises:
      InputError: there is no such file, or it holds no scores; the message names it.
    """
    path = Path(path).expanduser()
    found = read_json(path)
    kinds = {"run": str, "about": dict, "name": list, "pid": list, "values": dict}
    for field, kind in kinds.items():
        if not isinstance(found.get(field), kind):
            raise InputError(f"{path}: holds no scores of --task=compare ({field!r} is missing)")
    names = found["name"]
    pids = _read_row(path, "pid", found["pid"], len(names), np.int64, (int,))
    values = {}
    for key, row in found["values"].items():
        values[key] = _read_row(path, key, row, len(names), np.float64, (int, float, type(None)))
        if np.isinf(values[key]).any() or np.isnan(values[key]).all():
            raise InputError(
                f"{path}: {key!r} must have finite values, or null where there is none"
            )
    if not all(isinstance(name, str) for name in names) or not found["run"].isprintable():
        raise InputError(f"{path}: 'name' or 'run' holds what is no text")
    return Scores(path, found["run"], found["about"], np.array(names, str), pids, values)


def _read_row(path: Path, key: str, row: Any, size: int, dtype: type, kinds: tuple) -> np.ndarray:
    """A value for each name, where all are of these kinds and none is yes or no."""
    if not isinstance(row, list) or len(row) != size:
        raise InputError(
            f"{path}: {key!r} must be a list of {size} values, as many as there are names"
        )
    wrong = [each for each in row if not isinstance(each, kinds) or isinstance(each, bool)]
    try:
        if not wrong:
            return np.array(row, dtype)
    except OverflowError:
        wrong = [max(filter(None, row), key=abs)]
    raise InputError(f"{path}: {key!r} holds {wrong[0]!r:.40}, which is no number that fits")
