import shutil

import numpy as np
import pytest

from market_jax.data import columns, filenames, folders
from market_jax.errors import InputError
from tests.conftest import write_picture


def test_scan(unitn):
    records = folders.scan(unitn / "train", "detect", folders.Report())
    assert [r["pid"] for r in records] == [2, 2, 7, 7, 11, 11]
    assert [r["camid"] for r in records] == [1, 2] * 3
    found = columns.from_records(records, (12, 6))
    images = found["image"][np.arange(6)]
    assert images.shape == (6, 12, 6, 3)
    assert images.dtype == np.uint8
    assert abs(int(images[2].mean()) - 140) < 3
    assert found["image"].take(np.array([2]))[np.array([0])].tolist() == images[2:3].tolist()


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff\xe0 cut"])
def test_broken_picture(unitn, content):
    path = unitn / "train" / "0002_c3_000000001.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"0002_c3_000000001\.jpg: the picture cannot be decoded"):
        folders.scan(unitn / "train", "unitn", folders.Report())
    report = folders.Report(skip_bad=True)
    assert len(folders.scan(unitn / "train", "unitn", report)) == 6
    assert len(report.skipped) == 1


def test_truncated_picture(unitn):
    path = unitn / "train" / "0002_c1_000000002.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="cannot be decoded"):
        folders.scan(unitn / "train", "unitn", folders.Report())


def test_name_outside_the_grammar(unitn):
    write_picture(unitn / "train" / "somebody.jpg")
    with pytest.raises(InputError, match=r"somebody.jpg: the name is outside the naming 'unitn'"):
        folders.scan(unitn / "train", "unitn", folders.Report())
    report = folders.Report(skip_bad=True)
    assert len(folders.scan(unitn / "train", "unitn", report)) == 6
    assert "somebody.jpg" in report.skipped[0]


def test_stray_copies_are_dropped_and_reported(unitn):
    shutil.copy(unitn / "test" / "000001.jpg", unitn / "test" / "000001(1).jpg")
    (unitn / "test" / "Thumbs.db").write_bytes(b"x")
    report = folders.Report()
    records = folders.scan(unitn / "test", "anonymous", report)
    assert [r["name"] for r in records] == ["000000.jpg", "000001.jpg"]
    assert sorted(report.dropped) == ["000001(1).jpg", "Thumbs.db"]


def test_a_picture_with_a_number_is_no_copy_of_another(tmp_path):
    names = ["people (2).jpg", "people (3).jpg", "people(4).jpg", "people.jpg"]
    for color, name in enumerate(names):
        write_picture(tmp_path / name, 40 * color)
    shutil.copy(tmp_path / "people.jpg", tmp_path / "people (5).jpg")
    dropped = []
    assert folders.pictures_of(tmp_path, dropped) == names
    assert dropped == ["people (5).jpg"]


def test_empty_and_missing_folder(tmp_path):
    with pytest.raises(InputError, match="there is no such folder"):
        folders.scan(tmp_path / "none", "unitn", folders.Report())
    with pytest.raises(InputError, match="holds no picture"):
        folders.scan(tmp_path, "unitn", folders.Report())


def test_identity_without_a_row():
    records = [{"name": "a", "pid": 3}, {"name": "b", "pid": 3}, {"name": "c", "pid": -1}]
    with pytest.raises(InputError, match=r"list\.csv: identity 3 has no row, but a shows it"):
        folders.annotate(records, {}, folders.Report(), "list.csv")
    report = folders.Report(skip_bad=True)
    kept = folders.annotate(records, {}, report, "list.csv")
    assert [r["name"] for r in kept] == ["c"]
    assert set(kept[0]["attributes"].values()) == {-1}
    assert len(report.skipped) == 1


def test_a_list_of_pictures(unitn):
    table = unitn / "list.csv"
    table.write_text("camid,name,pid\n2,000001.jpg,7\n1,000000.jpg,0\n")
    records = folders.read_list(unitn / "test", table, folders.Report())
    assert [(r["name"], r["pid"], r["camid"]) for r in records] == [
        ("000000.jpg", 0, 1),
        ("000001.jpg", 7, 2),
    ]
    assert columns.from_records(records, (12, 6))["frame"].tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,pid\n000000.jpg,1\n", "list.csv: the header has no column 'camid'"),
        ("", "the header has no column 'name', 'pid', 'camid'"),
        ("name,pid,camid\n", "lists no picture"),
        (
            "name,pid,camid\n000000.jpg,x,1\n",
            "row 2: column 'pid' has value 'x'; it must be an integer",
        ),
        ("name,pid,camid\n000000.jpg,1\n", "row 2: has 2 cells; the header has 3"),
        ("name,pid,camid\n000000.jpg,1,1\n000000.jpg,1,1\n", "row 3: '000000.jpg' comes twice"),
        ("name,pid,camid\nnobody.jpg,1,1\n", "row 2: there is no picture .*nobody.jpg"),
    ],
)
def test_a_list_that_is_wrong(unitn, text, message):
    table = unitn / "list.csv"
    table.write_text(text)
    with pytest.raises(InputError, match=message):
        folders.read_list(unitn / "test", table, folders.Report())


def test_one_name_outside_the_naming_is_no_silent_loss(monkeypatch):
    said = []
    monkeypatch.setattr(folders.logging, "warning", lambda text, *a: said.append(text % a))
    known = ["a/0002_c1s1_000451_03.jpg", "b/0002_c2s1_000451_03.jpg"]
    assert folders.naming_of(known) == "market1501"
    assert folders.naming_of(["x.jpg"]) is filenames.ANY
    assert not said
    assert folders.naming_of([*known, "c/door.jpg"]) is filenames.ANY
    assert "1 of 3 pictures' names are outside the naming 'market1501'" in said[0]
    assert "such as door.jpg" in said[0]
