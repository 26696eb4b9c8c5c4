"""Trainings that clusters teach, at a small size on synthetic people."""

import csv
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import data_prep
from configs import cluster_contrast, small, spcl
from market_jax import build, history, runs, seen, settings
from market_jax.errors import InputError
from market_jax.recipes import cluster_contrast as recipe
from market_jax.tasks import junk as junk_task
from market_jax.tasks import reid as reid_task
from market_jax.training import checkpoints, writers


def shrunk(module, folder, **changes):
    """The experiment with a toy for a backbone, and three rounds of four steps."""
    config = module.get_config()
    config.data.dir, config.data.image_size = str(folder), (32, 16)
    config.batch_size, config.unlabelled.batch_size, config.num_instances = 16, 8, 2
    if module is cluster_contrast:
        config.unlabelled.batch_size = 16
    config.epochs, config.steps_per_epoch, config.log_every = 3, 4, 2
    config.clusters.update(k1=8, k2=3, min_samples=2)
    config.model.pretrained = ""
    config.model.backbone = {"name": "tests.toys:Backbone", "width": 8}
    config.update_from_flattened_dict(changes)
    return config


def read_clusters(workdir):
    """The file of all rounds' clusters."""
    with np.load(workdir / recipe.FILE) as kept:
        return dict(kept)


def rounds_of(workdir):
    """What was logged of each round."""
    return [line for line in writers.read_metrics(workdir) if "round/clusters" in line]


def test_without_labels_a_network_learns_from_clusters(synthetic, tmp_path):
    config = shrunk(cluster_contrast, synthetic)
    recipe.fit(config, tmp_path / "run")
    lines = writers.read_metrics(tmp_path / "run")
    found = rounds_of(tmp_path / "run")
    assert [line["step"] for line in found] == [1, 5, 9]
    for line in found:
        assert line["round/clusters"] >= 8
        assert 0.1 < line["round/nmi"] < 1
        assert 0 < line["round/ari"] < line["round/nmi"]
        assert 0 < line["round/coverage"] <= 1
    losses = [line["train/loss/memory"] for line in lines if "train/loss/memory" in line]
    assert len(losses) == 6
    assert np.isfinite(losses).all()
    assert max(losses) > 1
    judged = [line["val/market/mAP"] for line in lines if "val/market/mAP" in line]
    assert len(judged) == 3
    run = runs.restore(tmp_path / "run", allow_imports=True)
    assert run.config.model.identities == 0
    train = run.dataset().open("train")
    assert run.config.hooks.memory.slots == len(train["pid"]) // 2


def test_nothing_but_the_log_looks_at_the_hidden_labels(synthetic, tmp_path, monkeypatch):
    """Other labels of the same pictures: the same network, bit for bit."""
    config = shrunk(cluster_contrast, synthetic, epochs=1)
    recipe.fit(config, tmp_path / "run")
    opened = build.dataset

    def with_other_labels(*arguments):
        dataset = opened(*arguments)
        order = np.random.default_rng(0).permutation(len(dataset.open("train")["pid"]))
        names = ("pid", "identity", *dataset.schema.labels)

        def open_split(split):
            rows = dataset.open(split)
            return rows | {k: rows[k][order] for k in names} if split == "train" else rows

        return dataset._replace(open=open_split)

    monkeypatch.setattr(build, "dataset", with_other_labels)
    recipe.fit(config, tmp_path / "other")
    for a, b in zip(*(variables(tmp_path / name) for name in ("run", "other")), strict=True):
        np.testing.assert_array_equal(a, b)
    nmi = [rounds_of(tmp_path / name)[0]["round/nmi"] for name in ("run", "other")]
    assert nmi[1] < nmi[0] - 0.05


def variables(workdir):
    """The latest variables of a run, its memory among them."""
    directory = workdir / "checkpoints"
    found = checkpoints.read_all_variables(directory, checkpoints.find(directory))
    assert "memory" in found
    return jax.tree.leaves(found)


