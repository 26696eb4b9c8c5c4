"""Nothing in a run's folder is executed or imported, whoever wrote it."""

import json
import shutil
import subprocess
import sys

import pytest

import market_jax
from market_jax import runs, settings
from market_jax.errors import InputError
from market_jax.training import checkpoints
from tests.conftest import ROOT


@pytest.fixture
def stranger(workdir, tmp_path, monkeypatch):
    """A run whose saved config names a module that lies beside it, and leaves a mark when run."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nModel = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "runs/stranger"
    shutil.copytree(workdir, run)
    step = checkpoints.find(run / "checkpoints", "best")
    path = run / "checkpoints" / str(step)
    said = json.loads((path / "extra/metadata").read_text())
    said["extra"]["config"]["model"]["name"] = "evil:Model"
    (path / "extra/metadata").write_text(json.dumps(said))
    digests = json.loads((path / "digests.json").read_text())
    digests |= checkpoints._digests(path, ["extra"])
    (path / "digests.json").write_text(json.dumps(digests))
    (run / "config.json").write_text(json.dumps({"format": settings.FORMAT, "config": "evil:x"}))
    return run


def test_a_strangers_run_imports_nothing(stranger, tmp_path):
    message = "config.model.name is 'evil:Model', code outside market_jax, which would be imported"
    with pytest.raises(InputError, match=message):
        market_jax.load(str(stranger))
    assert runs.find_run("attributes", tmp_path / "runs") == stranger
    assert not (tmp_path / "ran").exists()
    with pytest.raises((InputError, TypeError)):  # it is imported when it is asked for
        runs.restore(stranger, allow_imports=True)
    assert (tmp_path / "ran").exists()


def test_a_strangers_run_imports_nothing_where_it_was_unpacked(stranger, tmp_path):
    """Neither without --workdir, in the folder where it was unpacked."""
    run = subprocess.run(
        [sys.executable, str(ROOT / "evaluate.py"), "--task=attributes"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "evil:Model', code outside market_jax" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "config",
    [
        {"model": {"backbone": {"name": "a.b:C"}}},
        {"losses": {"x": {"name": "cross_entropy", "schedule": {"name": "a:b"}}}},
        {"recipe": "a:fit"},
        {"data": {"name": "unitn,a:Builder"}},
        {"evaluators": [{"name": "a:b"}]},
    ],
)
def test_every_place_of_a_config_is_looked_at(config):
    (found,) = settings.outside_names(config)
    assert found.startswith("config.")
    assert not settings.outside_names({"data": {"dir": "c:/x"}, "model": {"name": "resnet"}})
