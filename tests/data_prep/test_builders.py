"""Data sets of other layouts, and one's own list."""

import pytest

import data_prep
from market_jax.data import columns, datasets, prepared
from market_jax.errors import InputError
from tests.conftest import write_picture

MARKET = {"train": "bounding_box_train", "test": "bounding_box_test", "query": "query"}
VERI = {"train": "image_train", "test": "image_test", "query": "image_query"}


@pytest.mark.parametrize(
    ("dataset", "folders", "name"),
    [
        ("dukemtmc", MARKET, "{:04d}_c{}_f0000001.jpg"),
        ("cuhk03_np", MARKET, "{:04d}_c{}_1.png"),
        ("veri", VERI, "{:04d}_c{:03d}_00000001_0.jpg"),
    ],
)
def test_a_data_set_without_attributes(tmp_path, dataset, folders, name):
    for number, folder in enumerate(folders.values()):
        for pid in (1, 2):
            write_picture(tmp_path / "raw" / folder / name.format(pid + 10 * number, pid), 9)
    done = data_prep.prepare(dataset, tmp_path / "raw", tmp_path / "out")
    assert prepared.read(done.directory).schema == (dataset, {})
    rows = columns.open_split(done.directory, "test", image_size=(8, 4))
    assert rows["pid"].tolist() == [11, 12]
    assert rows["camid"].tolist() == [1, 2]
    assert rows["image"][[0]].shape == (1, 8, 4, 3)


@pytest.fixture
def msmt17(tmp_path):
    """A raw folder in MSMT17's layout."""
    lists = {
        "list_train.txt": ("train", [(0, 0), (1, 0)]),
        "list_val.txt": ("train", [(1, 1)]),
        "list_gallery.txt": ("test", [(0, 0), (1, 0)]),
        "list_query.txt": ("test", [(1, 1)]),
    }
    for file, (side, shown) in lists.items():
        names = [f"{pid:04d}/{pid:04d}_{n:03d}_0{1 + n}_0303morning_0001_0.jpg" for pid, n in shown]
        for name in names:
            write_picture(tmp_path / "raw" / side / name)
        (tmp_path / "raw" / file).write_text("".join(f"{n} {n[:4]}\n" for n in names))
    return tmp_path / "raw"


def test_msmt17(msmt17, tmp_path):
    """Test persons, who are counted from 0 again, are other numbers than the training persons."""
    done = data_prep.prepare("msmt17", msmt17, tmp_path / "out")
    pids = {split: [r["pid"] for r in rows] for split, rows in done.records.items()}
    assert pids == {"train": [1, 2, 2], "test": [3, 4], "query": [4]}
    (msmt17 / "list_query.txt").write_text("0009/0009_000_01_0303morning_0001_0.jpg 9\n")
    with pytest.raises(InputError, match=r"list_query.txt, line 1: there is no usable picture"):
        data_prep.prepare("msmt17", msmt17, tmp_path / "other")


def table(root, *rows, header="name,pid,camid,split,coat,age"):
    """A raw folder with a list of its pictures."""
    for row in rows:
        if row.split(",")[0] != "missing.jpg":
            write_picture(root / row.split(",")[0], 7)
    (root / "images.csv").write_text("\n".join([header, *rows]) + "\n")
    return root


ROWS = (
    *("a/1.jpg,1,1,train,no,old", "a/2.jpg,1,2,train,no,", "3.png,20000,12,train,yes,young"),
    *("4.jpg,5,1,test,,young", "5.jpg,5,2,query,yes,young"),
)


def test_ones_own_list_is_a_data_set(tmp_path):
    done = data_prep.prepare("table", table(tmp_path / "raw", *ROWS), tmp_path / "out")
    assert done.labels == {"coat": ("no", "yes"), "age": ("old", "young")}
    dataset = datasets.open_dataset([done.directory], image_size=(8, 4), val_fraction=0.5)
    assert dataset.schema.labels == done.labels
    train = columns.open_split(done.directory, "train", image_size=(8, 4))
    assert train["pid"].tolist() == [20000, 1, 1]
    assert train["camid"].tolist() == [12, 1, 2]
    assert train["age"].tolist() == [1, 0, -1], "what is empty is not known"
    assert dataset.open("test")["coat"].tolist() == [-1]


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (["1.jpg,1,1,traain,no,old"], {}, "1.jpg is in split 'traain'; it must be train, test"),
        (["1.jpg,1,1,train,no,old"], {}, "label 'coat' has 1 classes; it must have 2 to 1000"),
        (["missing.jpg,1,1,train,no,old"], {}, "row 2: there is no picture"),
        (
            ["1.jpg,1,1,train,no,old"],
            {"header": "name,pid,camid,split,c t,age"},
            "'c t' is no name",
        ),
        (["1.jpg,1,1,no,old"], {"header": "name,pid,camid,coat,age"}, "has no column 'split'"),
    ],
)
def test_a_list_that_is_wrong(tmp_path, rows, changes, message):
    rows = rows if "1 classes" in message else [*rows, *ROWS]
    if changes.get("header", "").count(",") == 4:
        rows = rows[:1]
    with pytest.raises(InputError, match=message) as error:
        data_prep.prepare("table", table(tmp_path / "raw", *rows, **changes), tmp_path / "out")
    assert str(tmp_path / "raw") in str(error.value)
    assert not (tmp_path / "out/table").exists()


def test_a_list_need_not_have_every_split(tmp_path):
    done = data_prep.prepare("table", table(tmp_path / "raw", *ROWS[:3]), tmp_path / "out")
    assert list(prepared.read(done.directory).splits) == ["train"]
