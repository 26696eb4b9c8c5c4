"""Which networks a training may begin with, what it takes of them, and whom they must not know."""

import jax
import numpy as np
import pytest
import safetensors.numpy
from absl import logging

from market_jax import build, experiment, history, settings
from market_jax.data.datasets import Division, open_dataset
from market_jax.errors import InputError
from market_jax.training import checkpoints, transfer
from market_jax.weights import published
from tests.conftest import small
from tests.weights.networks import keep, tiny


def network(value, persons=3, **backbone):
    """Variables that all have one value: of a backbone, and of a layer that classifies persons."""
    parts = {"conv": {"kernel": np.full((2, 3), value, np.float32)}} | backbone
    head = {"kernel": np.full((3, persons), value, np.float32)}
    return {"params": {"backbone": parts, "head_identity": head}}


def values(variables):
    """The first value of each variable, by its path."""
    return {name: leaf.flat[0] for name, leaf in checkpoints.paths_of(variables["params"]).items()}


def test_the_checkpoint_that_a_name_asks_for(tmp_path):
    for step in (3, 7):
        keep(tmp_path / "run", tiny(), [], variables=network(step), step=step, score=1.0 / step)
    for which, step in (("", 3), ("@best", 3), ("@latest", 7), ("@7", 7)):
        found = transfer.begin(network(0), f"{tmp_path / 'run'}{which}")
        assert set(values(found).values()) == {step}, which
    with pytest.raises(InputError, match="has no checkpoint '4'; best, latest, or of 3, 7"):
        transfer.begin(network(0), f"{tmp_path / 'run'}@4")
    assert transfer.find(f"{tmp_path / 'run'}@") is None
    (tmp_path / "a@latest").mkdir()
    with pytest.raises(InputError, match="a@latest: holds no checkpoint to begin with"):
        transfer.begin(network(0), tmp_path / "a@latest")


def write(path, variables, **about):
    """A published network, which has seen persons 1 to 3 of the synthetic data set."""
    seen = {"name": "synthetic", "identities": 3, "pids": {"train": [1, 2, 3]}}
    empty = {key: {} for key in ("config", "labels", "label_counts", "same_person")}
    known = {"name": path.stem, "trained_on": [seen], "clustered": [], "commit": ""}
    published.write(path, variables, empty | known | about)
    return path


def test_a_published_network_is_one_to_begin_with(tmp_path, monkeypatch):
    path = write(tmp_path / "own.safetensors", network(0.1, persons=1))
    assert published.read(path).tensors["params/backbone/conv/kernel"].dtype == np.float16
    monkeypatch.setattr(published, "names", lambda: {"own": path})
    for name in ("own", path):
        found = transfer.begin(network(0), name)
        assert values(found) == {
            "backbone/conv/kernel": pytest.approx(0.1, rel=1e-3),
            "head_identity/kernel": 0,
        }
        assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"float32"}
    tensors = published.read(path).tensors | {
        "params/backbone/conv/kernel": np.full((2, 3), np.nan)
    }
    with safetensors.safe_open(path, "numpy") as file:
        safetensors.numpy.save_file(tensors, path, file.metadata())
    with pytest.raises(
        InputError, match=r"own\.safetensors: params/backbone/conv/kernel holds val"
    ):
        transfer.begin(network(0), path)


def test_a_file_of_another_program_is_none_of_ours(tmp_path):
    path = tmp_path / "timm.safetensors"
    safetensors.numpy.save_file({"conv1.weight": np.ones(1)}, path)
    (tmp_path / "torch.safetensors").write_bytes(b"PK\x03\x04")
    for name in (path, tmp_path / "torch.safetensors", tmp_path / "no.safetensors", "auto", ""):
        assert transfer.find(name) is None


def test_the_power_of_gem_begins_anew_where_there_was_none(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "info", lambda text, *args: lines.append(text % args))
    now = network(3, gem={"power": np.full(1, 3.0)})
    average = keep(tmp_path / "average", tiny(), [], variables=network(2))
    found = values(transfer.begin(now, average))
    assert (found["backbone/gem/power"], found["backbone/conv/kernel"]) == (3, 2)
    assert f"{average}/checkpoints/7: params/backbone/gem/power begins anew" in lines
    pooled = network(4, gem={"power": np.full(1, 4.0)})
    pooled = keep(tmp_path / "gem", tiny(), [], variables=pooled)
    assert values(transfer.begin(now, pooled))["backbone/gem/power"] == 4
    with pytest.raises(InputError, match="another backbone: params/backbone/bias is absent there"):
        transfer.begin(network(3, bias=np.zeros(1)), average)


