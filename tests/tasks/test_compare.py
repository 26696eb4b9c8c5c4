"""--task=compare."""

import json
import shutil
import subprocess
import sys

import pytest

from market_jax import runs
from market_jax.errors import InputError
from market_jax.metrics import confidence
from market_jax.recipes import supervised
from market_jax.tasks import compare
from tests.conftest import ROOT, small


@pytest.fixture(scope="module")
def other(synthetic, tmp_path_factory):
    """The folder of a run with another seed, hardly trained."""
    folder = tmp_path_factory.mktemp("other") / "other"
    supervised.fit(small(synthetic, seed=5, epochs=1), folder)
    return folder


def record_of(run):
    """The name of each row, and what is said of it."""
    record = json.loads((run.workdir / "evaluation" / compare.FILE).read_text())
    return [row.pop("run") for row in record["runs"]], record["runs"]


def test_a_run_does_not_differ_from_itself(trained, workdir):
    text = compare.run([[trained], [runs.restore(workdir)]])
    names, (_, found) = record_of(trained)
    assert names == [trained.workdir.name, workdir.name]
    for key in compare.METRICS:
        assert (found[key]["difference"], found[key]["p_value"]) == (0, 1)
    assert "+0.00 (+0.00 to +0.00)" in text


def test_the_program_compares_folders(workdir, tmp_path):
    """A row of two seeds beside one run."""
    for name in ("a", "b"):
        shutil.copytree(workdir, tmp_path / name)
    rows = f"{workdir},{tmp_path / 'a'}+{tmp_path / 'b'}"
    command = [sys.executable, "evaluate.py", "--task=compare", f"--workdirs={rows}"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "+0.00 (+0.00 to +0.00)" in found.stdout


def test_runs_of_one_name_are_told_by_their_paths(trained, tmp_path):
    paths = [trained.workdir, tmp_path / trained.workdir.name]
    compare.run([[trained], [trained._replace(workdir=paths[1])]])
    assert record_of(trained)[0] == list(map(str, paths))


def test_differences_are_those_of_the_queries(trained, other):
    compare.run([[trained], [runs.restore(other)]])
    names, (first, second) = record_of(trained)
    assert names == ["run", "other"]
    values = [
        compare.judge(run, "val", "market", flip=False) for run in (trained, runs.restore(other))
    ]
    pids = values[0][1].query["pid"]
    for key in compare.METRICS:
        expected = confidence.compare(values[0][0][key], values[1][0][key], pids)
        assert second[key]["difference"] == pytest.approx(expected.difference)
        assert second[key]["mean"] - first[key]["mean"] == pytest.approx(expected.difference)


def test_seeds_of_a_row_are_averaged(trained, workdir, other):
    compare.run([[trained], [runs.restore(workdir), runs.restore(other)]])
    names, (_, both) = record_of(trained)
    assert names == [trained.workdir.name, f"{workdir.name} + other"]
    compare.run([[trained], [runs.restore(other)]])
    each = [row["mAP"]["mean"] for row in record_of(trained)[1]]
    assert both["mAP"]["mean"] == pytest.approx(sum(each) / 2)


def test_runs_that_hold_out_others_are_not_compared(trained, synthetic, tmp_path):
    config = small(synthetic, epochs=1, **{"data.split_seed": 3})
    supervised.fit(config, tmp_path / "third")
    with pytest.raises(InputError, match="third: its split val has other pictures than"):
        compare.run([[trained], [runs.restore(tmp_path / "third")]])


def test_an_unknown_protocol_is_told(trained):
    with pytest.raises(InputError, match="unknown protocol 'markt'; did you mean 'market'"):
        compare.run([[trained], [trained]], protocol="markt")
