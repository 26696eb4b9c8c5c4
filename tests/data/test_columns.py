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
    sides = columns.divide({"pid": np.array(pids)}, fractions={"val": fraction}, seed=seed)
    rest, held_out = sides["train"], sides["val"]
    assert len(rest)
    assert len(held_out)
    assert sorted([*rest, *held_out]) == sorted({p for p in pids if p > 0})
    assert np.all(np.diff(rest) > 0)
    assert np.all(np.diff(held_out) > 0)


def test_split_is_80_20_of_identities_and_seeded():
    table = {"pid": np.repeat(np.arange(1, 101), 3)}
    first, again, other = (
        columns.divide(table, fractions={"val": 0.2}, seed=seed) for seed in (0, 0, 1)
    )
    assert {side: len(pids) for side, pids in first.items()} == {"train": 80, "val": 20}
    np.testing.assert_array_equal(first["val"], again["val"])
    assert set(first["val"]) != set(other["val"])


def test_fraction_0_holds_nobody_out():
    sides = columns.divide({"pid": np.array([5, -1, 5])}, fractions={"val": 0.0}, seed=0)
    assert {side: pids.tolist() for side, pids in sides.items()} == {"train": [5], "val": []}


def test_identities_are_counted_from_0_and_nobody_is_none():
    numbered = columns.number_identities({"pid": np.array([7, 3, 0, 7, -1, 1501])})
    assert numbered["identity"].tolist() == [1, 0, -1, 1, -1, 2]


@pytest.mark.parametrize("fraction", [1.0, -0.1, float("nan")])
def test_split_refuses_the_fraction(fraction):
    with pytest.raises(
        InputError, match=f"val_fraction is {fraction}; it must be 0 or more and below 1"
    ):
        columns.divide({"pid": np.array([1, 2])}, fractions={"val": fraction}, seed=0)


def test_split_refuses_one_identity():
    with pytest.raises(InputError, match="at least 2 are needed"):
        columns.divide({"pid": np.array([1, 1, 0, -1])}, fractions={"val": 0.2}, seed=0)


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


def test_the_holdout_side_is_the_one_that_val_alone_would_be():
    rows = {"pid": np.repeat(np.arange(1, 51), 2)}
    two = columns.divide(rows, fractions={"val": 0.2}, seed=3)
    three = columns.divide(rows, fractions={"holdout": 0.2, "val": 0.2}, seed=3)
    assert three["holdout"].tolist() == two["val"].tolist()
    assert [len(three[side]) for side in ("train", "val", "holdout")] == [30, 10, 10]
    assert sorted(np.concatenate([*three.values()]).tolist()) == list(range(1, 51))


def test_every_side_has_somebody():
    rows = {"pid": np.array([1, 2, 3])}
    sides = columns.divide(rows, fractions={"holdout": 0.9, "val": 0.01}, seed=0)
    assert [len(sides[side]) for side in ("train", "holdout", "val")] == [1, 1, 1]


def test_sides_that_leave_nobody_to_train_on_are_refused():
    rows = {"pid": np.arange(1, 9)}
    with pytest.raises(InputError, match="together they must stay below 1"):
        columns.divide(rows, fractions={"holdout": 0.5, "val": 0.5}, seed=0)
    with pytest.raises(InputError, match="2 identities cannot be split; at least 3"):
        columns.divide({"pid": np.array([4, 9])}, fractions={"holdout": 0.1, "val": 0.1}, seed=0)


def test_rows_of_two_splits_stand_one_after_the_other():
    first = {"pid": np.array([1, 2]), "image": np.zeros((2, 4, 2, 3), np.uint8), "name": ["a", "b"]}
    second = {"pid": np.array([-1]), "image": np.ones((1, 4, 2, 3), np.uint8), "name": ["c"]}
    both = columns.stack(first, second | {"hat": np.array([0])})
    assert both["pid"].tolist() == [1, 2, -1]
    assert both["name"].tolist() == ["a", "b", "c"]
    assert both["image"][np.arange(3)][:, 0, 0, 0].tolist() == [0, 0, 1]
    assert "hat" not in both
