"""Annotation files that are damaged, or by another program."""

import contextlib
import io

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st

from market_jax.data import attributes
from market_jax.errors import InputError
from tests.conftest import row


def structs(count=3, first=1, **changes):
    """A struct of `count` identities as MATLAB holds it, with changed fields."""
    fields = {c: np.full(count, v, np.float64) for c, v in row().items()}
    names = [f"{pid:04d}" for pid in range(first, first + count)]
    return fields | {"image_index": np.array(names, object)} | changes


def mat(train=None, test=None, **how) -> bytes:
    file = io.BytesIO()
    parts = {"train": train or structs(), "test": test or structs(2, first=10)}
    scipy.io.savemat(file, {"market_attribute": parts}, **how)
    return file.getvalue()


def read(tmp_path, content, problems=None):
    path = tmp_path / "a.mat"
    path.write_bytes(content)
    return attributes.read(path, problems)


GOOD, PACKED = mat(), mat(do_compression=True)


@pytest.mark.parametrize("content", [GOOD, PACKED, mat(test=structs(1, first=10))])
def test_a_good_file(tmp_path, content):
    table = read(tmp_path, content)
    assert {1, 2, 3, 10} <= set(table)
    assert set(map(str, table.values())) == {str(attributes.encode(row()))}


@pytest.mark.parametrize("content", [GOOD, PACKED])
def test_a_cut_file_is_refused(tmp_path, content):
    for size in [*range(0, 140, 7), *range(140, len(content), max(len(content) // 60, 1))]:
        with pytest.raises(InputError, match=r"a\.mat(:|,)"):
            read(tmp_path, content[:size])


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_are_read_or_refused(tmp_path_factory, flips):
    content = bytearray(PACKED)
    for place, value in flips:
        content[place % len(content)] = value
    with contextlib.suppress(InputError):
        assert read(tmp_path_factory.getbasetemp(), bytes(content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 .".ljust(124)
            + b"\x00\x02IM"
            + bytes(384)
            + b"\x89HDF\r\n\x1a\n",
            r"is of MATLAB 7\.3; save it with -v7",
        ),
        (b"", "not a MATLAB file with market_attribute"),
        (b"PK\x03\x04" + bytes(999), "not a MATLAB file with market_attribute"),
        (mat(train=structs(age=np.ones(2))), r"field 'age' is \(2,\); image_index has 3"),
        (mat(train=structs(age=np.ones((3, 2)))), r"field 'age' is \(3, 2\); image_index has 3"),
        (mat(train=structs(age=np.full(3, 1.5))), "identity 0001: column 'age' has value '1.5'"),
        (mat(train=structs(age=np.full(3, np.nan))), "identity 0001: column 'age' has value 'nan'"),
        (mat(train=structs(age=np.full(3, np.inf))), "identity 0001: column 'age' has value 'inf'"),
        (mat(train=structs(age=np.full(3, 1e30))), "identity 0001: column 'age' has value '1000"),
        (mat(train=structs(hat=np.zeros(3))), "identity 0001: column 'hat' has value 0; it must"),
        (mat(test=structs(2)), "identity 0001: identity 1 has a second row"),
        (mat(train=structs(image_index=np.array(["0001", "x", "-1"], object))), "has value 'x'"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path, content)
    assert str(error.value).startswith(str(tmp_path / "a.mat"))


def test_another_variable_or_a_field_less_is_told(tmp_path):
    file = io.BytesIO()
    scipy.io.savemat(file, {"duke_attribute": {"train": structs(), "test": structs()}})
    with pytest.raises(InputError, match="not a MATLAB file with market_attribute"):
        read(tmp_path, file.getvalue())
    fewer = structs()
    del fewer["hat"]
    with pytest.raises(InputError, match=r"a\.mat: the struct has no field 'hat'"):
        read(tmp_path, mat(train=fewer))


def test_bad_rows_are_left_out_where_that_is_asked_for(tmp_path):
    problems = []
    table = read(tmp_path, mat(train=structs(age=np.array([1, 7, 2]))), problems)
    assert set(table) == {1, 3, 10, 11}
    assert len(problems) == 1
    assert "identity 0002: column 'age' has value 7; it must be 1 to 4" in problems[0]
