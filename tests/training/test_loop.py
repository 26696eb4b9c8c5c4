import itertools
import math

import numpy as np
import pytest

from market_jax.data import samplers
from market_jax.errors import InputError
from market_jax.training import loop
from market_jax.training import plan as plan_


class State:
    def __init__(self, step=0):
        self.step = step


def run(val_losses, train_losses=None, *, state=None, progress=None, adjust=None, **changes):
    """Runs the loop on made losses; returns (state, progress, saved, written)."""
    saved, written = [], []
    state, progress = state or State(), progress or plan_.Progress()
    val = iter(val_losses)
    changes = dict(changes)
    round_steps = changes.pop("round_steps", None)

    def step(state, batch):
        value = train_losses[state.step] if train_losses else 1.0
        return State(state.step + 1), {"loss": np.float32(value)}

    plan = {"total_steps": 12, "evaluate_every": 2, "log_every": 3, "patience": 2} | changes
    actions = loop.Actions(
        step=step,
        evaluate=lambda state: {"val/loss": next(val)},
        adjust=adjust or (lambda state, progress: state),
        save=lambda step, state, progress, score: saved.append((step, vars(progress) | {})),
        write=lambda step, values: written.append((step, values)),
    )
    run.rounds = []

    def rounds(border, number):
        run.rounds.append((border.step, number))
        names = {"name": np.array([f"{i}.jpg" for i in range(12)])}
        return loop.Round(names, samplers.sequential(12, 1), round_steps)

    try:
        state = loop.run(
            state,
            State(progress.round_start),
            progress,
            plan_.Plan(**plan),
            actions,
            rounds=rounds,
            feed=lambda this, first: itertools.count(first),
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
    assert run([], state=State(8), progress=plan_.Progress(2.0, 4, 2))[2] == []


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
    with pytest.raises(plan_.NotFiniteError) as error:
        run([3, 2, 1, 1, 1, 1], losses)
    assert error.value.step == step
    assert error.value.batch == (f"{step}.jpg",)
    saved, _ = run.last
    assert all(done <= step for done, _ in saved)


def test_a_selected_metric_that_is_not_finite_is_never_saved():
    with pytest.raises(plan_.NotFiniteError, match="val/loss of step 4 is nan"):
        run([3, math.nan, 1])
    assert [step for step, _ in run.last[0]] == [2]


def test_what_adjusts_the_state_sees_every_evaluation_before_it_is_saved():
    seen = []

    def adjust(state, progress):
        seen.append((state.step, progress.stale))
        return state

    run([3, 4, 2, 5, 1, 6], adjust=adjust)
    assert seen == [(2, 0), (4, 1), (6, 0), (8, 1), (10, 0), (12, 1)]


def test_every_round_begins_where_the_last_one_ended():
    _, progress, saved, _ = run([6, 5, 4, 3, 2, 1], round_steps=5, evaluate_every=4)
    assert run.rounds == [(0, 0), (5, 1), (10, 2)]
    assert [step for step, _ in saved] == [4, 5, 8, 10, 12]
    assert [kept["round_start"] for _, kept in saved] == [0, 5, 5, 10, 10]
    assert progress.round == 2


def test_going_on_in_the_middle_of_a_round_makes_it_from_its_border():
    progress = plan_.Progress(4.0, 8, 0, round=1, round_start=5)
    _, _, saved, _ = run([3, 2], state=State(8), progress=progress, round_steps=5, evaluate_every=4)
    assert run.rounds == [(5, 1), (10, 2)]
    assert [step for step, _ in saved] == [10, 12]


def test_a_round_that_has_become_shorter_than_what_is_done_ends():
    progress = plan_.Progress(4.0, 8, 0)
    _, progress, saved, _ = run([3, 2, 1], state=State(8), progress=progress, round_steps=3)
    assert run.rounds == [(0, 0), (9, 1)]
    assert [(step, kept["round_start"]) for step, kept in saved] == [(9, 9), (10, 9), (12, 12)]


def test_the_largest_is_the_best_where_the_mode_says_so():
    select = plan_.Select("val/loss", "max")
    _, progress, *_ = run([1, 3, 2, 2.5], select=select)
    assert (progress.best, progress.best_step, progress.stale) == (3, 4, 2)
    assert select.score(1, {"val/loss": 3.0}) > select.score(1, {"val/loss": 2.0})
    with pytest.raises(InputError, match=r"select\.metric is 'val/mAP'; evaluated are val/loss"):
        plan_.Select("val/mAP").score(1, {"val/loss": 3.0})
