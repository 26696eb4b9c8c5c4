import csv

import pytest

from market_jax.data import filenames
from market_jax.errors import InputError
from tests.conftest import real


@pytest.mark.parametrize(
    ("name", "grammar", "expected"),
    [
        ("0002_c1s1_000451_03.jpg", "market1501", (2, 1, 1, 451)),
        ("-1_c3s2_014566_01.jpg", "market1501", (filenames.JUNK, 3, 2, 14566)),
        ("0000_c6s4_000001_00.jpg", "market1501", (filenames.DISTRACTOR, 6, 4, 1)),
        ("0002_c1_016620005.jpg", "unitn", (2, 1, -1, -1)),
        ("1488_c1s6_023021_00.jpg.jpg", "market1501", (1488, 1, 6, 23021)),
        ("000123.jpg", "anonymous", (filenames.UNKNOWN_PID, -1, -1, -1)),
    ],
)
def test_parse(name, grammar, expected):
    columns = filenames.parse(name, grammar)
    assert columns == dict(zip(("pid", "camid", "sequence", "frame"), expected, strict=True))
    assert filenames.detect(["other.jpg", name]) == grammar


@pytest.mark.parametrize(
    "name",
    ["2_c1s1_000451_03.jpg", "0002_c1s1_000451_03.tif", "0002_c1s1_000451_03.jpg.png", "1.jpg"],
)
def test_outside_every_grammar(name):
    with pytest.raises(InputError, match="in no known naming"):
        filenames.detect([name])


def test_unknown_grammar():
    with pytest.raises(
        InputError, match=r"unknown naming 'duke'; .*known: anonymous, cuhk03_np, dukemtmc"
    ):
        filenames.parse("1.jpg", "duke")


ENDINGS = (".jpg", ".JPG", ".jpeg", ".Jpeg", ".png", ".PNG", ".webp", ".bmp")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("stem", "grammar"),
    [
        *[("0002_c1s1_000451_03", "market1501"), ("0002_c1_016620005", "unitn")],
        *[("000123", "anonymous"), ("0001C1T0002F003", "mars")],
    ],
)
def test_every_ending_of_a_picture(stem, grammar, ending):
    assert filenames.parse(stem + ending, grammar)
    assert filenames.parse(stem + ".gif", grammar) is None


@pytest.mark.parametrize(
    ("name", "grammar"),
    [
        ("00-1_c1s1_000451_03.jpg", "market1501"),
        ("9999999999_c1s1_000451_03.jpg", "market1501"),
        ("-1_c1_016620005.jpg", "unitn"),
        ("0002_c1s1_000451_03.jpg\n", "market1501"),
        ("sub/0002_c1s1_000451_03.jpg", "market1501"),
        ("\uff10002_c1s1_000451_03.jpg", "market1501"),
    ],
)
def test_names_that_are_nearly_right(name, grammar):
    assert filenames.parse(name, grammar) is None


def test_stray_copies_and_other_files():
    assert filenames.original_of("000123(1).jpg") == "000123.jpg"
    assert filenames.original_of("people (12).png") == "people.png"
    assert filenames.original_of("000123.jpg") is None
    assert not filenames.is_image("Thumbs.db")
    assert not filenames.is_image(".DS_Store")
    assert filenames.is_image("0002_c1s1_000451_03.jpg")


@pytest.mark.parametrize(("part", "count"), [("train", 12936), ("val", 3368), ("test", 13115)])
def test_every_official_name(part, count):
    with open(real(f"market1501-official/market_{part}.csv")) as file:
        names = [line["# file"].rsplit("/", 1)[1] for line in csv.DictReader(file)]
    assert len(names) == count
    parsed = [filenames.parse(name, "market1501") for name in names]
    assert all(p and p["pid"] > 0 and 1 <= p["camid"] <= 6 and p["frame"] >= 0 for p in parsed)
    assert len({p["pid"] for p in parsed}) == (751 if part == "train" else 750)
