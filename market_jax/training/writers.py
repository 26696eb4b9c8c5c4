"""Writes metrics to metrics.jsonl, TensorBoard, and the console with its progress bar."""

import json
import sys
import time
from pathlib import Path

from absl import logging
from tensorboardX import SummaryWriter
from tqdm import tqdm

from market_jax.files import write_atomically

METRICS_FILE = "metrics.jsonl"


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, [] without the file; a last line cut short by a kill is left out.

    Args:
      workdir: the folder of the run.
    """
    path = Path(workdir) / METRICS_FILE
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


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
    """

    def __init__(self, workdir: Path, first_step: int, total_steps: int, batch_size: int):
        kept = [line for line in read_metrics(workdir) if line["step"] <= first_step]
        self._path = Path(workdir) / METRICS_FILE
        write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._board = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=first_step + 1)
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

    def __exit__(self, *_):
        self._bar.close()
        self._board.close()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the metrics of a step.

        Args:
          step: the number of steps done.
          metrics: metric name -> value.
        """
        metrics = dict(metrics)
        last_step, last_time = self._last
        if step > last_step:
            now = time.monotonic()
            speed = (step - last_step) * self._batch_size / max(now - last_time, 1e-9)
            metrics["train/images_per_second"] = speed
            self._last = (step, now)
            self._bar.set_postfix_str(f"{speed:.0f} images/s", refresh=False)
            self._bar.update(step - last_step)
        with open(self._path, "a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        if any(name.startswith("val/") for name in metrics):
            self._evaluated(step, metrics)

    def _evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """A line for the console; the time since the last step was the evaluation's."""
        shown = [f"{k} {v:.4f}" for k, v in metrics.items() if "/loss/" not in k]
        line = f"step {step}/{self._bar.total}: " + ", ".join(shown)
        if self._bar.disable:
            logging.info(line)
        else:
            self._bar.write(line)
        self._last = (step, time.monotonic())