def test_who_is_held_out_must_be_new_to_the_network(dataset):
    (own,) = dataset.divisions()
    pids = [pid for side in own.pids.values() for pid in side]
    held = len(own.pids["val"])
    assert held > 1
    transfer.check_held_out("x", [own], dataset)
    transfer.check_held_out("x", [Division("synthetic", {"train": own.pids["train"]}, {})], dataset)
    message = rf"'x', which was trained on {held} of the {held} people of synthetic who are held"
    with pytest.raises(InputError, match=message):
        transfer.check_held_out("x", [Division("synthetic", {"train": pids}, {})], dataset)
    one = Division("synthetic", {"train": own.pids["val"][:1]}, {})
    with pytest.raises(InputError, match=f"trained on 1 of the {held} people"):
        transfer.check_held_out("x", [own, one], dataset)
    transfer.check_held_out("x", [Division("shop", {"train": pids}, {})], dataset)


def test_people_in_other_pictures_have_the_numbers_by_chance(synthetic, dataset, monkeypatch):
    """Two lists of one's own have the same name, and so have two drawings of people."""
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: lines.append(text % args))
    (whole,) = open_dataset([synthetic], image_size=(1, 1), val_fraction=0.0).divisions()
    with pytest.raises(InputError, match="who are held out here"):
        transfer.check_held_out("x", [whole], dataset)
    elsewhere = whole._replace(digests=dict.fromkeys(whole.digests, "f" * 16))
    transfer.check_held_out("x", [elsewhere], dataset)
    assert lines == [
        "x was trained on other pictures of synthetic; its people are taken for others"
    ]


def test_of_several_data_sets_each_is_looked_at(synthetic, other):
    both = open_dataset([synthetic, other], image_size=(1, 1))
    (whole,) = open_dataset([other], image_size=(1, 1), val_fraction=0.0).divisions()
    with pytest.raises(InputError, match="trained on 1 of the 1 people of unitn who are held out"):
        transfer.check_held_out("x", [whole], both)
    transfer.check_held_out("x", both.divisions(), both)


def test_people_under_other_numbers_can_be_anybody(other):
    known = [Division("market1501", {"train": [2, 5]}, {})]
    with pytest.raises(
        InputError, match="shows people of unitn under other numbers, so that the 1"
    ):
        transfer.check_held_out("x", known, open_dataset([other], image_size=(1, 1)))
    nobody = open_dataset([other], image_size=(1, 1), val_fraction=0.0)
    transfer.check_held_out("x", known, nobody)


def test_a_training_refuses_what_knows_its_people(synthetic, other, tmp_path):
    """At once, or by way of a run that began with it; where they were held out, it goes."""
    config = small(synthetic)
    divided = build.dataset(config).divisions()
    (whole,) = build.dataset(small(synthetic, **{"data.val_fraction": 0.0})).divisions()
    elsewhere = Division("shop", {"train": [1, 2], "val": [], "holdout": []}, {"train": "0"})
    first = keep(tmp_path / "first", config, [whole])
    begun = [history.Beginning(settings.to_json(config), [whole])]
    config.model.pretrained = "a run that is gone"
    second = keep(tmp_path / "second", config, [elsewhere], beginnings=begun)
    for name in (first, f"{first}@latest", second):
        config.model.pretrained = name
        with pytest.raises(InputError, match=f"'{name}', which was trained on 2 of the 2 people"):
            experiment.prepare(config, tmp_path / "run", None)
    config.model.pretrained = keep(tmp_path / "third", small(synthetic), divided)
    made = experiment.prepare(config, tmp_path / "run", None)
    assert made.clustered == []
    assert [beginning.divisions for beginning in made.beginnings] == [divided]
    path = write(tmp_path / "own.safetensors", {"params": {"x": np.zeros(1)}})
    config.model.pretrained = str(path)
    held = set(divided[0].pids["val"])
    write(path, {"params": {"x": np.zeros(1)}}, trained_on=entries(held))
    with pytest.raises(InputError, match=r"own\.safetensors', which was trained on 2 of the 2"):
        experiment.prepare(config, tmp_path / "run", None)
    write(path, {"params": {"x": np.zeros(1)}}, clustered=[["shop", "test"]], trained_on=[])
    assert experiment.prepare(config, tmp_path / "run", None).clustered == [("shop", "test")]


def entries(pids):
    """`trained_on` of a published network."""
    pids = sorted(pids)
    return [{"name": "synthetic", "identities": len(pids), "pids": {"train": pids}}]


def test_an_older_run_that_has_not_kept_its_beginning_is_refused(tmp_path):
    config = tiny()
    config.model.pretrained = keep(tmp_path / "first", tiny(), [])
    with pytest.raises(InputError, match="first' has not kept whom that network knows"):
        history.beginnings_of({"config": settings.to_json(config)})
    assert history.beginnings_of({"config": settings.to_json(tiny())}) == []
