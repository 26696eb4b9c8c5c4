"""The training loop: everything it does is a function that it is given.

A training is one or more rounds. A round has columns and a sampler of its own; supervised training
is a single round that never ends; pseudo-labelling makes a new one every few epochs. There is a
checkpoint at every border between two rounds, from which the next round can be made again.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, NoReturn

import jax

from market_jax.data.samplers import Sampler
from market_jax.training.plan import NotFiniteError, Plan, Progress, is_over
from market_jax.training.state import TrainState
from market_jax.typing import Batch, Columns


class StoppedError(RuntimeError):
    """Training was asked to stop, and has saved a checkpoint.

    Args:
      step: the number of steps done.
    """

    def __init__(self, step: int):
        super().__init__(f"stopped after step {step}")
        self.step = step


class Round(NamedTuple):
    """The data that are trained on for a number of steps.

    Attributes:
      columns: columns of the training images.
      sampler: the rows of each step's batch; steps count from the round's beginning.
      steps: the number of steps; None never ends.
      reset: state -> state, called when the round begins; it can fill a memory.
      step: as in `Actions`, for this round; None is the step of the actions.
      report: metrics of the round itself, logged with its first step.
    """

    columns: Columns
    sampler: Sampler
    steps: int | None = None
    reset: Callable[[TrainState], TrainState] = lambda state: state
    step: Callable[[TrainState, Batch], tuple[TrainState, Mapping]] | None = None
    report: Mapping[str, float] | None = None


class Actions(NamedTuple):
    """The functions that the loop calls.

    Attributes:
      step: (state, batch) -> (state, metrics); "loss" is one of the metrics.
      evaluate: state -> metrics; the selected one is among them.
      adjust: (state, progress) -> state, called after every evaluation.
      save: (step, state, progress, score) -> None; saves a checkpoint; the score is None where
        nothing was evaluated.
      write: (step, metrics) -> None; logs metrics.
      stop: step -> whether training is asked to stop after it; it saves first.
    """

    step: Callable[[TrainState, Batch], tuple[TrainState, Mapping]]
    evaluate: Callable[[TrainState], dict[str, float]]
    adjust: Callable[[TrainState, Progress], TrainState]
    save: Callable[[int, TrainState, Progress, float | None], None]
    write: Callable[[int, dict[str, float]], None]
    stop: Callable[[int], bool] = lambda step: False


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

    def check(self) -> None:
        """Raises a `NotFiniteError` if the loss of the last step is not finite."""
        pending, self._pending = self._pending, None
        self._fetch(pending)

    def _fetch(self, pending) -> None:
        if pending is None:
            return
        values = {name: float(value) for name, value in jax.device_get(pending[1]).items()}
        if not math.isfinite(values["loss"]):
            raise NotFiniteError(pending[0], "loss", values["loss"])
        self._read.append(values)


def _evaluate(
    done: int, state: TrainState, progress: Progress, plan: Plan, actions: Actions, *, border: bool
) -> TrainState:
    """Evaluates, logs and saves; at the end of a round the next one begins."""
    try:
        values = actions.evaluate(state)
    except KeyboardInterrupt:
        _stop(done, state, progress, actions, pending=True)
    score = plan.select.score(done, values) if values else None  # without a held-out side
    if values:
        progress.update(done, values[plan.select.metric], plan.select.mode)
    progress.pending = False
    state = actions.adjust(state, progress)
    if border:
        progress.round, progress.round_start = progress.round + 1, done
    if values:
        actions.write(done, values)  # before it is saved: a restart drops what was not
    actions.save(done, state, progress, score)
    return state


def _stop(
    done: int, state: TrainState, progress: Progress, actions: Actions, *, pending: bool
) -> NoReturn:
    """Saves a checkpoint between two evaluations and ends the training."""
    progress.pending = pending
    actions.save(done, state, progress, None)
    raise StoppedError(done)


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
      state: the state to begin with.
      batches: the batches from the state's step on.
      progress: how the training stands; changed in place.
      plan: when to evaluate, to log and to stop.
      actions: the functions that the loop calls.
      steps: the length of the round, counted from `progress.round_start`; None never ends. One
        that has become shorter than what is done of it ends after the next step.

    Returns:
      The state after the last step.

    Raises:
      NotFiniteError: the loss of a step, or the selected metric, is not finite; that network is not
        saved.
      StoppedError: training was asked to stop; a checkpoint is saved.
    """
    end = math.inf if steps is None else progress.round_start + steps
    window = _Window()

    def is_last(done: int) -> bool:
        return done >= end or done == plan.total_steps

    def evaluate(done: int, state: TrainState) -> TrainState:
        return _evaluate(done, state, progress, plan, actions, border=done >= end)

    if progress.pending:
        state = evaluate(int(state.step), state)
        if is_last(int(state.step)) or is_over(state, progress, plan):
            return state
    for done, batch in enumerate(batches, start=int(state.step) + 1):
        state, metrics = actions.step(state, batch)
        window.push(done - 1, metrics)
        due = is_last(done) or done % plan.evaluate_every == 0
        if due or done % plan.log_every == 0:
            actions.write(done, window.flush())
        if actions.stop(done):
            window.check()
            _stop(done, state, progress, actions, pending=due)
        if due:
            state = evaluate(done, state)
            if is_last(done) or is_over(state, progress, plan):
                break
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
      state: the state to begin with.
      border: the state at `progress.round_start`, from which the present round is made again. It
        may be the state itself.
      progress: how the training stands; changed in place.
      plan: when to evaluate, to log and to stop.
      actions: the functions that the loop calls.
      rounds: (state at the round's beginning, its number) -> the round; the same for the same
        arguments, so that a restart in the middle of a round continues exactly.
      feed: (round, step within it) -> batches from that step on.

    Returns:
      The state after the last step.

    Raises:
      NotFiniteError, StoppedError: as `run_round`.
    """
    while not is_over(state, progress, plan):
        this = rounds(border, progress.round)
        first = int(state.step) - progress.round_start
        if first == 0:
            state = this.reset(state)
            if this.report:
                actions.write(progress.round_start + 1, this.report)
        try:
            own = actions._replace(step=this.step) if this.step else actions
            state = run_round(state, feed(this, first), progress, plan, own, steps=this.steps)
        except NotFiniteError as error:
            if error.name == "loss":
                rows = this.sampler.indices(error.step - progress.round_start)
                error.batch = tuple(this.columns["name"][rows].tolist())
            raise
        border = state
    return state
