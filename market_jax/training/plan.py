"""When a training evaluates, logs and stops, what it selects by, and how it stands: plain data."""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

from market_jax.errors import InputError
from market_jax.training.state import TrainState


class NotFiniteError(RuntimeError):
    """A value of a step is not a number, or is infinite.

    Args:
      step: the step, counted from 0.
      name: the value's name: "loss", or the metric that selects checkpoints.
      value: the value.

    Attributes:
      step: the step, counted from 0.
      name: the value's name.
      batch: the names of the step's images; () where the value comes from an evaluation.
    """

    def __init__(self, step: int, name: str, value: float):
        super().__init__(f"the {name} of step {step} is {value}")
        self.step, self.name = step, name
        self.batch: tuple[str, ...] = ()


class Select(NamedTuple):
    """How the best checkpoint is chosen.

    Attributes:
      metric: a metric of the evaluation: "val/loss", "val/market/mAP".
      mode: "min" or "max", which says whether lower or higher is better.
    """

    metric: str = "val/loss"
    mode: str = "min"

    def score(self, step: int, values: Mapping[str, float]) -> float:
        """How good a network is: the selected metric, with its sign turned where lower is better.

        Args:
          step: the step of the evaluation, for the message.
          values: metric name -> value.

        Raises:
          InputError: the metric is not among the values.
          NotFiniteError: the metric is not finite; such a network is never the best.
        """
        if self.metric not in values:
            raise InputError(
                f"select.metric is {self.metric!r}; evaluated are {', '.join(sorted(values))}"
            )
        value = values[self.metric]
        if not math.isfinite(value):
            raise NotFiniteError(step, self.metric, value)
        return value if self.mode == "max" else -value


@dataclasses.dataclass
class Progress:
    """How a training stands; saved with each checkpoint.

    Attributes:
      best: the selected metric's best value so far; None before the first evaluation.
      best_step: the step at which the best value was reached.
      stale: the number of evaluations since then.
      round: the number of rounds that have ended.
      round_start: the step at which the present round began.
      pending: whether the training was stopped before the evaluation that is due.
    """

    best: float | None = None
    best_step: int = 0
    stale: int = 0
    round: int = 0
    round_start: int = 0
    pending: bool = False

    def update(self, step: int, value: float, mode: str) -> None:
        """Takes in the selected metric of one evaluation.

        Args:
          step: the step of the evaluation.
          value: the value of the selected metric.
          mode: "min" or "max", which says whether lower or higher is better.
        """
        better = self.best is None or (value > self.best if mode == "max" else value < self.best)
        if better:
            self.best, self.best_step, self.stale = value, step, 0
        else:
            self.stale += 1


class Plan(NamedTuple):
    """When to evaluate, to log and to stop.

    Attributes:
      total_steps: the step after which training ends.
      evaluate_every: the number of steps between evaluations.
      log_every: the number of steps whose metrics are averaged into one line of the log.
      patience: evaluations without a better value after which training stops; 0 never stops.
      select: how the best checkpoint is chosen.
      report_every: the number of evaluations until pictures are drawn again; 0 draws them in the
        end alone.
    """

    total_steps: int
    evaluate_every: int
    log_every: int
    patience: int
    select: Select = Select()
    report_every: int = 1

    def draws_at(self, step: int) -> bool:
        """Whether pictures are drawn at an evaluation.

        Args:
          step: the step of the evaluation; one between two others, at the border of a round, counts
            as the later one.
        """
        number = -(-step // self.evaluate_every)
        return self.report_every > 0 and number % self.report_every == 0


def is_over(state: TrainState, progress: Progress, plan: Plan) -> bool:
    """Whether all steps are done, or the selected metric has not improved for `plan.patience`.

    Args:
      state: the training's state.
      progress: how the training stands.
      plan: when training stops.
    """
    done = int(state.step) >= plan.total_steps or 0 < plan.patience <= progress.stale
    return done and not progress.pending
