"""Writers beside TensorBoard: stand-ins that record what they are told, and offline packages."""

import json
import sqlite3
import sys
import types

import pytest
from absl import logging

from market_jax.errors import InputError
from market_jax.recipes import supervised
from market_jax.training import followed, trackers, writers
from tests.conftest import small


class Recorder:
    """A tracker that keeps what it is told; the calls that `fails` counts raise."""

    place, rewinds = "here", False

    def __init__(self, fails=0):
        self.starts, self.lines, self.ended, self.fails = [], [], [], fails

    def _may_fail(self):
        self.fails -= 1
        if self.fails >= 0:
            raise ConnectionError("no network\nand more")

    def begin(self, start):
        self._may_fail()
        self.starts.append(start)
        return start.id or "run 1"

    def write(self, step, metrics):
        self._may_fail()
        self.lines.append((step, dict(metrics)))

    def close(self, finished):
        self.ended.append(finished)


def follow(tmp_path, tracker, lines, first=0):
    """A training that writes these lines from a step on, and ends."""
    with writers.Writer(tmp_path, first, 100, 8, trackers={"it": tracker}) as writer:
        for step, name in lines:
            writer.write(step, {name: float(step)})


def told(tracker):
    """(step, name) of all that a tracker was told, without speeds."""
    speed = "train/images_per_second"
    return [(step, name) for step, metrics in tracker.lines for name in metrics if name != speed]


@pytest.fixture
def warnings(monkeypatch):
    """The warnings of the test."""
    found = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: found.append(text % values))
    return found


LINES = [(5, "train/loss"), (10, "train/loss"), (10, "val/loss"), (15, "train/loss")]


def test_a_run_that_goes_on_is_told_no_line_twice(tmp_path):
    first, second, third = Recorder(), Recorder(), Recorder()
    follow(tmp_path, first, LINES)
    follow(tmp_path, second, LINES[1:3], first=5)  # and is killed early again
    follow(tmp_path, third, [*LINES[3:], (20, "train/loss"), (20, "val/loss")], first=10)
    assert [x.starts[0].id for x in (first, second, third)] == [None, "run 1", "run 1"]
    assert told(first) == LINES
    assert told(second) == []
    assert told(third) == [(20, "train/loss"), (20, "val/loss")]
    assert len(writers.read_metrics(tmp_path)) == 6


def test_a_line_that_the_killed_run_had_not_told_is_told(tmp_path):
    follow(tmp_path, Recorder(), LINES[:2])
    second = Recorder()
    follow(tmp_path, second, [(10, "val/loss")], first=10)
    assert told(second) == [(10, "val/loss")]


def test_a_writer_that_comes_later_or_elsewhere_is_told_all(tmp_path):
    with writers.Writer(tmp_path, 0, 100, 8) as writer:
        writer.write(5, {"train/loss": 1.0})
    later, elsewhere = Recorder(), Recorder()
    follow(tmp_path, later, [(10, "train/loss")], first=5)
    assert told(later) == [(5, "train/loss"), (10, "train/loss")]
    elsewhere.place = "there"
    follow(tmp_path, elsewhere, [(15, "train/loss")], first=10)
    assert elsewhere.starts[0].id is None
    assert told(elsewhere) == [(step, "train/loss") for step in (5, 10, 15)]


def test_what_is_kept_of_a_writer_may_be_damaged(tmp_path, warnings):
    follow(tmp_path, Recorder(), LINES[:1])
    (tmp_path / followed.FOLDER / "it.json").write_text('{"id": 3}')
    second = Recorder()
    follow(tmp_path, second, LINES[1:2], first=5)
    assert told(second) == LINES[:2]
    assert "it.json: place is None; it must be a text; a new run begins there" in warnings[0]


