"""Files of users: tables, numbers, locks, and what is written."""

import os
import subprocess
import sys

import pytest

from market_jax import files
from market_jax.errors import InputError
from market_jax.tasks import inputs

NEEDED = ("name", "pid")


@pytest.mark.parametrize(
    "content",
    [
        b"name,pid\na.jpg,1\n",
        b"\xef\xbb\xbfname,pid\r\na.jpg,1\r\n",
        b"pid,more,name\n1,x,a.jpg\n\n",
        b' name ,pid\n"a.jpg",1',
    ],
)
def test_a_table_is_read_however_it_was_saved(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    ((where, row),) = files.read_table(path, NEEDED)
    assert where == f"{path}, row 2"
    assert (row["name"], row["pid"]) == ("a.jpg", "1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,pid\na.jpg,1\n".encode("utf-16"), "t.csv: is not in UTF-8"),
        ("name,pid\né.jpg,1\n".encode("latin-1"), "t.csv: is not in UTF-8"),
        (b"name,pid,name\na.jpg,1,b.jpg\n", "t.csv: the header has the column 'name' twice"),
        (b"name,pid\na.jpg\n", "t.csv, row 2: has 1 cells; the header has 2"),
        (b"name,pid\nb.jpg,1\na.jpg,1,2\n", "t.csv, row 3: has 3 cells; the header has 2"),
        (b"name,pid\na\x00.jpg,1\n", "t.csv: is no CSV .it holds zero bytes"),
        (b"", "t.csv: the header has no column 'name', 'pid'"),
        (b"name\n", "t.csv: the header has no column 'pid'"),
        (b'name,pid\n"' + b"x" * 200_000, "t.csv: is no CSV .field larger than"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        files.read_table(tmp_path / "t.csv", NEEDED)


@pytest.mark.parametrize(("text", "value"), [("7", 7), (" 7 ", 7), ("+7", 7), ("-1", -1)])
def test_an_integer_is_read(text, value):
    assert files.read_integer(text, "column 'pid'") == value


@pytest.mark.parametrize(
    "text",
    ["1_0", "1.0", "\uff11", "\u0663", "", "x", "nan", "1e3", "0x1", "2147483648", "-2147483649"],
)
def test_what_is_no_integer_is_refused(text):
    with pytest.raises(InputError, match=r"column 'pid' has value .*it must be an integer"):
        files.read_integer(text, "column 'pid'")


def test_an_integer_may_have_a_least():
    with pytest.raises(InputError, match="column 'camid' has value -2; it must be -1 or more"):
        files.read_integer("-2", "column 'camid'", -1)


@pytest.mark.parametrize(
    ("text", "excluded"), [("1", 1), ("1.0", 1), ("True", 1), ("yes", 1), ("0.0", 0), ("", 0)]
)
def test_rejected_as_programs_write_it(tmp_path, text, excluded):
    (tmp_path / "junk.csv").write_text(f"name,rejected\na.jpg,{text}\n")
    assert len(inputs.read_excluded(tmp_path / "junk.csv")) == excluded


def test_rejected_with_another_word_is_refused(tmp_path):
    (tmp_path / "junk.csv").write_text("name,rejected\na.jpg,maybe\n")
    with pytest.raises(InputError, match=r"row 2: column 'rejected' has value 'maybe'"):
        inputs.read_excluded(tmp_path / "junk.csv")


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(InputError, match="is no regular file"):
            files.read_bytes(path)
    with pytest.raises(InputError, match="there is no such file"):
        files.read_json(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(InputError, match=r"list.json: is no JSON object"):
        files.read_json(tmp_path / "list.json")


def test_a_lock_is_held_once_and_goes_with_its_process(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from market_jax.files import locked\n"
        f"with locked(Path({str(tmp_path / 'lock')!r})):\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with (
        pytest.raises(InputError, match="it is taken"),
        files.locked(tmp_path / "lock", "it is taken"),
    ):
        pass
    process.kill()
    process.communicate()
    with files.locked(tmp_path / "lock", "it is taken"):
        pass


def test_a_disk_that_is_full_keeps_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    code = (
        "import resource; from market_jax import files\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"files.write_atomically({str(path)!r}, 'x' * 5000)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"InputError: {path} cannot be written (File too large)" in run.stderr
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
