"""A tracker that gets every line of a run, once, and whose failures end no training.

What it has is kept in the run's folder, so that a training that goes on goes on there, too.
"""

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from absl import logging

from market_jax import files, kinds
from market_jax.errors import InputError
from market_jax.files import write_atomically
from market_jax.training.trackers import Start, Tracker

FOLDER = "trackers"  # of the run's; a file for each tracker
_KEPT = {"place": str, "id": str, "last": dict[str, int]}
_PAUSE, _LONGEST_PAUSE = 60.0, 3600.0  # seconds until a tracker that has failed is tried again


class Followed:
    """A tracker of a run.

    What it could not take is held back and tried again, after longer and longer pauses. A training
    repeats, exactly, the steps after its checkpoint: lines that the tracker has are left out.

    Args:
      key: its name in the config.
      tracker: the tracker.
      start: how the training begins.
      lines: of metrics.jsonl before that; the tracker gets those that it lacks.

    Raises:
      InputError: the training begins, and the tracker cannot.
    """

    def __init__(
        self, key: str, tracker: Tracker, start: Start, lines: Iterable[Mapping[str, float]]
    ):
        self._key, self._tracker, self._start = key, tracker, start
        self._path = start.workdir / FOLDER / f"{key}.json"
        self._kept = self._read()
        self._held: list[tuple[int, dict[str, float]]] = []
        self._begun = self._warned = False
        self._pause, self._next = _PAUSE, 0.0
        for line in () if tracker.rewinds else lines:
            self._hold(line["step"], {k: v for k, v in line.items() if k != "step"})
        try:
            self._send()
        except Exception as error:  # of the packages it may be any
            if start.step == 0:
                raise InputError(
                    f"writers.{key} cannot begin: {_reason(error)}; mend it, or leave it out: "
                    f"--config.writers.{key}.name="
                ) from None
            self._fail(error)

    def _read(self) -> dict[str, Any]:
        """What the tracker has: the id of its run, and the last step of each group of metrics."""
        nothing = {"place": self._tracker.place, "id": "", "last": {}}
        if self._tracker.rewinds or self._start.step == 0 or not self._path.exists():
            return nothing
        try:
            saved = files.read_json(self._path)
            found = {key: kinds.check(key, saved.get(key), kind) for key, kind in _KEPT.items()}
        except InputError as error:
            logging.warning("%s: %s; a new run begins there", self._path, error)
            return nothing
        return found if found["place"] == self._tracker.place else nothing

    def _hold(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes a line, without the metrics that the tracker has of that step."""
        last = self._kept["last"]
        new = {name: value for name, value in metrics.items() if step > last.get(_group(name), -1)}
        if new:
            self._held.append((step, new))

    def _send(self) -> None:
        """Begins if that is to be done, writes what is held back, and keeps what was written."""
        try:
            if not self._begun:
                start = self._start._replace(id=self._kept["id"] or None)
                self._kept["id"] = self._tracker.begin(start)
                self._begun = True
            while self._held:
                step, metrics = self._held[0]
                self._tracker.write(step, metrics)
                self._kept["last"] |= {_group(name): step for name in metrics}
                del self._held[0]
        finally:
            if self._begun and not self._tracker.rewinds:
                write_atomically(self._path, json.dumps(self._kept))

    def _fail(self, error: Exception) -> None:
        """Warns, once, and waits, longer after each failure."""
        if not self._warned:
            logging.warning(
                "writers.%s: %s; it is tried again, and metrics.jsonl has all lines",
                *(self._key, _reason(error)),
            )
        self._warned = True
        self._next = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step, or holds them back.

        Args:
          step: the number of steps done.
          metrics: metric name -> value.
        """
        self._hold(step, metrics)
        if self._held and time.monotonic() >= self._next:
            try:
                self._send()
                self._pause = _PAUSE
            except Exception as error:  # of the packages it may be any
                self._fail(error)

    def close(self, finished: bool) -> None:
        """Tries for the last time, and ends the tracker's run.

        Args:
          finished: whether the training has come to its end, rather than been stopped.
        """
        try:
            if self._held or not self._begun:
                self._send()
            self._tracker.close(finished)
        except Exception as error:  # of the packages it may be any
            self._fail(error)


def _group(name: str) -> str:
    """What is written together: "train", "val" or "round"."""
    return name.partition("/")[0]


def _reason(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
