"""A run keeps who is trained on and who is held out, whatever comes to the raw folder later."""

import numpy as np
import pytest
from absl import logging

import data_prep
from market_jax.data import datasets
from market_jax.errors import InputError
from tests.conftest import write_picture

SIZE = (16, 8)


@pytest.fixture
def raw(tmp_path):
    """A table with 5 identities of 2 pictures."""
    rows = {}
    for pid in range(1, 6):
        for camid in (1, 2):
            rows[f"{pid}_{camid}.jpg"] = [pid, camid, "train", "young" if pid % 2 else "old"]
    rows["t.jpg"] = [1, 1, "test", ""]
    return write(tmp_path / "raw", rows)


def write(root, rows):
    for i, name in enumerate(sorted(rows)):
        if not (root / name).exists():
            write_picture(root / name, 9 * i)
    lines = ["name,pid,camid,split,age"]
    lines += [",".join(map(str, [name, *row])) for name, row in rows.items()]
    (root / "images.csv").write_text("\n".join(lines) + "\n")
    return root


def change(root, **changes):
    """Other rows in the table: name (without its ending) -> columns."""
    lines = (root / "images.csv").read_text().splitlines()[1:]
    rows = {line.split(",")[0]: line.split(",")[1:] for line in lines}
    write(root, rows | {f"{name.strip('_')}.jpg": row for name, row in changes.items()})


def opened(raw, tmp_path, kept=None, **how):
    directory = data_prep.prepare("table", raw, tmp_path / "out", overwrite=True).directory
    return datasets.open_dataset([directory], image_size=SIZE, kept=kept, **how)


def names(dataset):
    return {split: dataset.open(split)["name"].tolist() for split in ("train", "val")}


@pytest.fixture
def said(monkeypatch):
    found = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: found.append(text % args))
    return found


def test_new_identities_are_left_out(raw, tmp_path, said):
    first = opened(raw, tmp_path, val_fraction=0.4)
    before, kept = names(first), first.divisions()
    assert [len(before[split]) for split in ("train", "val")] == [6, 4]
    again = opened(raw, tmp_path, kept, val_fraction=0.4)
    assert names(again) == before
    assert again.divisions() == kept
    assert said == []
    change(raw, _0=[8, 1, "train", "old"], _8_1=[8, 2, "train", "old"], _9=[9, 1, "train", "old"])
    later = opened(raw, tmp_path, kept, val_fraction=0.9, split_seed=7)
    assert names(later) == before
    assert later.divisions() == kept
    assert len(said) == 1
    assert "3 pictures of 2 identities came after this run began" in said[0]
    assert sorted(set(later.open("train")["identity"])) == [0, 1, 2]
    others = opened(raw, tmp_path, None, val_fraction=0.4)
    assert len(others.open("train")["name"]) + len(others.open("val")["name"]) == 13


def picture(raw, pid):
    write_picture(raw / f"{pid}_1.jpg", 200)


def label(raw, pid):
    change(raw, **{f"_{pid}_1": [pid, 1, "train", "old" if pid % 2 else "young"]})


def camera(raw, pid):
    change(raw, **{f"_{pid}_1": [pid, 7, "train", "young" if pid % 2 else "old"]})


def another(raw, pid):
    change(raw, **{f"_{pid}_3": [pid, 3, "train", "young" if pid % 2 else "old"]})


@pytest.mark.parametrize("how", [picture, label, camera, another])
@pytest.mark.parametrize("side", datasets.SIDES)
def test_a_changed_identity_is_refused(raw, tmp_path, how, side):
    first = opened(raw, tmp_path, val_fraction=0.4, holdout_fraction=0.2)
    [kept] = first.divisions()
    how(raw, kept.pids[side][0])
    changed = opened(raw, tmp_path, [kept])
    what = datasets.SIDES[side]
    with pytest.raises(InputError, match=f"identities that this run has {what} are not the ones"):
        changed.open("train")


def test_a_label_more_is_another_data_set(raw, tmp_path):
    kept = opened(raw, tmp_path, val_fraction=0.4).divisions()
    table = raw / "images.csv"
    lines = table.read_text().splitlines()
    more = [lines[0] + ",hat", *(f"{x},{('no', 'yes')[i % 2]}" for i, x in enumerate(lines[1:]))]
    table.write_text("\n".join(more))
    with pytest.raises(InputError, match="are not the ones they were"):
        opened(raw, tmp_path, kept).open("val")


def test_fraction_0_holds_nobody_out(raw, tmp_path):
    first = opened(raw, tmp_path, val_fraction=0)
    assert [len(rows) for rows in names(first).values()] == [10, 0]
    kept = first.divisions()
    assert kept[0].pids["val"] == []
    val = first.open("val")
    assert val["image"][np.arange(0)].shape == (0, *SIZE, 3)
    assert len(val["identity"]) == 0
    change(raw, _8_1=[8, 1, "train", "old"])
    assert [len(r) for r in names(opened(raw, tmp_path, kept)).values()] == [10, 0]


@pytest.mark.parametrize("fraction", [1, -0.1, float("nan")])
def test_a_fraction_out_of_range_is_told(raw, tmp_path, fraction):
    dataset = opened(raw, tmp_path, val_fraction=fraction)
    with pytest.raises(InputError, match=r"data\.val_fraction is .*; it must be 0 or more"):
        dataset.open("train")
