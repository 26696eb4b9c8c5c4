"""The training loop: it is handed functions and knows no names.

A training is one or more rounds. A round has columns and a sampler of its own; supervised training
is a single round that never ends, pseudo-labelling makes a new one every few epochs. A checkpoint
stands at every border between two rounds, from which the round can be made again.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax

from market_jax.data.samplers import Sampler
from market_jax.errors import InputError
from market_jax.training.state import TrainState
from market_jax.typing import Batch, Columns


class NotFiniteError(RuntimeError):
    """A value of a step is not a number, or is infinite.

    Attributes:
      step: counted from 0.
      batch: the names of the step's images; () where the value is of an evaluation.
    """

    def __init__(self, step: int, name: str, value: float):
        super().__init__(f"the {name} of step {step} is {value}")
        self.step, self.name = step, name
        self.batch: tuple[str, ...] = ()


class Select(NamedTuple):
    """What says which checkpoint is the best.

    Attributes:
      metric: of the evaluation: "val/loss", "val/market/mAP".
      mode: "min" or "max".
    """

    metric: str = "val/loss"
    mode: str = "min"

    def score(self, step: int, values: Mapping[str, float]) -> float:
        """The metric, higher where the network is better.

        Args:
          step: of the evaluation, for the message.
          values: metric name -> value.

        Raises:
          InputError: the metric is not among the values.
          NotFiniteError: it is not finite; such a network is never the best.
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
    """How a training stands, beside its state; saved with it.

    Attributes:
      best: the selected metric's best value so far; None before the first evaluation.
      best_step: the step at which it was reached.
      stale: the number of evaluations since then.
      round: the number of rounds that have ended.
      round_start: the step at which the present round began.
    """

    best: float | None = None
    best_step: int = 0
    stale: int = 0
    round: int = 0
    round_start: int = 0

    def update(self, step: int, value: float, mode: str) -> None:
        """Takes in the selected metric of one evaluation; mode is "min" or "max".

        Args:
          step: of the evaluation.
          value: of the selected metric.
          mode: "min" or "max", what is better.
        """
        better = self.best is None or (value > self.best if mode == "max" else value < self.best)
        if better:
            self.best, self.best_step, self.stale = value, step, 0
        else:
            self.stale += 1


class Round(NamedTuple):
    """What is trained on for a while.

    Attributes:
      columns: of the images.
      sampler: says which rows make up the batch of a step, counted from the round's beginning.
      steps: the number of steps; None never ends.
      reset: state -> state, at the beginning of the round; a memory bank is filled here.
    """

    columns: Columns
    sampler: Sampler
    steps: int | None = None
    reset: Callable[[TrainState], TrainState] = lambda state: state


class Plan(NamedTuple):
    """When what happens.

    Attributes:
      total_steps: after which the training ends.
      evaluate_every: the number of steps between evaluations.
      log_every: the number of steps whose metrics are averaged into one line of the log.
      patience: evaluations without a better value after which training stops; 0 never stops.
      select: which value that is.
    """

    total_steps: int
    evaluate_every: int
    log_every: int
    patience: int
    select: Select = Select()


class Actions(NamedTuple):
    """What the loop calls.

    Attributes:
      step: (state, batch) -> (state, metrics), "loss" among them.
      evaluate: state -> metrics, the selected one among them.
      adjust: (state, progress) -> state, after every evaluation.
      save: (step, state, progress, score) keeps a checkpoint.
      write: (step, metrics) logs.
    """

    step: Callable[[TrainState, Batch], tuple[TrainState, Mapping]]
    evaluate: Callable[[TrainState], dict[str, float]]
    adjust: Callable[[TrainState, Progress], TrainState]
    save: Callable[[int, TrainState, Progress, float], None]
    write: Callable[[int, dict[str, float]], None]


