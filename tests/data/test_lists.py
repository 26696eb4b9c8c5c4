"""Lists of pictures, and folders that are walked: what is read, what is refused."""

import os

import numpy as np
import pytest
from absl import logging

from market_jax.data import folders
from market_jax.errors import InputError
from tests.conftest import write_picture
from tests.data.hazards import within


def read(root, text, report=None):
    (root / "list.csv").write_text(text)
    return folders.read_list(root, root / "list.csv", report or folders.Report())


@pytest.fixture
def root(tmp_path):
    for name in ("a.jpg", "b.jpg", "sub/c.png", "with, comma.jpg"):
        write_picture(tmp_path / "in" / name)
    write_picture(tmp_path / "x.jpg")
    return tmp_path / "in"


def test_names_are_paths_within_the_folder(root):
    text = 'name,pid,camid,frame\n./b.jpg, 7 ,+1,\nsub//c.png,8,2,5\n"with, comma.jpg",-1,-1,-1\n'
    records = read(root, text)
    assert [(r["name"], r["pid"], r["camid"], r["frame"]) for r in records] == [
        ("b.jpg", 7, 1, -1),
        ("sub/c.png", 8, 2, 5),
        ("with, comma.jpg", -1, -1, -1),
    ]
    assert all(r["path"].exists() for r in records)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../x.jpg,1,1", "'../x.jpg' is no path within"),
        ("sub/../../x.jpg,1,1", "'sub/../../x.jpg' is no path within"),
        ("/dev/zero,1,1", "'/dev/zero' is no path within"),
        (",1,1", "'' is no path within"),
        (".,1,1", r"'\.' is no path within"),
        ("./a.jpg,1,1", r"'a\.jpg' comes twice"),
        ("sub,1,1", "sub: is no regular file"),
        ("b.jpg,1_0,1", "column 'pid' has value '1_0'; it must be an integer of 32 bits"),
        ("b.jpg,1.0,1", "column 'pid' has value '1.0'; it must be an integer"),
        ("b.jpg,\uff11,1", "column 'pid' has value '\uff11'; it must be an integer"),
        ("b.jpg,2147483648,1", "column 'pid' has value '2147483648'; it must be an integer"),
        ("b.jpg,,1", "column 'pid' has value ''; it must be an integer"),
        ("b.jpg,-2,1", "column 'pid' has value -2; it must be -1 or more"),
        ("b.jpg,1,-2", "column 'camid' has value -2; it must be -1 or more"),
        ("nobody.jpg,1,1", "there is no picture .*nobody.jpg"),
        ("n" * 300 + ",1,1", "there is no picture|File name too long"),
    ],
)
def test_a_bad_row_is_told_or_left_out(root, line, message):
    text = f"name,pid,camid\na.jpg,3,1\n{line}\n"
    with pytest.raises(InputError, match=r"list\.csv, row 3: .*" + message):
        read(root, text)
    report = folders.Report(skip_bad=True)
    assert [r["name"] for r in read(root, text, report)] == ["a.jpg"]
    assert len(report.skipped) == 1
    assert "row 3: " in report.skipped[0]


def test_strangers_are_counted(root, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
    read(root, "name,pid,camid\na.jpg,1,1\nb.jpg,2,1\n")
    assert said == []
    read(root, "name,pid,camid\na.jpg,0,1\nb.jpg,0,1\nsub/c.png,1,1\n")
    assert len(said) == 1
    assert "list.csv: 2 of 3 pictures have pid 0: strangers" in said[0]


def test_a_broken_picture_of_a_list(root):
    (root / "b.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"row 2: .*b\.jpg: the picture cannot be decoded"):
        read(root, "name,pid,camid\nb.jpg,1,1\n")


def names(folder, grammar="unitn"):
    return [r["name"] for r in folders.scan(folder, grammar, folders.Report())]


def test_folders_in_folders_and_links_are_read(tmp_path):
    write_picture(tmp_path / "far/0002_c1_000000001.jpg")
    write_picture(tmp_path / "in/c2/0002_c2_000000001.jpg")
    write_picture(tmp_path / "in/.hidden/0003_c2_000000001.jpg")
    (tmp_path / "in/linked").symlink_to(tmp_path / "far")
    (tmp_path / "in/0004_c1_000000001.jpg").symlink_to(tmp_path / "far/0002_c1_000000001.jpg")
    expected = ["0004_c1_000000001.jpg", "c2/0002_c2_000000001.jpg"]
    assert names(tmp_path / "in") == [*expected, "linked/0002_c1_000000001.jpg"]
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert len(names(tmp_path / "link")) == 3


@pytest.mark.parametrize("target", ["..", ".", "../.."])
def test_a_link_to_a_folder_above_is_refused(tmp_path, target):
    write_picture(tmp_path / "in/sub/0002_c1_000000001.jpg")
    (tmp_path / "in/sub/back").symlink_to(target)
    with within(5), pytest.raises(InputError, match="in/sub/back: is a link to a folder above it"):
        names(tmp_path / "in")


def test_two_links_to_each_other_s_folder_end(tmp_path):
    for mine, other in (("a", "b"), ("b", "a")):
        write_picture(tmp_path / mine / f"000{len(other)}_c1_000000001.jpg")
        (tmp_path / mine / "other").symlink_to(tmp_path / other)
    with within(10), pytest.raises(InputError, match="is a link to a folder above it"):
        names(tmp_path)


@pytest.mark.parametrize("name", [b"\xff0002.jpg", b"new\nline.jpg", b"\x1b[31m.jpg"])
def test_a_name_that_is_no_plain_text_is_refused(tmp_path, name):
    write_picture(tmp_path / "0002_c1_000000001.jpg")
    with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
        pass
    with pytest.raises(InputError, match=r"the file name '.*' is not plain text in UTF-8") as error:
        names(tmp_path)
    assert str(error.value).encode().isascii()
    assert str(error.value).isprintable()


def test_what_is_no_picture_among_pictures(tmp_path):
    write_picture(tmp_path / "0002_c1_000000001.jpg")
    os.mkfifo(tmp_path / "0002_c1_000000002.jpg")
    (tmp_path / "0002_c1_000000003.jpg").symlink_to("nothing")
    report = folders.Report(skip_bad=True)
    with within(5):
        assert len(folders.scan(tmp_path, "unitn", report)) == 1
    assert [m.rsplit(": ")[-1] for m in report.skipped] == [
        "is no regular file",
        "there is no such file",
    ]


def test_columns_hold_the_names_as_they_are(tmp_path):
    write_picture(tmp_path / "deep/er/0002_c1_000000001.JPG")
    assert names(tmp_path) == ["deep/er/0002_c1_000000001.JPG"]
    assert np.array(names(tmp_path)).dtype.kind == "U"
