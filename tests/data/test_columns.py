import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_jax.data import columns, decoding, images, prepared
from market_jax.errors import InputError

PIDS = st.lists(st.integers(-1, 30), min_size=1, max_size=80).filter(
    lambda pids: len({p for p in pids if p > 0}) >= 2
)


@given(PIDS, st.floats(0.01, 0.99), st.integers(0, 5))
def test_no_identity_is_on_both_sides(pids, fraction, seed):
    rest, held_out = columns.divide({"pid": np.array(pids)}, fraction=fraction, seed=seed)
    assert len(rest)
    assert len(held_out)
    assert sorted([*rest, *held_out]) == sorted({p for p in pids if p > 0})
    assert np.all(np.diff(rest) > 0)
    assert np.all(np.diff(held_out) > 0)


def test_split_is_80_20_of_identities_and_seeded():
    table = {"pid": np.repeat(np.arange(1, 101), 3)}
    first = columns.divide(table, fraction=0.2, seed=0)
    assert [len(side) for side in first] == [80, 20]
    again = columns.divide(table, fraction=0.2, seed=0)
    other = columns.divide(table, fraction=0.2, seed=1)
    np.testing.assert_array_equal(first[1], again[1])
    assert set(first[1]) != set(other[1])


def test_fraction_0_holds_nobody_out():
    train, held_out = columns.divide({"pid": np.array([5, -1, 5])}, fraction=0.0, seed=0)
    assert train.tolist() == [5]
    assert held_out.tolist() == []


def test_identities_are_counted_from_0_and_nobody_is_none():
    numbered = columns.number_identities({"pid": np.array([7, 3, 0, 7, -1, 1501])})
    assert numbered["identity"].tolist() == [1, 0, -1, 1, -1, 2]


@pytest.mark.parametrize("fraction", [1.0, -0.1, float("nan")])
def test_split_refuses_the_fraction(fraction):
    with pytest.raises(
        InputError, match=f"val_fraction is {fraction}; it must be 0 or more and below 1"
    ):
        columns.divide({"pid": np.array([1, 2])}, fraction=fraction, seed=0)


def test_split_refuses_one_identity():
    with pytest.raises(InputError, match="at least 2 are needed"):
        columns.divide({"pid": np.array([1, 1, 0, -1])}, fraction=0.2, seed=0)


def test_stored_images_equal_those_in_memory(synthetic):
    stored = columns.open_split(synthetic, "test", image_size=(32, 16))
    kept = columns.in_memory(stored)
    assert isinstance(stored["image"], images.StoredImages)
    assert isinstance(kept["image"], np.ndarray)
    rows = np.array([5, 0, 5, len(kept["pid"]) - 1])
    np.testing.assert_array_equal(kept["image"][rows], stored["image"][rows])
    half = columns.select(stored, kept["pid"] == 0)
    np.testing.assert_array_equal(half["image"][np.arange(3)], kept["image"][kept["pid"] == 0])
    assert len(half["image"]) == 3


def test_too_little_memory_reads_by_random_access(synthetic, monkeypatch):
    monkeypatch.setattr(images, "_fits", lambda size: False)
    split = columns.in_memory(columns.open_split(synthetic, "query", image_size=(32, 16)))
    assert isinstance(split["image"], images.StoredImages)


def test_no_picture_is_decoded_before_it_is_looked_at(synthetic, monkeypatch):
    def refuse(content, where):
        raise AssertionError(f"{where} was decoded")

    monkeypatch.setattr(decoding, "decode", refuse)
    split = columns.open_split(synthetic, "test", image_size=(32, 16))
    half = columns.select(split, split["pid"] > 0)
    assert len(half["image"]) == len(half["pid"])
    assert half["image"].fingerprint
    with pytest.raises(AssertionError, match="was decoded"):
        half["image"][np.arange(1)]


def test_rows_are_sorted_by_name(train_columns):
    assert list(train_columns["name"]) == sorted(train_columns["name"])
    assert all(len(v) == len(train_columns["pid"]) for v in train_columns.values())


def test_missing_dataset_and_split(synthetic, tmp_path):
    with pytest.raises(InputError, match="no prepared data set here"):
        columns.open_split(tmp_path, "train", image_size=(32, 16))
    with pytest.raises(InputError, match="no split 'gallery'; known: query, test, train"):
        columns.open_split(synthetic, "gallery", image_size=(32, 16))


def test_dataset_is_found_from_above(synthetic):
    assert prepared.find(synthetic) == synthetic
    assert prepared.find(synthetic.parent) == synthetic
    assert prepared.find(synthetic.parents[1]) == synthetic
