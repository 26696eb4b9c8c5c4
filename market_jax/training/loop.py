"""The training loop: it is handed functions and knows no names."""

import dataclasses
import math
from collections.abc import Callable, Iterable

import jax

from market_jax.training.state import TrainState
from market_jax.typing import Batch


class NotFiniteError(RuntimeError):
    """The loss of a step is not a number, or is infinite."""

    def __init__(self, step: int, loss: float):
        super().__init__(f"the loss of step {step} is {loss}")
        self.step = step


@dataclasses.dataclass
class Progress:
    """How early stopping stands; saved with the state.

    Attributes:
      best: the smallest validation loss so far.
      best_step: where it was reached.
      stale: evaluations since then.
    """

    best: float = math.inf
    best_step: int = 0
    stale: int = 0

    def update(self, step: int, loss: float) -> None:
        """Takes in one evaluation."""
        if loss < self.best:
            self.best, self.best_step, self.stale = loss, step, 0
        else:
            self.stale += 1


def _fetch(step: int, metrics) -> dict[str, float]:
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not math.isfinite(values["loss"]):
        raise NotFiniteError(step, values["loss"])
    return values


def run(
    state: TrainState,
    batches: Iterable[Batch],
    *,
    step_fn: Callable,
    evaluate_fn: Callable[[TrainState], dict[str, float]],
    save_fn: Callable[[int, TrainState, Progress, dict[str, float]], None],
    write_fn: Callable[[int, dict[str, float]], None],
    progress: Progress,
    total_steps: int,
    evaluate_every: int,
    log_every: int,
    patience: int,
    adjust_fn: Callable[[TrainState, Progress], TrainState] = lambda state, progress: state,
) -> TrainState:
    """Trains until `total_steps`, or until the validation loss has stood still.

    Metrics of a step are read while the next one runs, so that the device never waits.

    Args:
      state: where to begin.
      batches: from step `state.step` on.
      step_fn: (state, batch) -> (state, metrics), with "loss" among them.
      evaluate_fn: state -> validation metrics, with "val/loss" among them.
      save_fn: (step, state, progress, validation metrics) keeps a checkpoint.
      write_fn: (step, metrics) logs.
      progress: of early stopping; changed in place.
      total_steps: where the plan ends.
      evaluate_every: steps between evaluations.
      log_every: steps whose metrics are averaged into one line of the log.
      patience: evaluations without a better loss after which training stops; 0 never stops.
      adjust_fn: (state, progress) -> state, after every evaluation.

    Returns:
      The last state.

    Raises:
      NotFiniteError: with the step (from 0) whose loss is not finite; nothing is saved.
    """
    first = int(state.step)
    if first >= total_steps or 0 < patience <= progress.stale:
        return state
    pending, window = None, []

    def read_pending():
        nonlocal pending
        if pending is not None:
            window.append(_fetch(*pending))
            pending = None

    for step, batch in zip(range(first, total_steps), batches, strict=False):
        state, metrics = step_fn(state, batch)
        read_pending()
        pending = (step, metrics)
        done = step + 1
        evaluate_now = done % evaluate_every == 0 or done == total_steps
        if evaluate_now or done % log_every == 0:
            read_pending()
            means = {f"train/{k}": sum(m[k] for m in window) / len(window) for k in window[0]}
            window.clear()
            write_fn(done, means)
        if evaluate_now:
            values = evaluate_fn(state)
            progress.update(done, values["val/loss"])
            state = adjust_fn(state, progress)
            write_fn(done, values)  # before it is saved: a restart drops what was not
            save_fn(done, state, progress, values)
            if 0 < patience <= progress.stale:
                break
    return state
