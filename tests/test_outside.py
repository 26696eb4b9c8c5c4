"""What is defined outside the package is trained and judged by its name alone."""

import contextlib

import jax
import numpy as np
import pytest

from market_jax import runs
from market_jax.errors import InputError
from market_jax.recipes import supervised
from market_jax.training import checkpoints, writers
from tests import toys
from tests.test_scripts import arrays, finish, kill_after, start


def config_for(synthetic, **changes):
    config = toys.get_config()
    config.data.dir = str(synthetic)
    config.update_from_flattened_dict({"batch_size": 16} | changes)
    return config


def test_a_model_a_loss_an_evaluator_and_a_task_from_outside(synthetic, tmp_path):
    supervised.fit(config_for(synthetic, epochs=2), tmp_path / "run")
    lines = [x for x in writers.read_metrics(tmp_path / "run") if "val/loss" in x]
    assert {"val/loss/hinge", "val/loss/memory", "val/toys/men"} <= lines[0].keys()
    with pytest.raises(InputError, match=r"'tests.toys:evaluate', code outside market_jax"):
        runs.restore(tmp_path / "run")
    run = runs.restore(tmp_path / "run", allow_imports=True)
    assert isinstance(run.predict.model, toys.Model)
    assert "memory" not in run.predict.variables, "a memory is of the training, not of the model"
    assert toys.run(run) == f"men: {lines[run.step // lines[0]['step'] - 1]['val/toys/men']:.3f}"


def test_a_memory_is_a_collection_of_the_state(synthetic, tmp_path):
    supervised.fit(config_for(synthetic, epochs=1), tmp_path / "run")
    step = checkpoints.find(tmp_path / "run/checkpoints")
    saved = tmp_path / "run/checkpoints" / str(step)
    with contextlib.closing(checkpoints.ocp.StandardCheckpointer()) as checkpointer:
        bank = checkpointer.restore(saved / "variables")["memory"]
    assert int(bank["seen"]) == step
    assert np.abs(bank["means"]).max() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses.hinge.margin": "wide"}, "margin is 'wide'; it must be a number"),
        ({"losses.hinge.name": "tests.toys:hing"}, "'tests.toys:hing' cannot be imported"),
        ({"hooks.memory.momentum": None}, "momentum is None; it must be a number"),
        ({"evaluators.men.name": "no.such:thing"}, "'no.such:thing' cannot be imported"),
    ],
)
def test_what_is_wrong_outside_is_named(synthetic, tmp_path, changes, message):
    config = config_for(synthetic)
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=message):
        supervised.fit(config, tmp_path / "run")


def test_memory_average_and_rounds_survive_being_killed(synthetic, tmp_path):
    """Bit for bit, also in the middle of a round."""

    def train(name):
        return start(
            "train.py",
            "--config=tests/toys.py:rounds",
            f"--workdir={tmp_path / name}",
            f"--config.data.dir={synthetic}",
            "--config.epochs=8",
        )

    finish(train("whole"))
    for lines in (12, 40):
        kill_after(train("killed"), tmp_path / "killed", lines)
    output = finish(train("killed"))
    assert "going on from the checkpoint of step" in output
    (step, expected), (again, found) = (arrays(tmp_path / n) for n in ("whole", "killed"))
    assert step == again
    names = {jax.tree_util.keystr(path) for path, _ in found}
    assert any("memory" in name for name in names)
    assert any(name.startswith("['ema']") for name in names)
    for (path, a), (_, b) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
    logs = [
        [{k: v for k, v in line.items() if "per_second" not in k} for line in lines]
        for lines in map(writers.read_metrics, (tmp_path / "whole", tmp_path / "killed"))
    ]
    assert logs[0] == logs[1]
