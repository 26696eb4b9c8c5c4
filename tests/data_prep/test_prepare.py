import hashlib
import importlib
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

import data_prep
from data_prep import build, summary
from market_jax.data import attributes, columns, prepared
from market_jax.data.folders import Report
from market_jax.errors import InputError
from tests.conftest import ROOT, real, row, write_annotations, write_picture


def listing(directory):
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*"))


def test_unitn(unitn, tmp_path):
    directory, records, report, _ = data_prep.prepare("unitn", unitn, tmp_path / "out")
    assert {split: len(rows) for split, rows in records.items()} == {
        "train": 6,
        "test": 2,
        "query": 2,
    }
    train = columns.open_split(directory, "train", image_size=(16, 8))
    assert train["pid"].tolist() == [2, 2, 7, 7, 11, 11]
    assert train["camid"].tolist() == [1, 2] * 3
    assert train["age"].tolist() == [0, 0, 3, 3, 0, 0]
    red, blue = (
        attributes.CLASSES[key].index(color)
        for key, color in (("up_color", "red"), ("down_color", "blue"))
    )
    assert train["up_color"].tolist() == [red, red, 8, 8, 8, 8]
    assert train["down_color"].tolist() == [9, 9, 9, 9, blue, blue]
    test = columns.open_split(directory, "test", image_size=(16, 8))
    assert set(test["pid"]) == {-2}
    assert set(test["hat"]) == {-1}
    text = summary.table(records, report)
    assert "young 4" in text
    assert "skipped as bad: 0" in text
    left = {name.split("/")[0] for name in listing(tmp_path / "out")}
    assert left == {".unitn.lock", "unitn"}, "something else was left behind"


def break_picture(raw):
    (raw / "train" / "0002_c1_000000002.jpg").write_bytes(b"broken")


def empty_folder(raw):
    for path in (raw / "test").iterdir():
        path.unlink()


def drop_column(raw):
    path = raw / "annotations_train.csv"
    path.write_text(path.read_text().replace("hat", "cap", 1))


def value_out_of_range(raw):
    write_annotations(
        raw / "annotations_train.csv", [("2", row(age=5)), ("7", row()), ("11", row())]
    )


def identity_without_row(raw):
    write_annotations(raw / "annotations_train.csv", [("2", row()), ("7", row())])


def two_rows(raw):
    rows = [(pid, row()) for pid in ("2", "7", "11", "7")]
    write_annotations(raw / "annotations_train.csv", rows)


def strange_name(raw):
    write_picture(raw / "train" / "portrait.jpg")


FAILURES = [
    (break_picture, r"0002_c1_000000002\.jpg: the picture cannot be decoded", 5),
    (empty_folder, r"test: the folder holds no picture", None),
    (drop_column, r"annotations_train\.csv: the header has no column 'hat'", None),
    (value_out_of_range, r"annotations_train\.csv, row 2: column 'age' has value 5", 4),
    (identity_without_row, r"identity 11 has no row, but 0011_c1_000000011\.jpg shows it", 4),
    (two_rows, r"annotations_train\.csv, row 5: identity 7 has a second row", 6),
    (strange_name, r"portrait\.jpg: the name is outside the naming 'unitn'", 6),
]


@pytest.mark.parametrize(("damage", "message", "kept"), FAILURES)
def test_failures_are_named_and_nothing_is_written(unitn, tmp_path, damage, message, kept):
    damage(unitn)
    with pytest.raises(InputError, match=message):
        data_prep.prepare("unitn", unitn, tmp_path / "out")
    assert listing(tmp_path / "out") == [".unitn.lock"]


@pytest.mark.parametrize(("damage", "message", "kept"), FAILURES)
def test_skip_bad_counts_and_lists(unitn, tmp_path, damage, message, kept):
    damage(unitn)
    if kept is None:  # there is nothing left that could be used
        with pytest.raises(InputError, match=message):
            data_prep.prepare("unitn", unitn, tmp_path / "out", skip_bad=True)
        return
    directory, records, report, _ = data_prep.prepare(
        "unitn", unitn, tmp_path / "out", skip_bad=True
    )
    assert len(records["train"]) == kept
    assert len(columns.open_split(directory, "train", image_size=(16, 8))["pid"]) == kept
    assert report.skipped
    text = summary.table(records, report)
    assert f"skipped as bad: {len(report.skipped)}" in text
    assert report.skipped[0] in text


