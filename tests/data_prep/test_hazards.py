"""Preparations that are killed, repeated, or come too late; and folders from a stranger."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import data_prep
from data_prep import build
from market_jax.data import prepared
from market_jax.errors import InputError
from tests.conftest import ROOT, write_picture


def start(*flags, cwd=ROOT, before=""):
    """Starts data_prep as a user does."""
    heeded = (
        "import signal; [signal.signal(n, signal.SIG_DFL) for n in (1, 2, 15)]"  # as a terminal's
    )
    code = f"{heeded}\n{before}\nimport runpy, sys; sys.argv[0] = 'data_prep'\n"
    code += "runpy.run_module('data_prep', run_name='__main__', alter_sys=True)"
    return subprocess.Popen(
        [sys.executable, "-c", code, *flags],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def hidden(folder):
    return sorted(p.name for p in folder.iterdir() if p.name.startswith(".") and p.is_dir())


def test_overwriting_that_is_interrupted_keeps_the_old_one(unitn, tmp_path, monkeypatch):
    old = data_prep.prepare("unitn", unitn, tmp_path / "out").directory
    replace, calls = os.replace, []

    def interrupted(source, target):
        calls.append(target)
        if ".new" in str(source) and str(target).endswith("out/unitn"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data_prep.prepare("unitn", unitn, tmp_path / "out", overwrite=True)
    assert prepared.find(tmp_path / "out") == old
    assert not hidden(tmp_path / "out")
    assert calls


def test_what_a_killed_preparation_left_is_put_right(unitn, tmp_path):
    old = data_prep.prepare("unitn", unitn, tmp_path / "out").directory
    os.replace(tmp_path / "out/unitn", tmp_path / "out/.unitn.replaced")
    (tmp_path / "out/.unitn.new/unitn").mkdir(parents=True)
    with pytest.raises(InputError, match="already prepared; --overwrite replaces it"):
        data_prep.prepare("unitn", unitn, tmp_path / "out")
    assert prepared.find(tmp_path / "out") == old
    assert not hidden(tmp_path / "out")


def test_a_drawn_release_is_taken_again_but_not_for_another_seed(tmp_path):
    build.draw_once(tmp_path / "raw", seed=3, identities=4)
    build.draw_once(tmp_path / "raw", seed=3)
    with pytest.raises(InputError, match="raw: was drawn with seed 3, not 4"):
        build.draw_once(tmp_path / "raw", seed=4)


def test_the_fingerprint_sees_what_is_read_and_nothing_else(unitn, tmp_path, monkeypatch):
    """Also through links; and `data.dir=.` finds its own preparation again."""
    monkeypatch.chdir(unitn)
    first = data_prep.find_or_prepare("unitn", ".")
    (unitn / "runs").mkdir()
    (unitn / "runs/log").write_text("new")
    assert data_prep.find_or_prepare("unitn", ".") == first
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("train", "test", "queries", "annotations_train.csv"):
        (linked / name).symlink_to(unitn / name)
    before = build.fingerprint(linked, build.builders.Unitn.INPUTS)
    write_picture(unitn / "train/0002_c1_000000002.jpg", 77)
    assert build.fingerprint(linked, build.builders.Unitn.INPUTS) != before
    assert build.fingerprint(linked) != build.fingerprint(linked, ("test",))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_in_a_message_and_leaves_nothing(tmp_path, number):
    flags = ("--dataset=synthetic", f"--output_dir={tmp_path}", "--identities=900")
    process = start(*flags)
    for _ in range(600):
        if hidden(tmp_path):
            break
        time.sleep(0.1)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number
    assert f"{number.name}; nothing was written; the same command begins again" in error
    assert "Traceback" not in error
    assert not hidden(tmp_path)


def test_a_full_disk_ends_in_a_message_and_keeps_the_old_data_set(unitn, tmp_path):
    old = data_prep.prepare("unitn", unitn, tmp_path / "out").directory
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"
    flags = ("--dataset=unitn", f"--source_dir={unitn}", f"--output_dir={tmp_path}/out")
    process = start(*flags, "--overwrite", before=limit)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert f"data_prep: {tmp_path}/out/unitn cannot be written (" in error
    assert "Traceback" not in error
    assert prepared.find(tmp_path / "out") == old


def test_of_two_first_starts_one_prepares(unitn, tmp_path):
    code = (
        "import data_prep; from pathlib import Path\n"
        f"print(data_prep.find_or_prepare('unitn', {str(unitn)!r}, Path({str(tmp_path)!r})))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    found = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert found[0] == found[1]
    assert prepared.find(Path(found[0].strip())) is not None