def test_known_persons_and_pictures_without_labels_are_learned_together(synthetic, tmp_path):
    config = shrunk(spcl, synthetic, epochs=2)
    recipe.fit(config, tmp_path / "run")
    run = runs.restore(tmp_path / "run", "latest", allow_imports=True)
    train, test = (run.dataset().open(split) for split in ("train", "test"))
    persons = len(np.unique(train["pid"]))
    assert run.config.model.identities == 0
    assert run.config.hooks.memory.slots == persons + len(test["pid"])
    directory = tmp_path / "run/checkpoints"
    kept = checkpoints.read_all_variables(directory, run.step)["memory"]
    assert (kept["labels"] >= 0).all()
    assert kept["labels"][:persons].tolist() == list(range(persons))
    assert kept["labels"][persons:].min() == persons
    assert float(kept["threshold"]) >= 0
    np.testing.assert_allclose(np.linalg.norm(kept["bank"], axis=1), 1, rtol=1e-5)
    clusters = read_clusters(tmp_path / "run")
    assert clusters["name"].tolist() == test["name"].tolist()
    assert clusters.keys() == {"name", "digest", "0", "1"}
    labels = np.stack([clusters["0"], clusters["1"]])
    found = [line["round/outliers"] for line in rounds_of(tmp_path / "run")]
    assert found == (labels < 0).sum(axis=1).tolist()
    junk_task.run(run, score="rounds")
    rows = list(csv.DictReader((run.evaluation / "junk.csv").read_text().splitlines()))
    scores = {row["name"]: float(row["score"]) for row in rows}
    expected = dict(zip(test["name"].tolist(), (labels < 0).mean(axis=0).tolist(), strict=True))
    assert scores == pytest.approx(expected)
    assert junk_task._of_rounds(run, train) == {}


def test_a_figure_of_pictures_that_were_clustered_is_marked(synthetic, tmp_path):
    config = shrunk(spcl, synthetic, epochs=1)
    recipe.fit(config, tmp_path / "run")
    run = runs.restore(tmp_path / "run", allow_imports=True)
    text = reid_task.run(run, split="test")
    assert text.startswith("TRANSDUCTIVE: the network has learned from the judged pictures")
    assert json.loads((run.evaluation / "reid.json").read_text())["transductive"] is True
    assert "TRANSDUCTIVE" not in reid_task.run(run, split="val")
    assert "transductive" not in json.loads((run.evaluation / "reid.json").read_text())
    for name, marked in (("unitn", False), ("synthetic", True)):
        elsewhere = run._replace(config=run.config.copy_and_resolve_references())
        elsewhere.config.data.name = name
        assert seen.is_transductive(elsewhere, ("test", "query")) is marked
        assert not seen.is_transductive(elsewhere, ("holdout",))


def test_the_release_shows_the_pictures_of_the_published_set():
    def marked(judged, *clustered):
        config = ConfigDict({"data": {"name": judged}})
        run = runs.Run(None, 0, config, None, {"clustered": clustered})
        return seen.is_transductive(run, ("test", "query"))

    assert marked("market1501", ("unitn", "test"))
    assert marked("market1501", ("synthetic,unitn", "train")), "divided anew, whatever the split"
    assert marked("unitn", ("unitn", "train"), ("unitn", "test"))
    assert not marked("unitn", ("unitn", "train"))
    assert not marked("market1501", ("synthetic", "test"))
    assert not marked("market1501")


def test_a_run_that_goes_on_from_one_that_clustered_is_marked_too(synthetic, tmp_path):
    config = shrunk(spcl, synthetic, epochs=1)
    recipe.fit(config, tmp_path / "first")
    config = shrunk(cluster_contrast, synthetic, epochs=1)
    config.model.pretrained = str(tmp_path / "first")
    recipe.fit(config, tmp_path / "run")
    config.epochs = 2
    recipe.fit(config, tmp_path / "run")
    run = runs.restore(tmp_path / "run", allow_imports=True)
    assert run.extra["clustered"] == [["synthetic", "train"], ["synthetic", "test"]]
    (begun,) = history.beginnings_of(run.extra)
    assert (begun.config["epochs"], begun.divisions) == (1, run.divisions)
    assert seen.is_transductive(run, ("test", "query"))
    junk_task.run(run)
    assert json.loads((run.evaluation / "junk.json").read_text())["transductive"] is True


