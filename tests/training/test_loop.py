import itertools
import math

import numpy as np
import pytest

from market_jax.training import loop


class State:
    def __init__(self, step=0):
        self.step = step


def run(val_losses, train_losses=None, *, state=None, progress=None, **changes):
    """Runs the loop on made losses; returns (state, progress, saved, written)."""
    saved, written = [], []
    state, progress = state or State(), progress or loop.Progress()
    val = iter(val_losses)

    def step_fn(state, batch):
        value = train_losses[state.step] if train_losses else 1.0
        return State(state.step + 1), {"loss": np.float32(value)}

    settings = {"total_steps": 12, "evaluate_every": 2, "log_every": 3, "patience": 2} | changes
    try:
        state = loop.run(
            state,
            itertools.count(),
            step_fn=step_fn,
            evaluate_fn=lambda state: {"val/loss": next(val)},
            save_fn=lambda step, state, progress, values: saved.append((step, vars(progress) | {})),
            write_fn=lambda step, values: written.append((step, values)),
            progress=progress,
            **settings,
        )
    finally:
        run.last = saved, written
    return state, progress, saved, written


def test_training_runs_to_its_end():
    state, progress, saved, _ = run([6, 5, 4, 3, 2, 1])
    assert state.step == 12
    assert [step for step, _ in saved] == [2, 4, 6, 8, 10, 12]
    assert (progress.best, progress.best_step, progress.stale) == (1, 12, 0)


def test_early_stopping_waits_for_patience():
    state, progress, saved, _ = run([3, 2, 2.5, 2.0, 1])
    assert state.step == 8
    assert (progress.best, progress.best_step, progress.stale) == (2, 4, 2)
    assert saved[-1][0] == 8


def test_patience_zero_never_stops():
    assert run([1, 2, 3, 4, 5, 6], patience=0)[0].step == 12


def test_a_finished_or_stopped_run_does_nothing():
    assert run([], state=State(12))[2] == []
    assert run([], state=State(8), progress=loop.Progress(2.0, 4, 2))[2] == []


def test_an_unfinished_epoch_ends_with_an_evaluation():
    assert [step for step, _ in run([3, 2, 1], total_steps=5)[2]] == [2, 4, 5]


def test_going_on_counts_from_the_state():
    state, _, saved, _ = run([3, 2], state=State(8))
    assert state.step == 12
    assert [step for step, _ in saved] == [10, 12]


def test_metrics_are_averaged_between_lines():
    losses = [1.0, 3.0, 5.0, 1.0, 2.0, 9.0]
    *_, written = run([3, 2, 1], losses, total_steps=6, evaluate_every=6)
    assert written[0] == (3, {"train/loss": 3.0})
    assert written[1] == (6, {"train/loss": 4.0})
    assert written[2] == (6, {"val/loss": 3})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("step", [0, 4, 5])
def test_a_loss_that_is_not_finite_stops_before_saving(bad, step):
    losses = [1.0] * 12
    losses[step] = bad
    with pytest.raises(loop.NotFiniteError) as error:
        run([3, 2, 1, 1, 1, 1], losses)
    assert error.value.step == step
    saved, _ = run.last
    assert all(done <= step for done, _ in saved)


def test_what_adjusts_the_state_sees_every_evaluation_before_it_is_saved():
    seen = []

    def adjust(state, progress):
        seen.append((state.step, progress.stale))
        return state

    run([3, 4, 2, 5, 1, 6], adjust_fn=adjust)
    assert seen == [(2, 0), (4, 1), (6, 0), (8, 1), (10, 0), (12, 1)]
