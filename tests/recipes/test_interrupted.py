"""Trainings that are stopped, locked out, or whose data have changed."""

import os
import shutil
import signal

import jax
import numpy as np
import pytest

import data_prep
from market_jax import runs, scripts
from market_jax.errors import InputError
from market_jax.files import locked
from market_jax.recipes import supervised
from market_jax.training import checkpoints, loop, writers
from tests.conftest import row as annotation
from tests.conftest import small, write_annotations, write_picture


@pytest.fixture(autouse=True)
def heeded():
    """Signals that this process ignores, as under nohup, are heeded in these tests."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in scripts.STOPPING}
    yield
    for number, old in before.items():
        signal.signal(number, old)


def parameters(run):
    """The latest parameters of a run, as arrays."""
    return jax.tree.leaves(runs.restore(run, "latest").predict.variables)


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGTERM, "step"), (signal.SIGINT, "last step"), (signal.SIGHUP, "evaluation")],
)
def test_a_signal_saves_and_the_same_command_goes_on(
    synthetic, workdir, tmp_path, monkeypatch, number, moment
):
    """Wherever it strikes, the end is the same, bit for bit."""
    config = small(synthetic)
    lines = [x["step"] for x in writers.read_metrics(workdir) if "val/loss" in x]
    strike = {"step": lines[0] + 3, "last step": lines[0], "evaluation": lines[0]}[moment]
    push = loop._Window.push

    def signalled_push(self, step, metrics):
        push(self, step, metrics)
        if step + 1 == strike and moment != "evaluation":
            os.kill(os.getpid(), number)

    monkeypatch.setattr(loop._Window, "push", signalled_push)
    if moment == "evaluation":
        evaluate = supervised.fitting.step.evaluate

        def signalled(*arguments):
            os.kill(os.getpid(), number)
            return evaluate(*arguments)

        monkeypatch.setattr(supervised.fitting.step, "evaluate", signalled)
    with pytest.raises(scripts.Stopped) as error:
        supervised.fit(config, tmp_path / "run")
    assert error.value.number == number
    assert checkpoints.steps(tmp_path / "run/checkpoints")[-1] == strike
    monkeypatch.undo()
    supervised.fit(config, tmp_path / "run")
    for a, b in zip(parameters(workdir), parameters(tmp_path / "run"), strict=True):
        np.testing.assert_array_equal(a, b)
    values = [
        [x["val/loss"] for x in writers.read_metrics(run) if "val/loss" in x]
        for run in (workdir, tmp_path / "run")
    ]
    assert values[0] == values[1]


def test_two_trainings_do_not_share_a_folder(synthetic, tmp_path):
    with (
        locked(tmp_path / "run/.lock"),
        pytest.raises(InputError, match="run: another training is running in this folder"),
    ):
        supervised.fit(small(synthetic), tmp_path / "run")


def test_a_folder_that_orbax_cannot_use_is_refused(synthetic, tmp_path):
    with pytest.raises(InputError, match=r"exp\[1\]: brackets"):
        supervised.fit(small(synthetic), tmp_path / "exp[1]")


def test_the_home_folder_is_found(synthetic, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with (
        locked(tmp_path / "run/.lock"),
        pytest.raises(InputError, match=f"{tmp_path}/run: another"),
    ):
        supervised.fit(small(synthetic), "~/run")
    with pytest.raises(InputError, match=f"{tmp_path}/run: holds no checkpoint"):
        runs.restore("~/run")


def test_a_failed_first_run_does_not_bind_the_mended_command(synthetic, tmp_path):
    config = small(synthetic, **{"optimizer.learning_rate": 1e30, "optimizer.warmup_epochs": 0.0})
    with pytest.raises(InputError, match="the loss of step"):
        supervised.fit(config, tmp_path / "run")
    assert (tmp_path / "run/config.json").exists()
    supervised.fit(small(synthetic, epochs=1), tmp_path / "run")
    assert checkpoints.steps(tmp_path / "run/checkpoints")


def test_a_damaged_latest_checkpoint_offers_the_others(synthetic, workdir, tmp_path):
    config, before = small(synthetic), parameters(workdir)
    shutil.copytree(workdir, tmp_path / "run")
    *_, first, latest = checkpoints.steps(tmp_path / "run/checkpoints")
    path = tmp_path / "run/checkpoints" / str(latest) / "training/manifest.ocdbt"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"there are others, of step .*{first}: remove the"):
        supervised.fit(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints" / str(latest))
    supervised.fit(config, tmp_path / "run")
    for a, b in zip(before, parameters(tmp_path / "run"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_need_be_held_out(synthetic, tmp_path):
    config = small(synthetic, epochs=1, **{"data.val_fraction": 0.0})
    supervised.fit(config, tmp_path / "run")
    run = runs.restore(tmp_path / "run")
    assert run.step == checkpoints.steps(tmp_path / "run/checkpoints")[-1]
    assert len(run.dataset().open("train")["pid"]) > 150
    assert not len(run.dataset().open("val")["pid"])


def release(root, pids, color=8):
    """A raw course release of some persons."""
    for pid in pids:
        for camid in (1, 2, 3):
            write_picture(root / "train" / f"{pid:04d}_c{camid}_{pid:09d}.jpg", color * pid)
    for folder in ("test", "queries"):
        write_picture(root / folder / "000000.jpg", 9)
    rows = [(str(pid), annotation(upred=2)) for pid in pids]
    write_annotations(root / "annotations_train.csv", rows)


def test_persons_who_come_later_are_on_no_side_of_a_run(tmp_path, monkeypatch):
    """Who was trained on is never held out, whatever is added to the data."""
    monkeypatch.chdir(tmp_path)
    release(tmp_path / "raw", range(1, 11))
    config = small(tmp_path / "raw", epochs=1, batch_size=8, **{"data.name": "unitn"})
    supervised.fit(config, tmp_path / "run")
    before = runs.restore(tmp_path / "run").dataset()
    release(tmp_path / "raw", range(1, 21))
    after = runs.restore(tmp_path / "run").dataset()
    for split in ("train", "val"):
        assert after.open(split)["name"].tolist() == before.open(split)["name"].tolist()
    config.epochs = 2
    supervised.fit(config, tmp_path / "run")
    write_picture(tmp_path / "raw/train/0001_c4_000000001.jpg", 8)
    message = "of the identities that this run has .* are not the ones they were"
    with pytest.raises(InputError, match=message):
        supervised.fit(config, tmp_path / "run")
    with pytest.raises(InputError, match=message):
        runs.restore(tmp_path / "run").dataset().open("val")


def test_a_run_is_judged_on_another_data_set(workdir, other):
    run = runs.restore(workdir, data=runs.Data("unitn", str(other)))
    assert run.divisions is None
    assert set(run.dataset().open("val")["pid"]) < {2, 7, 11, 30}
    assert data_prep.find_or_prepare("unitn", str(other)) == other