def test_from_one_data_set_to_another(synthetic, other, tmp_path):
    """The named data set alone is clustered; the labels of the first are learned."""
    names = {"data.name": "synthetic,unitn", "data.dir": f"{synthetic},{other}"}
    few = {"clusters.k1": 3, "clusters.k2": 1, "batch_size": 16, "unlabelled.batch_size": 4}
    names["unlabelled.pictures"] = "train/unitn"
    config = shrunk(spcl, synthetic, epochs=1, **names, **few)
    dataset = build.dataset(config)
    sides = recipe.open_sides(config, dataset)
    hidden = sides.train["identity"] < 0
    assert hidden.tolist() == (sides.train["dataset"] == 1).tolist()
    assert (sides.train["pid"][~hidden] > 0).all()
    assert (sides.train["true_pid"][hidden] > 0).all()
    recipe.fit(config, tmp_path / "run")
    (found,) = rounds_of(tmp_path / "run")
    assert found["round/clusters"] + found["round/outliers"] <= hidden.sum()


def test_slots_and_classes_by_hand():
    columns = {"identity": np.array([0, 1, 1, -1, -1, -1, -1, -1], np.int32)}
    labels = np.array([1, -1, 0, 1, -1])
    slots, classes = recipe.assign(columns, labels, instances=False)
    assert slots.tolist() == classes.tolist() == [0, 1, 1, 3, -1, 2, 3, -1]
    slots, classes = recipe.assign(columns, labels, instances=True)
    assert slots.tolist() == [0, 1, 1, 2, 3, 4, 5, 6]
    assert classes.tolist() == [0, 1, 1, 3, 4, 2, 3, 5]


