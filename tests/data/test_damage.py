"""Damaged prepared data sets: the columns are the ones that were written, or an error tells."""

import contextlib
import hashlib
import json
import shutil
import sys

import numpy as np
import pytest

import data_prep
from market_jax.data import columns, prepared
from market_jax.errors import InputError
from tests.conftest import write_picture
from tests.data.hazards import within

SIZE = (16, 8)


def is_read(path) -> bool:
    """Whether it is one of the files that are read; others are of TFDS."""
    return path.name == prepared.FILE or "array_record" in path.name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A prepared table with a label."""
    root = tmp_path_factory.mktemp("damage")
    lines = ["name,pid,camid,split,hat"]
    for i in range(6):
        write_picture(root / f"raw/{i}.jpg", 30 * i)
        split = ("train", "train", "train", "train", "test", "query")[i]
        lines.append(f"{i}.jpg,{1 + i % 3},{1 + i % 2},{split},{('no', 'yes', '')[i % 3]}")
    (root / "raw/images.csv").write_text("\n".join(lines))
    return data_prep.prepare("table", root / "raw", root / "out").directory


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def read(directory) -> str:
    """All that a data set says, its pictures too."""
    said = [str(prepared.read(directory).schema)]
    for split in sorted(prepared.read(directory).splits):
        rows = columns.open_split(directory, split, image_size=SIZE)
        rows["image"] = rows["image"][np.arange(len(rows["pid"]))]
        said += [f"{key} {rows[key].tolist()}" for key in sorted(rows)]
    return "\n".join(said)


def files(directory):
    return sorted(path for path in directory.iterdir() if path.is_file())


def test_a_flipped_byte_is_noticed_or_changes_nothing(copy, whole):
    expected, rng = read(whole), np.random.default_rng(0)
    assert read(copy) == expected
    names = [path.name for path in files(copy)]
    assert len(names) >= 6
    for path in files(copy):
        content = path.read_bytes()
        for place in rng.integers(0, len(content), 60 if is_read(path) else 8):
            damaged = bytearray(content)
            damaged[place] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged)
            refused = contextlib.suppress(InputError) if is_read(path) else contextlib.nullcontext()
            with within(20), refused:
                assert read(copy) == expected, f"{path.name}, byte {place}"
        path.write_bytes(content)


@pytest.mark.parametrize("cut", ["missing", 0, 1, -1, "longer"])
def test_a_missing_or_cut_file_is_told(copy, cut):
    for path in files(copy):
        content = path.read_bytes()
        path.unlink()
        if cut != "missing":
            path.write_bytes(content + b"\0" if cut == "longer" else content[:cut])
        if not is_read(path):
            read(copy)
        elif path.name == prepared.FILE:
            if cut != -1:  # which is the end of the last line
                with pytest.raises(InputError, match=r"market_jax\.json"):
                    read(copy)
        else:
            with pytest.raises(InputError, match=f"{path.name}: is missing or damaged"):
                read(copy)
        path.write_bytes(content)


def test_files_of_two_splits_that_change_places(copy):
    train, query = (next(copy.glob(f"*-{split}.*")) for split in ("train", "query"))
    train.rename(copy / "aside")
    query.rename(train)
    (copy / "aside").rename(query)
    with pytest.raises(InputError, match=r"is missing or damaged: it is not what was prepared"):
        read(copy)


def test_a_set_of_an_older_version_is_told(copy):
    (copy / prepared.FILE).unlink()
    with pytest.raises(InputError, match=r"has no market_jax\.json: .*prepare it again"):
        prepared.find(copy)
    with pytest.raises(InputError, match="--overwrite"):
        columns.open_split(copy.parent, "train", image_size=SIZE)


def test_nothing_in_the_folder_is_imported(copy, whole, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\nEvil = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = (copy / "features.json").read_text()
    content = json.loads(text)
    content["pythonClassName"] = content["type"] = "evil.Evil"
    (copy / "features.json").write_text(json.dumps(content))
    (copy / "image.image.json").write_text('{"type": "evil.Evil"}')
    assert read(copy) == read(whole)
    assert "evil" not in sys.modules
    assert not (tmp_path / "marker").exists()


def signed(directory, **changes):
    """A manifest that was changed on purpose, its digest too."""
    content = json.loads((directory / prepared.FILE).read_text()) | changes
    content.pop("digest")
    said = json.dumps(content, sort_keys=True).encode()
    content["digest"] = hashlib.sha256(said).hexdigest()
    (directory / prepared.FILE).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "changes",
    [
        *[{"splits": {"train": {name: [9, 9]}}} for name in ("../x", "/etc/passwd", ".x", "a/b")],
        {"splits": {"train": {"x": [9]}}},
        {"splits": {"train": {"x": ["a", "9"]}}},
        {"splits": {"train": {"x": ["a", -1]}}},
        {"splits": {"train": 7}},
        {"splits": None},
        {"labels": {"hat": ["no", "yes"]}},
        {"labels": 7},
        {"labels": [["hat"]]},
        {"labels": [[["hat"], ["no"]]]},
    ],
)
def test_a_manifest_of_another_shape_is_refused(copy, changes):
    signed(copy, **changes)
    with pytest.raises(InputError, match=r"market_jax\.json: is no manifest of a data set"):
        prepared.read(copy)


def test_a_manifest_of_another_version_or_unsigned_is_refused(copy):
    signed(copy, format=99)
    with pytest.raises(InputError, match="is damaged, or of another version"):
        prepared.read(copy)
    (copy / prepared.FILE).write_text('{"format": 1}')
    with pytest.raises(InputError, match="is damaged, or of another version"):
        prepared.read(copy)


def test_labels_that_no_class_has_are_refused(copy):
    signed(copy, labels=[["hat", ["no"]]])
    with pytest.raises(InputError, match="label 'hat' has a value that is no class"):
        read(copy)


def test_other_labels_than_the_records_have_are_refused(copy):
    signed(copy, labels=[["cap", ["no", "yes"]]])
    with pytest.raises(InputError, match="a record is damaged"):
        read(copy)


def test_several_sets_and_unfinished_ones(copy, tmp_path):
    for name in (".table.new", "x.incompleteABC", ".table.replaced"):
        shutil.copytree(copy, tmp_path / "data" / name)
    assert prepared.find(tmp_path / "data") is None
    shutil.copytree(copy, tmp_path / "data/a/1.0.0")
    assert prepared.find(tmp_path / "data") == tmp_path / "data/a/1.0.0"
    shutil.copytree(copy, tmp_path / "data/b/1.0.0")
    with pytest.raises(InputError, match=r"holds several data sets, name one: .*a/1.*b/1"):
        prepared.find(tmp_path / "data")


@pytest.mark.parametrize("size", [(16,), (0, 8), (16, -1), (1, 2, 3)])
def test_an_image_size_that_is_none_is_refused(whole, size):
    with pytest.raises(InputError, match=r"data\.image_size is .*; it must be"):
        columns.open_split(whole, "train", image_size=size)


def test_another_data_set_than_the_config_names_is_refused(whole, tmp_path):
    with pytest.raises(InputError, match=r"data\.name is unitn, but .* is table"):
        data_prep.find_or_prepare("unitn", str(whole), tmp_path)
    assert data_prep.find_or_prepare("table", str(whole), tmp_path) == whole
