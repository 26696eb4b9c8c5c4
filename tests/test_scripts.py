"""The two scripts as a user runs them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from market_jax.training import writers
from tests.conftest import ROOT

SMALL = (
    "--config.data.image_size=(32,16)",
    "--config.model.widths=(4,6,8,6)",
    "--config.model.final_pool=(4,4)",
    "--config.batch_size=8",
    "--config.log_every=1",
)
AS_USERS = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}  # compiled as outside the tests


def start(script, *flags, most=None, **environment):
    """Starts a script of the project on one CPU device; its files may have so many bytes."""
    limit = (
        f"import resource, runpy, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, ({most},) * 2)\n"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return subprocess.Popen(
        [sys.executable, *(["-c", limit] if most else []), str(ROOT / script), *flags],
        cwd=ROOT,
        env=os.environ | AS_USERS | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def places(count):
    """The environments of so many processes that work together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    return [shared | {"JAX_PROCESS_ID": str(number)} for number in range(count)]


def finish(process, code=0):
    """Waits; returns what was printed."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def train(synthetic, workdir, *flags, **environment):
    return start(
        "train.py",
        "--config=configs/attributes_cnn.py",
        f"--workdir={workdir}",
        f"--config.data.dir={synthetic}",
        *SMALL,
        *flags,
        **environment,
    )


def arrays(workdir):
    """The step of the latest checkpoint, and its arrays with their paths."""
    steps = [p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
    latest = max(steps, key=lambda p: int(p.name))
    items = {"variables", "training", "ema"} & {p.name for p in latest.iterdir()}
    with contextlib.closing(ocp.StandardCheckpointer()) as checkpointer:
        trees = {name: checkpointer.restore(latest / name) for name in sorted(items)}
    return int(latest.name), jax.tree_util.tree_leaves_with_path(trees)


def kill_after(process, workdir, lines):
    """SIGKILLs a training once it has logged so many lines and kept a checkpoint."""
    for _ in range(3000):
        kept = list((workdir / "checkpoints").glob("[0-9]*"))
        if kept and len(writers.read_metrics(workdir)) >= lines:
            break
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"


def test_killed_and_started_again_ends_with_the_same_parameters(synthetic, tmp_path):
    flags = ("--config.epochs=8", "--config.patience=0")
    finish(train(synthetic, tmp_path / "whole", *flags))
    for lines in (9, 25):
        kill_after(train(synthetic, tmp_path / "killed", *flags), tmp_path / "killed", lines)
    output = finish(train(synthetic, tmp_path / "killed", *flags))
    assert "going on from the checkpoint of step" in output
    step, expected = arrays(tmp_path / "whole")
    again, found = arrays(tmp_path / "killed")
    assert again == step
    assert len(found) == len(expected) > 40
    for (path, a), (_, b) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
    logs = [
        [{k: v for k, v in line.items() if "per_second" not in k} for line in lines]
        for lines in map(writers.read_metrics, (tmp_path / "whole", tmp_path / "killed"))
    ]
    assert logs[0] == logs[1]


def test_a_preempted_training_saves_and_goes_on(synthetic, tmp_path):
    flags = ("--config.epochs=40", "--config.patience=0")
    process = train(synthetic, tmp_path / "run", *flags)
    for _ in range(3000):
        if len(writers.read_metrics(tmp_path / "run")) >= 3:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output = finish(process, code=128 + signal.SIGTERM)
    assert "Traceback" not in output
    assert "SIGTERM; the same command goes on from the latest checkpoint" in output
    step = arrays(tmp_path / "run")[0]
    assert f"stopped after step {step}: saved in" in output


def test_a_full_disk_ends_a_training_with_a_message(synthetic, tmp_path):
    """It hangs nowhere, and no half checkpoint is left."""
    output = finish(train(synthetic, tmp_path / "run", "--config.epochs=1", most=12_000), code=1)
    assert "cannot be written (" in output  # Orbax's threads may say so too, before
    assert f"train.py: {tmp_path}/run" in output
    assert not list((tmp_path / "run/checkpoints").iterdir())


def test_an_allocation_alone_is_no_training_of_several(synthetic, tmp_path):
    """SLURM_NTASKS without srun, as in an interactive allocation."""
    flags = ("--config.epochs=1", "--config.batch_size=64")
    finish(train(synthetic, tmp_path / "run", *flags, SLURM_NTASKS="2", SLURM_JOB_ID="7"))


def test_two_processes_give_the_result_of_one(synthetic, tmp_path):
    """Training, and an evaluator, for which each computes its share of the images."""

    def run(name, **environment):
        return start(
            "train.py",
            "--config=tests/toys.py",
            f"--workdir={tmp_path / name}",
            f"--config.data.dir={synthetic}",
            "--config.epochs=2",
            "--config.optimizer.learning_rate=1e-4",  # so that rounding does not grow
            **environment,
        )

    for process in [run("two", **place) for place in places(2)]:
        finish(process)
    finish(run("one"))
    one, two = (
        [line for line in writers.read_metrics(tmp_path / name) if "val/loss" in line]
        for name in ("one", "two")
    )
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        assert b["val/loss"] == pytest.approx(a["val/loss"], rel=1e-3)
        assert b["val/toys/men"] == pytest.approx(a["val/toys/men"], abs=0.06), (
            "rounding may turn an image over, no more"
        )


def test_train_then_evaluate_without_a_workdir(synthetic, tmp_path):
    finish(train(synthetic, tmp_path / "runs" / "mine", "--config.epochs=1"))
    process = subprocess.run(
        [sys.executable, str(ROOT / "evaluate.py"), "--task=attributes", "--split=test"],
        cwd=tmp_path,
        env=os.environ | AS_USERS | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "run runs/mine, checkpoint of step" in process.stdout
    assert "mean of 12" in process.stdout
    assert (tmp_path / "runs" / "mine" / "evaluation" / "attributes.json").exists()


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("train.py", ["--config.modle.residual=False"], 'Did you mean "model"'),
        ("train.py", ["--config.model.residul=False"], 'Did you mean "residual"'),
        ("train.py", ["--config.batch_size=many"], "config.batch_size=many"),
        ("train.py", ["--config=configs/source_b.py:heds"], "unknown variant 'heds'; known: plain"),
        ("train.py", ["--config=configs/source_b.py:heads,resnt"], "did you mean 'resnet'"),
        (
            "train.py",
            ["--config=configs/source_b.py", "--config.model.backbone.dpth=3"],
            "the config has no key",
        ),
        ("train.py", ["--config.model.residual=7"], "config.model.residual=7"),
        ("train.py", ["--config=configs/nothing.py"], "configs/nothing.py"),
        ("train.py", ["--config.data.name=duke"], "unknown data set (data.name) 'duke'"),
        ("train.py", ["--workdir=/dev/null/run"], "/dev/null/run/.lock cannot be written (Not a"),
        ("train.py", ["config.seed=5"], "'config.seed=5' is no flag; flags begin with --"),
        ("train.py", ["--config.model.final_pool=(4,)"], "final_pool is (4,); it must be 2 values"),
        ("train.py", ["--config.seed=-1"], "seed is -1; it must be 0 to"),
        ("train.py", ["--config.data.image_size=(128,96)"], "leaves rows or columns out; heights"),
        ("evaluate.py", ["--task=juggling"], "unknown task 'juggling'; known: activation"),
        ("evaluate.py", ["--task=inputs"], "unknown task 'inputs'"),
        ("evaluate.py", ["--task=attributes", "--rerank=x"], "--task=attributes --help lists"),
        ("evaluate.py", ["--task=junk", "--neighbours=3"], "Unknown command line flag"),
        ("evaluate.py", ["--task=reid", "--top_k=many"], "top_k"),
        ("evaluate.py", ["--split=val"], "--task"),
        ("evaluate.py", ["--task=reid", "split=val"], "'split=val' is no flag"),
        (
            "evaluate.py",
            ["--task=reid", "--config=configs/vae.py", "--config.nokey=1"],
            "the config has no key nokey",
        ),
        (
            "evaluate.py",
            ["--task=reid", "--config=configs/vae.py", "--data_dir=x"],
            "--data_dir is of a trained run; --config names none",
        ),
        ("evaluate.py", ["--task=reid", "--data_name=unitn"], "--data_name needs --data_dir"),
        ("evaluate.py", ["--task=attributes", "--workdir=/no"], "/no: holds no checkpoint"),
        ("evaluate.py", ["--task=compare", "--workdir=a"], "task compares those of --workdirs"),
        ("evaluate.py", ["--task=compare", "--workdirs=a"], "two folders of runs or more"),
        ("evaluate.py", ["--task=compare", "--workdirs=a.json,b.json"], "a.json: there is no such"),
        (
            "evaluate.py",
            ["--task=compare", "--workdirs=a.json,b.json", "--checkpoint=latest"],
            "--checkpoint is of runs; --workdirs has files of scores alone",
        ),
        ("evaluate.py", ["--task=reid", "--workdirs=a,b"], "--workdir instead of --workdirs"),
    ],
)
def test_a_users_mistake_ends_in_a_message(script, flags, message):
    if script == "train.py" and not flags[0].startswith("--config="):
        flags = ["--config=configs/attributes_cnn.py", *flags]
    output = finish(start(script, *flags), code=1)
    assert message in output
    assert "Traceback" not in output