def test_a_run_that_dies_leaves_no_dataset(unitn, tmp_path, monkeypatch):
    def die(self, records, split):
        yield next(super_examples(self, records, split))
        raise KeyboardInterrupt

    super_examples = build.PersonCrops._generate_examples
    monkeypatch.setattr(build.PersonCrops, "_generate_examples", die)
    with pytest.raises(KeyboardInterrupt):
        data_prep.prepare("unitn", unitn, tmp_path / "out")
    assert prepared.find(tmp_path / "out") is None
    monkeypatch.undo()
    data_prep.prepare("unitn", unitn, tmp_path / "out")
    assert prepared.find(tmp_path / "out")


def test_a_killed_writer_leaves_no_dataset(unitn, tmp_path):
    code = f"""
import os, signal
from data_prep import prepare
from data_prep.builders import PersonCrops
def die(self, *_):
    os.kill(os.getpid(), signal.SIGKILL)
    yield
PersonCrops._generate_examples = die
prepare("unitn", {str(unitn)!r}, {str(tmp_path / "out")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode < 0
    assert (tmp_path / "out/.unitn.new").exists(), "it died before it wrote anything"
    assert prepared.find(tmp_path / "out") is None
    with pytest.raises(InputError, match="no prepared data set here"):
        columns.open_split(tmp_path / "out", "train", image_size=(16, 8))


def test_overwriting_is_asked_for(unitn, tmp_path):
    data_prep.prepare("unitn", unitn, tmp_path / "out")
    with pytest.raises(InputError, match="already prepared; --overwrite replaces it"):
        data_prep.prepare("unitn", unitn, tmp_path / "out")
    write_picture(unitn / "train" / "0002_c5_000000001.jpg")
    directory, *_ = data_prep.prepare("unitn", unitn, tmp_path / "out", overwrite=True)
    assert len(columns.open_split(directory, "train", image_size=(16, 8))["pid"]) == 7
    break_picture(unitn)
    with pytest.raises(InputError, match="cannot be decoded"):
        data_prep.prepare("unitn", unitn, tmp_path / "out", overwrite=True)
    assert prepared.find(tmp_path / "out") == directory, "the old one is lost"


def test_prepare_once_finds_its_work_again(unitn, tmp_path, monkeypatch):
    first = data_prep.prepare_once("unitn", unitn, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(build, "prepare", None)
        assert data_prep.prepare_once("unitn", unitn, tmp_path / "cache") == first
    write_picture(unitn / "train" / "0002_c5_000000001.jpg")
    second = data_prep.prepare_once("unitn", unitn, tmp_path / "cache")
    assert second != first, "a changed raw folder is prepared anew"
    path = unitn / "annotations_train.csv"
    path.write_text(path.read_text().replace("7,4,", "7,3,"))  # of the same size
    assert data_prep.prepare_once("unitn", unitn, tmp_path / "cache") not in (first, second)


def test_a_builder_that_has_changed_prepares_anew(unitn, tmp_path, monkeypatch):
    """One's own by its file, all by their version and labels."""
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for note in ("1", "1", "22"):
        text = f'from data_prep.builders import Unitn\n\n\nclass Shop(Unitn):\n    """{note}"""\n'
        (tmp_path / "my_shop.py").write_text(
            text.replace("Unitn)", "Unitn, skip_registration=True)")
        )
        if "my_shop" in sys.modules:
            importlib.reload(sys.modules["my_shop"])
        found.append(data_prep.prepare_once("my_shop:Shop", unitn, tmp_path / "cache"))
    assert found[0] == found[1] != found[2]
    first = data_prep.prepare_once("unitn", unitn, tmp_path / "cache")
    monkeypatch.setattr(build.builders.Unitn, "VERSION", tfds.core.Version("2.0.0"))
    assert data_prep.prepare_once("unitn", unitn, tmp_path / "cache") != first