class _Window:
    """Metrics since the last line; those of a step are read while the next one runs."""

    def __init__(self):
        self._pending, self._read = None, []

    def push(self, step: int, metrics: Mapping) -> None:
        """Takes the metrics of a step, and reads those of the one before."""
        pending, self._pending = self._pending, (step, metrics)
        self._fetch(pending)

    def flush(self) -> dict[str, float]:
        """Means over the steps since the last call."""
        self._fetch(self._pending)
        self._pending, read, self._read = None, self._read, []
        return {f"train/{k}": sum(m[k] for m in read) / len(read) for k in read[0]}

    def _fetch(self, pending) -> None:
        if pending is None:
            return
        values = {name: float(value) for name, value in jax.device_get(pending[1]).items()}
        if not math.isfinite(values["loss"]):
            raise NotFiniteError(pending[0], "loss", values["loss"])
        self._read.append(values)


def is_over(state: TrainState, progress: Progress, plan: Plan) -> bool:
    """Whether all steps are done, or the selected metric has stood still for long enough.

    Args:
      state: of the training.
      progress: of the training.
      plan: of the training.
    """
    return int(state.step) >= plan.total_steps or 0 < plan.patience <= progress.stale


def _evaluate(
    done: int, state: TrainState, progress: Progress, plan: Plan, actions: Actions, *, border: bool
) -> TrainState:
    """Evaluates, logs and saves; at the end of a round the next one begins."""
    values = actions.evaluate(state)
    score = plan.select.score(done, values)
    progress.update(done, values[plan.select.metric], plan.select.mode)
    state = actions.adjust(state, progress)
    if border:
        progress.round, progress.round_start = progress.round + 1, done
    actions.write(done, values)  # before it is saved: a restart drops what was not
    actions.save(done, state, progress, score)
    return state


def run_round(
    state: TrainState,
    batches: Iterable[Batch],
    progress: Progress,
    plan: Plan,
    actions: Actions,
    *,
    steps: int | None = None,
) -> TrainState:
    """Trains to the end of a round, or of the training.

    Args:
      state: where to begin.
      batches: from the state's step on.
      progress: changed in place.
      plan: when what happens.
      actions: what is called.
      steps: of the round, counted from `progress.round_start`; None never ends.

    Returns:
      The last state.

    Raises:
      NotFiniteError: with the step (from 0) whose loss is not finite; nothing is saved.
    """
    end = math.inf if steps is None else progress.round_start + steps
    window = _Window()
    for done, batch in enumerate(batches, start=int(state.step) + 1):
        state, metrics = actions.step(state, batch)
        window.push(done - 1, metrics)
        last = done in (end, plan.total_steps)
        if last or done % plan.evaluate_every == 0:
            actions.write(done, window.flush())
            state = _evaluate(done, state, progress, plan, actions, border=done == end)
            if last or is_over(state, progress, plan):
                break
        elif done % plan.log_every == 0:
            actions.write(done, window.flush())
    return state


def run(
    state: TrainState,
    border: TrainState,
    progress: Progress,
    plan: Plan,
    actions: Actions,
    *,
    rounds: Callable[[TrainState, int], Round],
    feed: Callable[[Round, int], Iterable[Batch]],
) -> TrainState:
    """Trains round after round, until the plan's end.

    Args:
      state: where to begin.
      border: the state at `progress.round_start`, from which the present round is made again. It
        may be the state itself.
      progress: changed in place.
      plan: when what happens.
      actions: what is called.
      rounds: (state at the round's beginning, number of the round) -> the round; the same answer
        for the same arguments, so that a restart in the middle of a round goes on exactly.
      feed: (round, step within it) -> batches from that step on.

    Returns:
      The last state.

    Raises:
      NotFiniteError: as `run_round`.
    """
    while not is_over(state, progress, plan):
        this = rounds(border, progress.round)
        first = int(state.step) - progress.round_start
        if first == 0:
            state = this.reset(state)
        try:
            state = run_round(state, feed(this, first), progress, plan, actions, steps=this.steps)
        except NotFiniteError as error:
            if error.name == "loss":
                rows = this.sampler.indices(error.step - progress.round_start)
                error.batch = tuple(this.columns["name"][rows].tolist())
            raise
        border = state
    return state
