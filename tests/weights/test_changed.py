"""Weight files with changed bytes: what is read is tensors, or nothing is."""

import time
import zipfile

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from market_jax.errors import InputError
from market_jax.weights import files
from tests.weights.makers import (
    FORMS,
    NUMBERS,
    TENSORS,
    code,
    safetensors,
    tensor,
)

SECONDS = 10  # the longest, a million instructions, takes around two


def mended(path, pickled):
    """A zip around what is left of a pickle, with the right checksum."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", pickled)
        archive.writestr("weights/data/0", NUMBERS.tobytes())


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """A small good file of each form, and the pickle of one."""
    folder = tmp_path_factory.mktemp("seeds")
    value = {"state_dict": {"a": tensor(), "b": tensor(shape=(2, 2), strides=(2, 1))}, "n": [1]}
    found = {form: make(folder / form, value).read_bytes() for form, make in FORMS.items()}
    found["safetensors"] = safetensors(folder / "w.safetensors", TENSORS).read_bytes()
    found["pickle"] = b"\x80\x02" + code(value) + b"."
    return found


PLACES = st.integers(0, 10**4)
CHANGES = st.one_of(
    st.tuples(st.just("flip"), PLACES, st.integers(1, 255)),
    st.tuples(st.just("cut"), PLACES, st.integers(1, 40)),
    st.tuples(st.just("end"), PLACES, st.just(0)),
    st.tuples(st.just("repeat"), PLACES, st.integers(1, 40)),
)


def changed(content, changes):
    """Flips, cuts out or repeats bytes; a place counts round and round the file."""
    content = bytearray(content)
    for kind, place, much in changes:
        at = place % max(len(content), 1)
        if kind == "flip" and content:
            content[at] ^= much
        elif kind == "cut":
            del content[at : at + much]
        elif kind == "end":
            del content[at:]
        elif kind == "repeat":
            content[at:at] = content[at : at + much]
    return bytes(content)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "pickle"])
def test_a_file_changed_anywhere_is_read_or_refused(seeds, tmp_path, often, form):
    path = tmp_path / form

    def check(found):
        assert found
        assert all(isinstance(array, np.ndarray) for array in found.values())
        assert sum(array.nbytes for array in found.values()) <= 2 * len(path.read_bytes())

    @often(150)
    @hypothesis.given(changes=st.lists(CHANGES, min_size=1, max_size=3))
    def run(changes):
        content = changed(seeds[form], changes)
        if form == "pickle":
            mended(path, content)
        else:
            path.write_bytes(content)
        start = time.monotonic()
        try:
            check(files.read(path))
        except InputError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017
        assert time.monotonic() - start < SECONDS

    run()
