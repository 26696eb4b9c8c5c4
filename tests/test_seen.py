"""Whether a network has seen what it is judged on, of a run, a file and what has seen nobody."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from market_jax import history, runs, seen
from market_jax.data.datasets import Dataset, Division, Part
from market_jax.data.schema import Schema
from market_jax.errors import InputError
from market_jax.tasks import export, reid
from tests.weights import networks

SIDES = [{"pid": np.array([-1, 0, 2, 2, 9]), "name": np.array([*"abcde"])}]


class Judged(runs.Run):
    """A run without a network, on data sets of which the names alone are known."""

    def dataset(self):
        names = self.config.data.name.split(",")
        parts = [Part(Schema(name, {}), i, pid_offset=100 * i) for i, name in enumerate(names)]
        return Dataset(Schema("joined", {}), None, parts=parts)


def judged(data, *trained, begun=()):
    """A run that knows people: (data set, pids) each; `begun` are those of what it began with."""

    def as_divisions(known):
        return [{"name": n, "pids": {"train": pids, "val": []}, "digests": {}} for n, pids in known]

    extra = {"config": {"model": {}}, "divisions": as_divisions(trained), "beginnings": []}
    if begun:
        extra["beginnings"] = [{"config": {}, "divisions": as_divisions(begun)}]
    return Judged(None, 0, ConfigDict({"data": {"name": data}}), None, extra)


def test_a_run_that_is_judged_on_new_people_needs_no_word():
    text, record = seen.known_people(judged("unitn", ("unitn", [3, 4])), SIDES, split="val")
    assert (text, record) == ("", {"data": "unitn", "identities_trained_on": 0})


def test_people_that_a_run_began_with_are_known():
    run = judged("unitn", ("synthetic", [2, 9]), begun=[("unitn", [1, 2])])
    text, record = seen.known_people(run, SIDES, split="val")
    assert text.startswith("CAUTION: 1 of 2 identities judged here were trained on; these figures")
    assert record["identities_trained_on"] == 1
    text, record = seen.known_people(run, SIDES, split="")
    assert text.startswith("The network was trained on 2 identities of synthetic and 2 ident")
    assert record == {}


@pytest.mark.parametrize(
    ("data", "related"),
    [("market1501", ["unitn"]), ("synthetic,market1501", ["unitn"]), ("unitn", [])],
)
def test_the_same_people_under_other_numbers(data, related):
    text, record = seen.known_people(judged(data, ("unitn", [3])), SIDES, split="test")
    assert record.get("related", []) == related
    assert ("CAUTION: the network was trained on 1 identities of unitn, which shows" in text) is (
        bool(related)
    )


def test_of_several_data_sets_each_has_numbers_of_its_own():
    rows = [{"pid": np.array([2, 102, 105, 9])}]
    run = judged("unitn,synthetic", ("unitn", [5, 9]), ("synthetic", [2, 9]))
    assert seen.known_pids(run, rows, run.dataset().parts) == ({2, 9, 102, 105}, {9, 102})


@pytest.mark.parametrize(("digest", "known"), [("now", {2}), ("then", set()), (None, {2})])
def test_other_pictures_under_the_same_numbers_are_other_people(monkeypatch, digest, known):
    run = judged("table", ("table", [2, 3]))
    run.extra["divisions"][0]["digests"] = {"train": digest} if digest else {}
    monkeypatch.setattr(seen.build, "dataset", lambda config: run.dataset())
    monkeypatch.setattr(seen.transfer.columns_, "fingerprint", lambda rows: "now")
    row = {"pid": np.array([2, 3]), "digest": np.array(["a", "b"])}
    division = Division("table", {}, {})
    monkeypatch.setattr(seen.transfer, "divided", lambda dataset: [(division, row)])
    assert seen.known_pids(run, SIDES, run.dataset().parts)[1] == known


@pytest.mark.parametrize(
    ("pictures", "names"),
    [("test", []), ("train/unitn", ["unitn"]), ("train", ["unitn", "synthetic"])],
)
def test_a_training_without_labels_has_seen_what_it_clustered_alone(pictures, names):
    run = judged("unitn", ("unitn", [2]), ("synthetic", [2]))
    run.extra["config"]["unlabelled"] = {"pictures": pictures, "batch_size": 8}
    run.extra["config"]["batch_size"] = 8
    assert [entry["name"] for entry in history.trained_on(run.extra)] == names
    run.extra["config"]["batch_size"] = 16
    assert len(history.trained_on(run.extra)) == 2


def test_what_an_onnx_file_has_seen(tmp_path, synthetic):
    trained = networks.as_run(networks.tiny(), tmp_path / "run", [1, 2, 3])
    path = tmp_path / "x.onnx"
    export.run(trained, output=str(path), to="onnx")
    config = trained.config.copy_and_resolve_references()
    config.data.dir = str(synthetic)
    baseline = runs.without_model(config, str(tmp_path / "baseline"))
    shown = set(baseline.dataset().open("train")["pid"].tolist())
    known = len(shown & {1, 2, 3})
    text = reid.run(baseline, split="train", features=str(path))
    assert text.startswith(f"CAUTION: {known} of {len(shown)} identities judged here were trained")
    record = json.loads((baseline.evaluation / reid.FILE).read_text())
    assert record["identities_trained_on"] == known > 0
    assert "CAUTION" not in reid.run(baseline, split="train", features="pixels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seen.onnx, "about", lambda path: {"trained_on": "[", "clustered": "[]"})
        with pytest.raises(InputError, match=r"x\.onnx: its metadata is no JSON"):
            seen.known_people(baseline, SIDES, split="train", source=str(path))
        patch.setattr(seen.onnx, "about", lambda path: {"network": "of another program"})
        text, record = seen.known_people(baseline, SIDES, split="train", source=str(path))
        assert text.endswith("x.onnx does not say whom its network was trained on.")
        assert record == {"data": "synthetic", "identities_trained_on": None}
