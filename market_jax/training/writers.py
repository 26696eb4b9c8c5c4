"""Writes metrics to metrics.jsonl, the console with its progress bar, and the trackers."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging
from tqdm import tqdm

from market_jax.errors import InputError
from market_jax.files import write_atomically
from market_jax.training.followed import Followed
from market_jax.training.trackers import Start, Tracker

METRICS_FILE = "metrics.jsonl"


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, [] without the file; a damaged line is left out.

    Args:
      workdir: the folder of the run.
    """
    path, lines, damaged = Path(workdir) / METRICS_FILE, [], 0
    content = path.read_bytes().splitlines() if path.is_file() else []
    for text in content:
        try:
            line = json.loads(text)
            lines.append({str(key): float(value) for key, value in line.items()} | _step(line))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            damaged += 1
    if damaged:
        logging.warning("%s: %d damaged lines are left out", path, damaged)
    return lines


def _step(line: dict) -> dict[str, int]:
    return {"step": int(line["step"])}


def ignore(step: int, metrics: dict[str, float]) -> None:
    """Writes nothing; for processes that leave writing to another one.

    Args:
      step: not used.
      metrics: not used.
    """


class Writer:
    """Writes the metrics of a run everywhere; use it as a context manager.

    Args:
      workdir: the folder of the run.
      first_step: the step to continue from; logged lines beyond it are dropped.
      total_steps: steps in the whole training, the length of the progress bar.
      batch_size: images in a step, to compute images per second.
      trackers: key in the config -> tracker.
      settings: the config, as JSON, for the trackers.

    Raises:
      InputError: a file cannot be written, or a training begins and a tracker cannot.
    """

    def __init__(
        self,
        workdir: Path,
        first_step: int,
        total_steps: int,
        batch_size: int,
        *,
        trackers: Mapping[str, Tracker] | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        kept = [line for line in read_metrics(workdir) if line["step"] <= first_step]
        self._path = Path(workdir) / METRICS_FILE
        write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        start = Start(Path(workdir), first_step, settings or {})
        self._followed = [
            Followed(key, tracker, start, kept) for key, tracker in (trackers or {}).items()
        ]
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )
        self._batch_size = batch_size
        self._last = (first_step, time.monotonic())

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self._bar.close()
        for followed in self._followed:
            followed.close(kind is None)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the metrics of a step.

        Args:
          step: the number of steps done.
          metrics: metric name -> value.
        """
        metrics = dict(metrics)
        last_step, last_time = self._last
        if step > last_step and any(name.startswith("train/") for name in metrics):
            now = time.monotonic()
            speed = (step - last_step) * self._batch_size / max(now - last_time, 1e-9)
            metrics["train/images_per_second"] = speed
            self._last = (step, now)
            self._bar.set_postfix_str(f"{speed:.0f} images/s", refresh=False)
            self._bar.update(step - last_step)
        try:
            with open(self._path, "a") as file:
                file.write(json.dumps({"step": step, **metrics}) + "\n")
        except OSError as error:
            raise InputError(f"{self._path} cannot be written ({error.strerror})") from None
        for followed in self._followed:
            followed.write(step, metrics)
        if any(name.startswith(("val/", "round/")) for name in metrics):
            self._evaluated(step, metrics)

    def _evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """A line for the console; the time since the last step was not the training's."""
        shown = [f"{k} {v:.4f}" for k, v in metrics.items() if "/loss/" not in k]
        line = f"step {step}/{self._bar.total}: " + ", ".join(shown)
        if self._bar.disable:
            logging.info(line)
        else:
            self._bar.write(line)
        self._last = (self._last[0], time.monotonic())
