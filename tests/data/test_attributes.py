import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import common
from market_jax.data import attributes
from market_jax.errors import InputError
from tests.conftest import real, row, write_annotations

LABELS = st.fixed_dictionaries(
    {name: st.integers(0, len(classes) - 1) for name, classes in attributes.CLASSES.items()}
)


def test_vocabulary():
    assert len(attributes.ATTRIBUTES) == 12
    assert len(attributes.COLUMNS) == 27
    assert attributes.COLUMNS[:4] == ("age", "backpack", "bag", "handbag")
    assert attributes.COLUMNS[10] == "upblack"
    assert attributes.COLUMNS[-1] == "downbrown"
    sizes = {name: len(classes) for name, classes in attributes.CLASSES.items()}
    assert sizes == common.ATTRIBUTES, "configs.common.ATTRIBUTES has gone its own way"


@given(LABELS)
def test_encode_inverts_decode(labels):
    assert attributes.encode(attributes.decode(labels)) == labels


@given(LABELS)
def test_decode_inverts_encode(labels):
    columns = attributes.decode(labels)
    assert attributes.decode(attributes.encode(columns)) == columns
    assert tuple(columns) == attributes.COLUMNS


def test_encode_by_hand():
    labels = attributes.encode(row(age=3, gender=2, upgray=2))
    assert labels["age"] == 2
    assert attributes.CLASSES["gender"][labels["gender"]] == "female"
    assert attributes.CLASSES["up_color"][labels["up_color"]] == "gray"
    assert attributes.CLASSES["down_color"][labels["down_color"]] == "multicolor"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"age": 5}, "'age' has value 5; it must be 1 to 4"),
        ({"hat": 0}, "'hat' has value 0; it must be 1 to 2"),
        ({"upred": 2, "upblue": 2}, "'upred' and 'upblue' are both 2"),
    ],
)
def test_encode_refuses(changes, message):
    with pytest.raises(InputError, match=message):
        attributes.encode(row(**changes))


def test_decode_refuses():
    labels = attributes.encode(row())
    with pytest.raises(InputError, match="'age' is -1"):
        attributes.decode(labels | {"age": -1})
    del labels["hat"]
    with pytest.raises(InputError, match="'hat' is missing"):
        attributes.decode(labels)


def test_read_csv_accepts_any_column_order(tmp_path):
    path = tmp_path / "a.csv"
    values = row(age=2, downpink=2)
    header = list(reversed(["id", *attributes.COLUMNS]))
    cells = [str({"id": 5, **values}[name]) for name in header]
    path.write_text(",".join(header) + "\n" + ",".join(cells) + "\n")
    assert attributes.read(path) == {5: attributes.encode(values)}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("2", row()), ("7", row(age=9))], "row 3: column 'age' has value 9"),
        ([("2", row()), ("2", row())], "row 3: identity 2 has a second row"),
        ([("two", row())], "row 2: column 'id' has value 'two'; it must be an integer"),
        ([("2", row(bag="yes"))], "row 2: column 'bag' has value 'yes'"),
        ([("2", row(bag=""))], "row 2: column 'bag' has value ''"),
    ],
)
def test_bad_rows_are_named_or_skipped(tmp_path, rows, message):
    path = tmp_path / "annotations.csv"
    write_annotations(path, rows)
    with pytest.raises(InputError, match=message) as error:
        attributes.read(path)
    assert str(path) in str(error.value)
    problems = []
    table = attributes.read(path, problems)
    assert len(problems) == 1
    assert len(table) == len(rows) - 1


def test_short_row(tmp_path):
    path = tmp_path / "annotations.csv"
    path.write_text(",".join(("id", *attributes.COLUMNS)) + "\n3,1,1\n")
    with pytest.raises(
        InputError, match=r"annotations\.csv, row 2: has 3 cells; the header has 28"
    ):
        attributes.read(path)


def test_missing_column_and_file(tmp_path):
    path = tmp_path / "annotations.csv"
    path.write_text("id,age\n1,1\n")
    with pytest.raises(InputError, match="no column 'backpack', 'bag'"):
        attributes.read(path)
    with pytest.raises(InputError, match=r"nothing\.csv: there is no such file"):
        attributes.read(tmp_path / "nothing.csv")
    path.write_bytes(b"\xff\xfe\x00i\x00d")
    with pytest.raises(
        InputError, match=r"annotations\.csv: is not in UTF-8 \(invalid start byte at byte 0\)"
    ):
        attributes.read(path)
    path = tmp_path / "broken.mat"
    path.write_text("no matrix")
    with pytest.raises(InputError, match="not a MATLAB file"):
        attributes.read(path)


def test_official_mat_agrees_with_the_official_lists():
    table = attributes.read(real("market1501-official/market_attribute.mat"))
    assert len(table) == 751 + 750
    for part in ("train", "test"):
        with open(real(f"market1501-official/market_{part}.csv")) as file:
            for line in csv.DictReader(file, skipinitialspace=True):
                name = line["# file"].rsplit("/", 1)[1]
                labels = table[int(name[:4])]
                ages = [int(line[k]) for k in attributes.CLASSES["age"]]
                assert labels["age"] == int(np.argmax(ages))
                assert labels["hat"] == int(line["hat"])
                columns = attributes.decode(labels)
                colors = [c for c in attributes.COLUMNS[10:] if line[c] == "1"]
                assert colors == [c for c in attributes.COLUMNS[10:] if columns[c] == 2]


def test_course_release_annotations():
    table = attributes.read(real("unitn-market1501/annotations_train.csv"))
    assert table[474]["up_color"] == attributes.CLASSES["up_color"].index("white")