def test_unknown_dataset_and_missing_source(tmp_path):
    with pytest.raises(InputError, match=r"unknown data set 'duke'; .*known: cuhk03_np, dukemtmc"):
        data_prep.prepare("duke", tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="there is no such folder"):
        data_prep.prepare("unitn", tmp_path / "none", tmp_path / "out")


def test_skipped_listing_is_bounded():
    text = summary.table({}, Report(skipped=[f"bad {i}" for i in range(25)]))
    assert "skipped as bad: 25" in text
    assert "... and 15 more" in text


def test_course_release_folder_is_read_whole():
    records = build.BUILDERS["unitn"].read(
        build.Source(real("unitn-market1501"), Report(), lambda items, desc: items)
    )
    assert len(records["test"]) == 19679
    assert len(records["query"]) == 2248
    pids = {r["pid"] for r in records["train"]}
    assert len(records["train"]) > 10 * len(pids)
    assert {r["camid"] for r in records["train"]} == {1, 2, 3, 4, 5, 6}
    assert all(r["attributes"]["age"] >= 0 for r in records["train"])


def test_command_line(unitn, tmp_path):
    shutil.copy(unitn / "test" / "000001.jpg", unitn / "test" / "000001(1).jpg")
    command = [sys.executable, "-m", "data_prep", "--dataset=unitn", f"--source_dir={unitn}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}

    def call(*flags):
        return subprocess.run(
            [*command, f"--output_dir={tmp_path / 'out'}", *flags],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = call()
    assert done.returncode == 0, done.stderr
    assert "dropped (stray copies, no images): 1" in done.stdout
    assert f"written to {tmp_path / 'out' / 'unitn'}" in done.stdout
    done = call()
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("data_prep: ")
    assert "Traceback" not in done.stderr


def digest(directory):
    files = sorted(p for p in directory.rglob("*.jpg"))
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in files)).hexdigest()


def test_synthetic_is_deterministic_in_its_seed(synthetic_raw, tmp_path):
    small = {"identities": 10, "distractors": 3, "junk": 6}
    data_prep.draw(tmp_path / "again", **small)
    data_prep.draw(tmp_path / "other", seed=1, **small)
    assert digest(tmp_path / "again") == digest(synthetic_raw)
    assert digest(tmp_path / "other") != digest(synthetic_raw)


def test_synthetic_is_in_the_official_layout(synthetic):
    splits = {
        s: columns.open_split(synthetic, s, image_size=(128, 64))
        for s in ("train", "test", "query")
    }
    persons = {s: set(c["pid"][c["pid"] > 0]) for s, c in splits.items()}
    assert not persons["train"] & persons["test"]
    assert persons["query"] == persons["test"]
    assert len(persons["train"] | persons["test"]) == 10
    test = splits["test"]
    assert (test["pid"] == 0).sum() == 3
    assert (test["pid"] == -1).sum() == 6
    assert set(test["gender"][test["pid"] <= 0]) == {-1}
    query = splits["query"]
    seen = list(zip(query["pid"], query["camid"], strict=True))
    assert len(seen) == len(set(seen)), "one query for each identity and camera"
    for pid in persons["query"]:  # every query has a match by another camera
        assert len(np.unique(test["camid"][test["pid"] == pid])) >= 2
    for name in attributes.ATTRIBUTES:
        for pid in persons["train"]:
            labels = splits["train"][name][splits["train"]["pid"] == pid]
            assert len(np.unique(labels)) == 1


def test_synthetic_outfits_are_shared(synthetic):
    looks = {}
    for split in ("train", "test"):
        c = columns.open_split(synthetic, split, image_size=(16, 8))
        for pid, up, down in zip(c["pid"], c["up_color"], c["down_color"], strict=True):
            looks.setdefault((up, down), set()).add(pid)
    assert sum(len(pids) > 1 for pids in looks.values()) >= 3, "colour alone tells people apart"


def test_synthetic_refuses(tmp_path):
    with pytest.raises(InputError, match="exists already"):
        data_prep.draw(tmp_path)
    with pytest.raises(InputError, match="identities is 3; it must be 4 to 9999"):
        data_prep.draw(tmp_path / "new", identities=3)
    assert not (tmp_path / "new").exists()
