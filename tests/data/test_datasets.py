"""One data set, and several as one."""

import numpy as np
import pytest

from market_jax.data import columns, datasets, prepared
from market_jax.data.schema import Schema, merge
from market_jax.errors import InputError

SIZE = (16, 8)


def test_a_data_set_brings_its_schema(synthetic, other):
    assert "hat" in prepared.read(synthetic).schema.labels
    schema = prepared.read(other).schema
    assert schema.name == "unitn"
    assert "hat" not in schema.labels
    assert "hat" not in columns.open_split(other, "train", image_size=SIZE)


def test_several_data_sets_lie_apart(synthetic, other):
    both = datasets.open_dataset([synthetic, other], image_size=SIZE)
    alone = [datasets.open_dataset([d], image_size=SIZE) for d in (synthetic, other)]
    assert set(both.schema.labels) == set(alone[0].schema.labels)
    for split in ("train", "val"):
        joined, parts = both.open(split), [one.open(split) for one in alone]
        assert len(joined["pid"]) == sum(len(part["pid"]) for part in parts)
        second = columns.select(joined, joined["dataset"] == 1)
        assert set(second["hat"]) == {-1}, "a label that a data set does not have is unknown"
        assert second["name"].tolist() == [f"unitn/{n}" for n in parts[1]["name"].tolist()]
        first = columns.select(joined, joined["dataset"] == 0)
        assert not set(first["pid"]) & set(second["pid"])
        assert not set(first["camid"]) & set(second["camid"])
        rows = np.arange(len(second["pid"]))
        np.testing.assert_array_equal(second["image"][rows], parts[1]["image"][rows])
        mixed = np.array([len(joined["pid"]) - 1, 0])
        images = joined["image"][mixed]
        np.testing.assert_array_equal(images[0], parts[1]["image"][rows[-1:]][0])
        np.testing.assert_array_equal(images[1], parts[0]["image"][np.arange(1)][0])
    train = both.open("train")
    identities = {
        i: set(train["pid"][train["identity"] == i]) for i in np.unique(train["identity"])
    }
    assert all(len(pids) == 1 for pids in identities.values())


def test_who_is_held_out_does_not_depend_on_the_company(synthetic, other):
    alone = datasets.open_dataset([other], image_size=SIZE).open("val")["name"]
    both = datasets.open_dataset([synthetic, other], image_size=SIZE).open("val")
    names = both["name"][both["dataset"] == 1]
    assert [name.removeprefix("unitn/") for name in names.tolist()] == alone.tolist()


def test_junk_and_distractors_stay_what_they_are(synthetic, other):
    test = datasets.open_dataset([other, synthetic], image_size=SIZE).open("test")
    assert {-1, 0} <= set(test["pid"][test["dataset"] == 1])


def test_one_data_set_is_as_it_was(synthetic):
    dataset = datasets.open_dataset([synthetic], image_size=SIZE)
    train, val = dataset.open("train"), dataset.open("val")
    assert "dataset" not in train
    assert set(val["identity"]) == {-1}
    assert sorted(set(train["identity"])) == list(range(len(set(train["pid"]))))
    assert dataset.open("train") is train
    with pytest.raises(
        InputError, match="there is no split 'gallery'; known: holdout, query, test, train"
    ):
        dataset.open("gallery")


def test_labels_of_one_name_must_have_the_same_classes():
    first = Schema("a", {"hat": ("no", "yes")})
    assert merge([first, Schema("b", {"age": ("young",)})]).labels.keys() == {"hat", "age"}
    message = "label 'hat' has the classes no, yes in a and yes, no in b"
    with pytest.raises(InputError, match=message):
        merge([first, Schema("b", {"hat": ("yes", "no")})])


def test_numbers_are_the_same_in_every_split(synthetic, other):
    """A person of one split is nobody of another data set in any other split."""
    dataset = datasets.open_dataset([other, synthetic], image_size=SIZE)
    pids, camids = ({0: set(), 1: set()} for _ in range(2))
    for split in ("train", "val", "test", "query"):
        rows = dataset.open(split)
        for number in (0, 1):
            chosen = rows["dataset"] == number
            pids[number] |= set(rows["pid"][chosen & (rows["pid"] > 0)].tolist())
            camids[number] |= set(rows["camid"][chosen & (rows["camid"] >= 0)].tolist())
    assert not pids[0] & pids[1]
    assert not camids[0] & camids[1]
    queries, gallery = dataset.open("query"), dataset.open("test")
    known = queries["dataset"] == 1
    assert set(queries["pid"][known]) <= set(gallery["pid"][gallery["dataset"] == 1])


def side(camids, first=1):
    """Columns of as many pictures, each of another person."""
    count = len(camids)
    columns = {"image": np.zeros((count, 2, 2, 3), np.uint8), "name": np.array(["a"] * count)}
    columns |= dict.fromkeys(("sequence", "frame"), np.zeros(count, np.int32))
    numbers = {"pid": np.arange(first, first + count), "camid": np.array(camids)}
    columns |= {key: value.astype(np.int32) for key, value in numbers.items()}
    return columns | {"digest": np.array(["d"] * count)}


def test_a_camera_numbered_0_is_apart_from_those_of_other_data_sets():
    parts = [datasets.Part(Schema("a", {})), datasets.Part(Schema("b", {}), 1, 3, 7)]
    joined = datasets.concatenate([side([1, 6, -1]), side([0, 1, -1])], parts)
    assert joined["camid"].tolist() == [1, 6, -1, 7, 8, -1]
    assert joined["pid"].tolist() == [1, 2, 3, 4, 5, 6]


def test_numbers_that_do_not_fit_together_are_told():
    """They would come out below 0, where nobody is known."""
    parts = [datasets.Part(Schema("a", {})), datasets.Part(Schema("b", {}), 1, 1_700_000_000, 1)]
    sides = [side([1], first=1_700_000_000), side([1, 2], first=447_483_646)]
    assert datasets.concatenate(sides, parts)["pid"].tolist()[1:] == [2**31 - 2, 2**31 - 1]
    sides[1]["pid"] += 1
    with pytest.raises(InputError, match=r"b: pid 447483648 is too large beside the other data"):
        datasets.concatenate(sides, parts)
