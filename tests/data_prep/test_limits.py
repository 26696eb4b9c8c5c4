"""Labels, seeds and folders at the edge of what is allowed."""

import pytest

import data_prep
from data_prep import build
from market_jax.data import columns, datasets, pipeline, samplers
from market_jax.errors import InputError
from tests.conftest import write_picture

ROWS = ("1.jpg,1,1,train,no", "2.jpg,2,1,train,yes", "3.jpg,1,1,test, no ", "4.jpg,1,2,query,")


def table(root, label):
    for row in ROWS:
        write_picture(root / row.split(",")[0], 7)
    header = f"name,pid,camid,split,{label}"
    (root / "images.csv").write_text("\n".join([header, *ROWS]) + "\n")
    return root


@pytest.mark.parametrize(
    "label",
    ["mask", "dataset", "identity", "image", "embedding", "digest", "camera", "slot"],
)
def test_a_label_does_not_take_a_name_that_is_taken(tmp_path, label):
    with pytest.raises(InputError, match=rf"images\.csv: column '{label}' is no name for a label"):
        data_prep.prepare("table", table(tmp_path / "raw", label), tmp_path / "out")


@pytest.mark.parametrize("label", ["mask", "camera", "camid", "name", "a b"])
def test_a_builder_s_label_has_a_name_of_its_own(unitn, tmp_path, monkeypatch, label):
    monkeypatch.setattr(build.builders.Unitn, "LABELS", {label: ("no", "yes")})
    with pytest.raises(InputError, match=rf"unitn: label '{label}' is no name for a label"):
        data_prep.prepare("unitn", unitn, tmp_path / "out")


@pytest.mark.parametrize("label", ["", "_x", "a b", "1a", "a/b", "a.b", "__class__"])
def test_a_label_has_a_plain_name(tmp_path, label):
    with pytest.raises(InputError, match="is no name for a label: letters, digits and _"):
        data_prep.prepare("table", table(tmp_path / "raw", label), tmp_path / "out")


@pytest.mark.parametrize("label", ["keys", "items", "attributes", "Pid", "step", "names", "hé"])
def test_other_names_come_through_to_the_batches(tmp_path, label):
    done = data_prep.prepare("table", table(tmp_path / "raw", label), tmp_path / "out")
    assert done.labels == {label: ("no", "yes")}
    dataset = datasets.open_dataset([done.directory], image_size=(8, 4), val_fraction=0)
    rows = columns.in_memory(dataset.open("train"))
    (batch,) = pipeline.batches(rows, samplers.sequential(2, 2), last=1)
    assert batch[label].tolist() == rows[label].tolist() == [0, 1]
    assert dataset.open("test")[label].tolist() == [0]
    assert dataset.open("query")[label].tolist() == [-1]


def test_a_split_that_one_side_lacks(tmp_path):
    """Train and test without queries are a data set; an empty split is none."""
    raw = table(tmp_path / "raw", "hat")
    lines = (raw / "images.csv").read_text().splitlines()
    (raw / "images.csv").write_text("\n".join(lines[:-1]))
    done = data_prep.prepare("table", raw, tmp_path / "out")
    dataset = datasets.open_dataset([done.directory], image_size=(8, 4), val_fraction=0)
    with pytest.raises(
        InputError, match="there is no split 'query'; known: holdout, test, train, val"
    ):
        dataset.open("query")


def test_a_seed_is_0_or_more(tmp_path):
    with pytest.raises(InputError, match="seed is -1; it must be 0 or more"):
        build.draw_once(tmp_path / "raw", seed=-1, identities=4)
    assert [path.name for path in tmp_path.iterdir()] == [".raw.lock"]


def test_a_place_that_is_none(tmp_path):
    raw, file = table(tmp_path / "raw", "hat"), tmp_path / "file"
    file.write_text("")
    for output in (file, file / "below"):
        with pytest.raises(InputError, match=rf"{output}/\.table\.lock cannot be written \("):
            data_prep.prepare("table", raw, output)
    with pytest.raises(InputError, match="file: there is no such folder"):
        data_prep.prepare("table", file, tmp_path / "out")
    with pytest.raises(InputError, match=r"file: was drawn with seed unknown, not 1"):
        build.draw_once(file, seed=1)
    with pytest.raises(InputError, match=r"data\.dir is .*file: there is no such folder"):
        data_prep.find_or_prepare("table", str(file), tmp_path)
    with pytest.raises(InputError, match=r"data\.dir is empty; it must name the folder of table"):
        data_prep.find_or_prepare("table", "", tmp_path)
