import json

import pytest

from market_jax import files
from market_jax.training import trackers, writers


def test_metrics_reach_the_file_and_tensorboard(tmp_path):
    board = {"tensorboard": trackers.TensorBoard()}
    with writers.Writer(tmp_path, 0, 4, 8, trackers=board) as writer:
        writer.write(2, {"train/loss": 1.5})
        writer.write(2, {"val/loss": 2.5})
    lines = writers.read_metrics(tmp_path)
    assert lines[0]["train/loss"] == 1.5
    assert lines[0]["train/images_per_second"] > 0
    assert lines[1] == {"step": 2, "val/loss": 2.5}
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()


def test_going_on_drops_what_the_killed_run_wrote_beyond_its_checkpoint(tmp_path):
    lines = [{"step": step, "train/loss": 1.0} for step in (5, 10, 15)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / writers.METRICS_FILE).write_text(text + '{"step": 20, "tra')
    with writers.Writer(tmp_path, 10, 20, 8) as writer:
        writer.write(15, {"train/loss": 2.0})
    assert [line["step"] for line in writers.read_metrics(tmp_path)] == [5, 10, 15]
    assert writers.read_metrics(tmp_path)[-1]["train/loss"] == 2.0


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    files.write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        files.write_atomically(path, "new \udcff")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]
