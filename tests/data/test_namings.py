"""Names, folders and lists as other data sets and other people write them."""

import os

import numpy as np
import pytest

from market_jax import files
from market_jax.data import filenames, folders
from market_jax.errors import InputError
from tests.conftest import write_picture


@pytest.mark.parametrize(
    ("name", "naming", "pid", "camid", "frame"),
    [
        ("0001_c2_f0046182.jpg", "dukemtmc", 1, 2, 46182),
        ("-1_c2_f0046182.jpg", "dukemtmc", -1, 2, 46182),
        ("0000_000_01_0303morning_0015_0.jpg", "msmt17", 1, 1, 15),
        ("1040_012_15_0302afternoon_1015_2_ex.jpg", None, 0, 0, 0),
        ("0001_c1_1.png", "cuhk03_np", 1, 1, -1),
        ("0001_c001_00016450_0.jpg", "veri", 1, 1, 16450),
        ("0776_c020_00016450_0.jpg", "veri", 776, 20, 16450),
        ("0001C6T0002F003.jpg", "mars", 1, 6, 3),
        ("00-1C1T0001F001.jpg", "mars", -1, 1, 1),
        ("0000C1T0001F001.jpg", "mars", 0, 1, 1),
        ("12345_c12s10_000451_03.jpg", "market1501", 12345, 12, 451),
        ("0002_c1s1_000451_03.JPG", "market1501", 2, 1, 451),
        ("0002_c1s1_000451_03.jpeg", "market1501", 2, 1, 451),
        ("123456_c11_016620005.png", "unitn", 123456, 11, -1),
        ("\u0660\u0660\u0660\u0661_c2_f0046182.jpg", None, 0, 0, 0),
    ],
)
def test_what_names_say(name, naming, pid, camid, frame):
    if naming is None:
        with pytest.raises(InputError, match="is in no known naming; known: market1501"):
            filenames.detect([name])
        return
    assert filenames.detect([name]) == naming
    found = filenames.parse(name, naming)
    assert (found["pid"], found["camid"], found["frame"]) == (pid, camid, frame)


def test_the_naming_that_fits_most_is_taken():
    names = ["000001.jpg", "0001_c2_f0046182.jpg", "0001_c3_f0046182.jpg"]
    assert filenames.detect(names) == "dukemtmc"


def test_nested_folders_and_links_are_read(tmp_path):
    for pid in (1, 2):
        write_picture(tmp_path / f"all/{pid:04d}/{pid:04d}_c1_f0000001.jpg", 40 * pid)
    write_picture(tmp_path / "elsewhere/0003_c1_f0000001.jpg", 9)
    (tmp_path / "all/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "all/0004_c1_f0000001.jpg").symlink_to(tmp_path / "elsewhere/0003_c1_f0000001.jpg")
    records = folders.scan(tmp_path / "all", "dukemtmc", folders.Report())
    assert [(r["name"], r["pid"]) for r in records] == [
        ("0001/0001_c1_f0000001.jpg", 1),
        ("0002/0002_c1_f0000001.jpg", 2),
        ("0004_c1_f0000001.jpg", 4),
        ("linked/0003_c1_f0000001.jpg", 3),
    ]
    (tmp_path / "all/0001/up").symlink_to(tmp_path / "all")
    with pytest.raises(InputError, match="all/0001/up: is a link to a folder above it"):
        folders.walk(tmp_path / "all")


def test_a_name_that_is_no_text_is_refused(tmp_path):
    with open(os.fsencode(tmp_path) + b"/0001\xff.jpg", "wb"):
        pass
    with pytest.raises(InputError, match=r"the file name '0001\\udcff.jpg' is not plain text"):
        folders.walk(tmp_path)


def test_person_0_is_refused_or_counted(tmp_path, monkeypatch):
    write_picture(tmp_path / "0000_c1_000000001.jpg")
    with pytest.raises(InputError, match="shows identity 0; the course's identities count from 1"):
        folders.scan(tmp_path, "unitn", folders.Report())
    warned = []
    monkeypatch.setattr(folders.logging, "warning", lambda text, *a: warned.append(text % a))
    write_picture(tmp_path / "b.jpg")
    table = tmp_path / "list.csv"
    table.write_text("name,pid,camid\n0000_c1_000000001.jpg,0,1\nb.jpg,1,1\n")
    folders.read_list(tmp_path, table, folders.Report())
    assert "1 of 2 pictures have pid 0: strangers" in warned[0]
    annotations = tmp_path / "annotations.csv"
    annotations.write_text("id\n0\n")
    with pytest.raises(InputError, match="column 'id' has value 0; it must be 1 or more"):
        files.read_integer("0", "column 'id'", 1)


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/passwd", "a/../../x.jpg", "", "."])
def test_a_list_does_not_lead_out_of_its_folder(tmp_path, name):
    write_picture(tmp_path / "in/a.jpg")
    write_picture(tmp_path / "x.jpg")
    table = tmp_path / "list.csv"
    table.write_text(f"name,pid,camid\n{name},1,1\n")
    with pytest.raises(InputError, match=r"list.csv, row 2: .* is no path within"):
        folders.read_list(tmp_path / "in", table, folders.Report())


def test_one_picture_under_two_names_comes_twice(tmp_path):
    write_picture(tmp_path / "a.jpg")
    table = tmp_path / "list.csv"
    table.write_text("name,pid,camid\na.jpg,1,1\n./a.jpg,2,1\n")
    with pytest.raises(InputError, match=r"list.csv, row 3: 'a.jpg' comes twice"):
        folders.read_list(tmp_path, table, folders.Report())
    report = folders.Report(skip_bad=True)
    (record,) = folders.read_list(tmp_path, table, report)
    assert (record["pid"], len(report.skipped)) == (1, 1)
    assert np.all([record[key] == -1 for key in ("sequence", "frame")])