def test_a_failure_is_one_warning_and_loses_nothing(tmp_path, warnings, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(followed.time, "monotonic", lambda: now[0])
    tracker = Recorder()
    with writers.Writer(tmp_path, 0, 100, 8, trackers={"it": tracker}) as writer:
        tracker.fails = 2
        for step in (1, 2, 3):
            writer.write(step, {"val/loss": 1.0})
        assert tracker.fails == 1, "it is not tried at every line"
        now[0] += followed._PAUSE
        writer.write(4, {"val/loss": 1.0})
        assert (tracker.fails, tracker.lines) == (0, [])
        now[0] += followed._PAUSE
        writer.write(5, {"val/loss": 1.0})
        assert not tracker.lines, "the second pause is longer"
        now[0] += followed._PAUSE
        writer.write(6, {"val/loss": 1.0})
    assert [step for step, _ in told(tracker)] == [1, 2, 3, 4, 5, 6]
    assert warnings == [
        "writers.it: no network; it is tried again, and metrics.jsonl has all lines"
    ]


def test_a_training_that_begins_needs_its_writer_and_one_that_goes_on_does_not(tmp_path, warnings):
    with pytest.raises(
        InputError, match=r"writers.it cannot begin: no network; .*writers.it.name="
    ):
        follow(tmp_path, Recorder(fails=1), [])
    follow(tmp_path, Recorder(), LINES[:1])
    tracker = Recorder(fails=1)
    follow(tmp_path, tracker, LINES[1:2], first=5)
    assert len(warnings) == 1
    assert told(tracker) == LINES[1:2], "it was tried again in the end"
    assert tracker.starts[0].id == "run 1"
    assert tracker.ended == [True]


def test_a_training_that_is_stopped_has_not_finished(tmp_path):
    tracker = Recorder()
    with pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with writers.Writer(tmp_path, 0, 100, 8, trackers={"it": tracker}):
            raise KeyboardInterrupt
    assert tracker.ended == [False]


def test_a_package_that_is_missing_is_told_before_a_training(synthetic, tmp_path, monkeypatch):
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
        config = small(synthetic, **{f"writers.{name}.name": name})
        with pytest.raises(InputError, match=f"writer '{name}' needs its package: pip install"):
            supervised.fit(config, tmp_path)
    assert not list(tmp_path.glob("*.json*"))


def test_writers_are_named_in_the_config(synthetic):
    config = small(synthetic)
    assert list(trackers.make(config.writers.to_dict())) == ["tensorboard"]
    config.writers.tensorboard.name = ""
    assert trackers.make(config.writers.to_dict()) == {}
    config.writers.tensorboard.name = "tensorbord"
    with pytest.raises(InputError, match=r"unknown writer .* did you mean 'tensorboard'"):
        trackers.make(config.writers.to_dict())


def fake(monkeypatch):
    """A stand-in for the package wandb; returns what it is told."""
    calls = []

    def record(name):
        return lambda *args, **kwargs: calls.append((name, *args, kwargs))

    def init(**settings):
        calls.append(("init", settings))
        return types.SimpleNamespace(
            id=settings["id"] or "abc",
            define_metric=record("define_metric"),
            log=lambda line: calls.append(("log", line)),
            finish=record("finish"),
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return calls


def test_wandb_gets_the_settings_and_steps_of_its_own(tmp_path, monkeypatch):
    calls = fake(monkeypatch)
    tracker = trackers.WandB(project="people", entity="us")
    for first in (0, 5):
        start = {"trackers": {"w": tracker}, "settings": {"model": {"name": "pcb"}}}
        with writers.Writer(tmp_path / "run", first, 10, 8, **start) as writer:
            writer.write(first + 5, {"val/loss": 2.0})
    begun, again = (settings for name, settings, *_ in calls if name == "init")
    assert (begun["project"], begun["entity"], begun["name"]) == ("people", "us", "run")
    assert begun["config"] == {"model": {"name": "pcb"}}
    assert (begun["id"], again["id"], again["resume"]) == (None, "abc", "allow")
    lines = [line for name, line, *_ in calls if name == "log"]
    assert lines == [{"step": step, "val/loss": 2.0} for step in (5, 10)]
    assert calls[-1] == ("finish", {"exit_code": 0})


def test_a_training_goes_on_with_other_writers(synthetic, tmp_path, monkeypatch):
    calls = fake(monkeypatch)
    supervised.fit(small(synthetic, epochs=1, log_every=1), tmp_path)
    changes = {"writers.wandb.name": "wandb", "writers.wandb.project": "people"}
    config = small(synthetic, epochs=2, log_every=1, report_every=0, **changes)
    supervised.fit(config, tmp_path)
    steps = [line["step"] for name, line, *_ in calls if name == "log"]
    assert steps == [line["step"] for line in writers.read_metrics(tmp_path)]
    assert calls[0][1]["config"]["writers"]["wandb"]["project"] == "people"


@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_writes_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for first in (0, 5):
        made = {"w": trackers.WandB()}
        with writers.Writer(tmp_path, first, 10, 8, trackers=made) as writer:
            writer.write(first + 5, {"val/loss": 2.0})
    kept = json.loads((tmp_path / followed.FOLDER / "w.json").read_text())
    assert kept["last"] == {"val": 10}
    folders = sorted(tmp_path.glob("wandb/offline-run-*"))
    assert len(folders) == 2
    assert all(folder.name.endswith(kept["id"]) for folder in folders), "parts of one run"


@pytest.mark.filterwarnings("ignore")
def test_mlflow_writes_into_a_file(tmp_path):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")  # which mlflow-skinny does not bring
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    settings = {"model": {"name": "pcb"}, "long": "x" * 7000} | {f"k{i}": i for i in range(150)}
    for first in (0, 5):
        made = {"m": trackers.MLflow(uri=uri)}
        with writers.Writer(tmp_path, first, 10, 8, trackers=made, settings=settings) as writer:
            writer.write(5, {"val/loss": 2.0})
            writer.write(10, {"val/market/mAP": 0.5})
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        read = lambda text: database.execute(text).fetchall()  # noqa: E731
        assert read("select name, status from runs") == [(tmp_path.name, "FINISHED")]
        found = read("select step, key, value from metrics order by step")
        assert found == [(5, "val/loss", 2.0), (10, "val/market/mAP", 0.5)]
        assert ("pcb",) in read("select value from params where key = 'model.name'")
        assert read("select count(*) from params") == [(152,)]
