"""When the pictures of a training are drawn."""

import functools
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from market_jax import held_out
from market_jax.errors import InputError
from market_jax.evaluators.result import Result
from market_jax.training.plan import Plan

PICTURE = {"a.png": np.zeros((2, 2, 3), np.uint8)}
RESULTS = {
    "draws": Result(pictures=PICTURE),
    "judges": Result(metrics={"x": 1.0}),
    "both": Result(metrics={"y": 2.0}, pictures={"b.png": PICTURE["a.png"]}),
}


def state(step):
    return types.SimpleNamespace(step=step, averaged_variables={})


def refusing(predict, dataset, *, split="val"):
    """An evaluator that knows before the training that it can judge nothing."""


def refuse(dataset, *, split):
    raise InputError(f"nothing in {split} of {dataset}")


refusing.check = refuse


def test_what_cannot_be_judged_is_told_before_the_first_step(watch, monkeypatch):
    evaluators = {"refusing": functools.partial(refusing, split="test")}
    monkeypatch.setattr(held_out.build, "evaluators_of", lambda _: evaluators)
    with pytest.raises(InputError, match="nothing in test of None"):
        watch(1)


@pytest.fixture
def watch(monkeypatch, tmp_path):
    """Makes the evaluation of a training that computes nothing; what it calls and draws."""
    seen = []

    def judge(name):
        return lambda *_: seen.append(name) or RESULTS[name]

    def make(every):
        training = types.SimpleNamespace(
            config=ConfigDict({"num_instances": 0, "batch_size": 2}),
            dataset=None,
            val={"pid": np.arange(2)},
            plan=Plan(30, 10, 1, 0, report_every=every),
            **dict.fromkeys(("apply", "objective", "model", "mesh")),
        )
        return held_out.HeldOut(training, tmp_path, leader=True), seen

    monkeypatch.setattr(held_out.step, "make_evaluation_step", lambda *_: None)
    monkeypatch.setattr(held_out.step, "evaluate", lambda *_: {"loss": 3.0})
    monkeypatch.setattr(held_out.pipeline, "batches", lambda *_, **__: ())
    monkeypatch.setattr(
        held_out.build, "evaluators_of", lambda _: {name: judge(name) for name in RESULTS}
    )
    monkeypatch.setattr(held_out.curves, "draw", lambda _, path: seen.append(path.name))
    monkeypatch.setattr(held_out, "write_pictures", lambda found, _: seen.extend(found.pictures))
    return make


@pytest.mark.parametrize(
    ("every", "drawn"), [(1, [10, 20, 30]), (2, [20]), (3, [30]), (0, []), (7, [])]
)
def test_evaluations_at_which_pictures_are_drawn(every, drawn):
    plan = Plan(30, 10, 1, 0, report_every=every)
    assert [step for step in (10, 20, 30) if plan.draws_at(step)] == drawn


def test_pictures_of_every_second_evaluation_and_of_the_last(watch):
    evaluate, seen = watch(2)
    assert evaluate(state(10)) == {"val/loss": 3.0, "val/x": 1.0, "val/y": 2.0}
    evaluate.draw_curves(10)
    assert seen == ["draws", "judges", "both"], "nothing is known of them yet, nothing is drawn"
    seen.clear()
    evaluate(state(20))
    evaluate.draw_curves(20)
    assert seen == ["draws", "a.png", "judges", "both", "b.png", "curves.png"]
    seen.clear()
    assert evaluate(state(30)) == {"val/loss": 3.0, "val/x": 1.0, "val/y": 2.0}
    evaluate.draw_curves(30)
    assert seen == ["judges", "both"], "what does nothing but draw rests"
    seen.clear()
    evaluate.finish(state(30))
    evaluate.finish(state(30))
    assert seen == ["curves.png", "both", "b.png", "draws", "a.png"]


def test_pictures_of_every_evaluation_are_not_drawn_again_in_the_end(watch):
    evaluate, seen = watch(1)
    evaluate(state(10))
    assert seen == ["draws", "a.png", "judges", "both", "b.png"]
    seen.clear()
    evaluate.finish(state(10))
    assert not seen


def test_pictures_of_the_end_alone(watch):
    evaluate, seen = watch(0)
    evaluate.finish(state(0))
    assert not seen, "nothing was evaluated"
    for step in (10, 20, 30):
        evaluate(state(step))
        evaluate.draw_curves(step)
    assert not {"a.png", "b.png", "curves.png"} & set(seen)
    seen.clear()
    evaluate.finish(state(30))
    assert {"a.png", "b.png", "curves.png"} < set(seen)