@pytest.mark.parametrize(
    ("module", "changes", "message"),
    [
        (spcl, {"steps_per_epoch": 0}, "steps_per_epoch is 0; this recipe needs it"),
        (spcl, {"stages.small": {"until": 0.5}}, "this recipe has no stages; .* small"),
        (spcl, {"grad_accum_steps": 2}, "grad_accum_steps must be 1"),
        (spcl, {"num_instances": 0}, "num_instances is 0, unlabelled.batch_size 8 and batch_size"),
        (spcl, {"num_instances": 3}, "num_instances is 3, .* must be 1 or more and divide"),
        (spcl, {"unlabelled.batch_size": 24}, "the second be at most the third"),
        (cluster_contrast, {"unlabelled.batch_size": 8}, "there are 0 images for the rest"),
        (spcl, {"unlabelled.pictures": "tests"}, "there is no split 'tests'"),
        (spcl, {"unlabelled.pictures": "train/market"}, "unknown data set .* 'market'"),
        (spcl, {"unlabelled.batch_size": 0}, "batch_size is 0; it must be 1 or more"),
        (spcl, {"clusters.eps": 0.0}, "eps is 0.0; it must be above 0"),
        (spcl, {"clusters.gap": 0.7}, "gap is 0.7; it must be below eps, 0.6"),
        (spcl, {"clusters.threshold": 0.5}, "unknown argument of clustering"),
        (spcl, {"clusters.name": "dbscn"}, "unknown clustering .* 'dbscn'"),
        (spcl, {"clusters.k1": 10000}, "k1 is 10000; it must be 1 to"),
        (cluster_contrast, {"clusters.min_samples": 99}, "round 0 has no clusters"),
        (spcl, {"hooks.memory.features": "feature"}, "hooks.memory.features is 'feature' and"),
        (spcl, {"losses.memory.features": "feature"}, "features 'feature'; they must be the same"),
        (spcl, {"unlabelled.pictures": "val"}, "is 'val', and evaluators.reid judges it"),
        (spcl, {"unlabelled.pictures": "val", "evaluators": {}}, "checkpoints are chosen by its"),
        (spcl, {"evaluators.reid.split": "test"}, "is 'test', and evaluators.reid judges it"),
        (spcl, {"evaluators.junk": {"name": "junk"}}, "is 'test', and evaluators.junk judges it"),
        (cluster_contrast, {"evaluators.reid.split": "train"}, "is 'train', and evaluators.reid"),
        (spcl, {"hooks": {}}, "the loss 'memory' needs a memory, which a hook keeps"),
    ],
)
def test_what_is_wrong_is_named(synthetic, tmp_path, module, changes, message):
    with pytest.raises(InputError, match=message):
        recipe.fit(shrunk(module, synthetic, **changes), tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize("part", ["unlabelled", "clusters"])
def test_a_part_that_is_missing_is_named(synthetic, tmp_path, part):
    config = shrunk(spcl, synthetic)
    del config[part]
    with pytest.raises(InputError, match=f"the recipe cluster_contrast needs '{part}'"):
        recipe.fit(config, tmp_path / "run")


def test_a_heap_of_another_split_is_learned_without_any_label(synthetic, tmp_path):
    """Single images are no clusters, and a batch that has more groups than there are goes on."""
    settings = {"unlabelled.pictures": "test", "epochs": 1, "clusters.min_samples": 1}
    config = shrunk(cluster_contrast, synthetic, **settings)
    sides = recipe.open_sides(config, build.dataset(config))
    assert (sides.train["pid"] == -1).all()
    assert sides.config.model.identities == 0
    recipe.fit(config, tmp_path / "run")
    labels = read_clusters(tmp_path / "run")["0"]
    assert np.bincount(labels[labels >= 0]).min() >= 2


def test_without_labels_map_rises_over_rounds(tmp_path, monkeypatch):
    """On synthetic people whom no clustering has seen; and not where the clusters are shuffled."""
    data_prep.draw(tmp_path / "raw", identities=40, distractors=3, junk=6)
    folder = data_prep.prepare("synthetic", tmp_path / "raw", tmp_path / "prepared")[0]
    settings = {"data.val_fraction": 0.4, "data.image_size": (48, 24), "num_instances": 4}
    settings |= {"clusters.k1": 12, "clusters.min_samples": 4, "batch_size": 32}
    settings |= {"epochs": 6, "steps_per_epoch": 30, "optimizer.learning_rate": 5e-2}
    config = shrunk(cluster_contrast, folder, **settings, **{"unlabelled.batch_size": 32})
    config.augmentation = {"flip": {"probability": 0.5}}
    config.model.backbone = {"name": "tests.toys:Striped"}

    def judge(name):
        recipe.fit(config, tmp_path / name)
        lines = writers.read_metrics(tmp_path / name)
        return [line["val/market/mAP"] for line in lines if "val/market/mAP" in line]

    first, *_, last = judge("run")
    assert last > first + 0.03
    assign = recipe.assign

    def shuffled(columns, labels, **settings):
        return assign(columns, np.random.default_rng(0).permutation(labels), **settings)

    monkeypatch.setattr(recipe, "assign", shuffled)
    assert judge("shuffled")[-1] < last - 0.06


def test_the_control_lacks_nothing_but_the_pictures_without_labels():
    with_them, control = (
        settings.flatten(small.get_config(f"{word},resnet,depth=18").to_dict())
        for word in ("unlabelled", "continued")
    )
    parts = ("unlabelled.", "clusters.", "losses.memory.", "hooks.memory.")
    differing = {k for k, v in with_them.items() if control.get(k) != v and not k.startswith(parts)}
    assert control.keys() <= with_them.keys()
    assert differing == {"recipe"}
    with pytest.raises(ValueError, match="'continued' is more than one word of this file"):
        small.get_config("unlabelled,continued")
