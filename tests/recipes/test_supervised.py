import copy
import functools
import importlib
import json
import os

import jax
import numpy as np
import pytest

from configs import attributes_cnn
from market_jax import experiment, runs, settings, tasks
from market_jax.data import attributes, columns
from market_jax.errors import InputError
from market_jax.registry import find_module
from market_jax.report import predictions
from market_jax.training import checkpoints, writers
from tests.conftest import ROOT, small

CONFIGS = sorted(
    p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "common")
)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_name_in_every_config_resolves(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    model = experiment.make_model(config)
    experiment.make_loss(config)
    experiment.make_augment(config)
    plan = experiment.make_plan(config, np.arange(1, 1001))
    tx = experiment.make_optimizer(config, plan)
    state = jax.eval_shape(functools.partial(experiment.fresh_state, config, model, tx))
    assert jax.tree.leaves(state.params)
    for task in config.tasks:
        assert callable(find_module(tasks, task, "task").run)
    experiment.make_stages(config, dict)
    assert settings.from_json(settings.to_json(config)) == config


def test_a_run_leaves_what_people_look_at(workdir):
    assert json.loads((workdir / "config.json").read_text())["model"]["name"] == "attributes_cnn"
    assert (workdir / "curves.png").stat().st_size > 5000
    lines = writers.read_metrics(workdir)
    evaluations = [line for line in lines if "val/loss" in line]
    assert len(evaluations) == 3
    assert {"val/accuracy", "val/loss/gender", "val/loss/up_color"} <= evaluations[0].keys()
    assert any("train/images_per_second" in line for line in lines)


def test_attribute_task(workdir, capsys):
    run = runs.restore("attributes", str(workdir), "best", None)
    task = find_module(tasks, "attributes", "task")
    text = task.run(run)
    assert "mean of 12" in text
    result = json.loads((workdir / "evaluation" / "attributes.json").read_text())
    keys = {"accuracy", "balanced_accuracy", "f1", "majority", "accuracy_binary"}
    assert list(result["attributes"]) == list(attributes.ATTRIBUTES)
    assert all(keys <= row.keys() for row in result["attributes"].values())
    assert {"accuracy_10", "accuracy_12", "accuracy_12_binary", "majority_12"} <= result[
        "mean"
    ].keys()
    best = min(line["val/loss"] for line in writers.read_metrics(workdir) if "val/loss" in line)
    (line,) = (x for x in writers.read_metrics(workdir) if x.get("val/loss") == best)
    assert result["mean"]["accuracy_12"] == pytest.approx(line["val/accuracy"], abs=1e-6), (
        "training and evaluation disagree about the same checkpoint on the same images"
    )


def test_attribute_task_on_a_folder(workdir, synthetic_raw):
    """The folder of the test split gives what the split gives."""
    run = runs.restore("attributes", str(workdir), "best", None)
    task = find_module(tasks, "attributes", "task")
    path = workdir / "evaluation" / "attributes.json"
    task.run(run, split="test")
    split = json.loads(path.read_text())
    task.run(
        run,
        images=str(synthetic_raw / "bounding_box_test"),
        annotations=str(synthetic_raw / "market_attribute.mat"),
    )
    folder = json.loads(path.read_text())
    assert folder["attributes"] == split["attributes"]
    assert folder["identities"] == split["identities"] == 2
    with pytest.raises(InputError, match="--images and --annotations go together"):
        task.run(run, images="x")


def test_predictions_for_a_split_and_a_folder(workdir, synthetic_raw):
    run = runs.restore("attributes", str(workdir), "latest", None)
    task = find_module(tasks, "attributes", "task")
    path = workdir / "evaluation" / "classification_test.csv"
    texts = []
    for source in ("test", str(synthetic_raw / "bounding_box_test")):
        said = task.run(run, predict=source)
        assert str(path) in said
        texts.append(path.read_text())
    assert texts[0] == texts[1]
    count = len(list((synthetic_raw / "bounding_box_test").iterdir()))
    assert predictions.check_classification_csv(texts[0]) == count


def test_going_on_with_other_settings_is_refused(workdir, synthetic):
    changed = small(synthetic, **{"model.residual": False, "seed": 3})
    with pytest.raises(InputError, match=r"model.residual True -> False; seed 0 -> 3"):
        experiment.fit(changed, workdir)
    before = sorted(p.name for p in (workdir / "checkpoints").iterdir())
    experiment.fit(small(synthetic), workdir)  # finished: nothing to do
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == before


def test_a_run_restored_without_its_data_dir(workdir, synthetic):
    run = runs.restore("attributes", str(workdir), "best", "/somewhere/else")
    with pytest.raises(InputError, match=r"/somewhere/else: there is no such folder"):
        experiment.open_split(run.config, "val")


def test_newest_run_is_found(workdir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="holds no run that can do 'attributes'"):
        runs.find_run("attributes")
    for age, name in enumerate(("new", "old", "unable")):
        run = tmp_path / "runs" / name
        (run / "checkpoints" / "10").mkdir(parents=True)
        content = {"tasks": ["attributes"] if name != "unable" else ["junk"]}
        (run / "config.json").write_text(json.dumps(content))
        os.utime(run / "checkpoints" / "10", (1e9 - age, 1e9 - age))
    assert runs.find_run("attributes").name == "new"


def test_restore_refuses(workdir, tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        runs.restore("attributes", str(tmp_path), "best", None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.name": "duke"}, r"unknown data set \(data.name\) 'duke'; known: market1501"),
        ({"data.dir": "/no/where"}, "data.dir is /no/where: there is no such folder"),
        ({"data.name": "unitn"}, "data.name is unitn, but .*/synthetic/1.0.0 is synthetic"),
        ({"data.name": "unitn", "data.dir": ""}, "data.dir is empty; it must name the folder"),
        ({"model.name": "resnet99"}, "unknown model 'resnet99'; known: alexnet, attributes_cnn, a"),
        ({"model.name": "layers"}, "unknown model 'layers'; known: alexnet"),
        ({"losses.hat.term": "hinge"}, "unknown loss term 'hinge'; known: accuracy, active_dim"),
        ({"batch_size": 12}, "batch_size is 12; it must be a multiple of the 8"),
        ({"batch_size": 8000}, "batch_size is 8000, but the training split has"),
        ({"optimizer.name": "lion"}, "unknown optimizer 'lion'"),
        ({"data.image_size": (64, 32, 3)}, r"data.image_size is \(64, 32, 3\); it must be"),
        ({"accumulate": 0}, "accumulate is 0; it must be 1 or more"),
        ({"accumulate": 4}, r"batch_size is 16; .* 8 device\(s\) times the 4 parts of accumulate"),
        ({"dtype": "float16"}, "unknown dtype 'float16'; known: bfloat16, float32"),
        ({"convolution": "mkl"}, "convolution is 'mkl'; known: auto, onednn, jax, lax"),
        ({"epochs": 0}, "epochs is 0; it must be 1 or more"),
        ({"data.val_fraction": 1.5}, "data.val_fraction is 1.5; it must lie between 0 and 1"),
    ],
)
def test_bad_settings_end_in_a_message(synthetic, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        experiment.fit(small(synthetic, **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_loss_that_is_not_finite_names_its_batch(synthetic, tmp_path):
    config = small(synthetic, **{"optimizer.learning_rate": 1e30, "optimizer.warmup_epochs": 0.0})
    with pytest.raises(InputError) as error:
        experiment.fit(config, tmp_path / "run")
    message = str(error.value)
    step = int(message.split("step ")[1].split()[0])
    train = experiment.open_split(config, "train")
    rows = experiment.make_plan(config, train["pid"]).sampler.indices(step)
    assert ", ".join(train["name"][rows]) in message
    assert "the last good checkpoint: none" in message
    manager = checkpoints.open_manager(tmp_path / "run" / "checkpoints")
    assert checkpoints.find(manager) is None
    manager.close()


def test_a_raw_folder_is_prepared_once(synthetic_raw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = small(synthetic_raw)
    first = experiment.prepared_directory(config)
    assert first.is_relative_to("data")
    assert experiment.prepared_directory(config) == first
    assert columns.find_dataset(first) == first


def test_train_and_val_share_no_identity(synthetic):
    config = small(synthetic)
    train, val = (experiment.open_split(config, split) for split in ("train", "val"))
    assert not set(train["pid"]) & set(val["pid"])
    everyone = experiment.open_stored(config, "train")
    assert len(everyone["pid"]) == len(train["pid"]) + len(val["pid"])
    assert np.all(everyone["pid"] > 0)


def test_images_on_disk_train_alike(synthetic, workdir, tmp_path):
    config = small(synthetic, **{"data.in_memory": False})
    experiment.fit(config, tmp_path / "run")
    values = [
        [line["val/loss"] for line in writers.read_metrics(d) if "val/loss" in line]
        for d in (workdir, tmp_path / "run")
    ]
    assert values[0] == values[1]


@pytest.mark.parametrize(
    "changes", [{"dtype": "bfloat16"}, {"accumulate": 2}, {"remat": True, "convolution": "lax"}]
)
def test_other_ways_to_compute_train_too(synthetic, workdir, tmp_path, changes):
    experiment.fit(small(synthetic, epochs=1, **changes), tmp_path / "run")
    (value,) = (x["val/loss"] for x in writers.read_metrics(tmp_path / "run") if "val/loss" in x)
    expected = next(x["val/loss"] for x in writers.read_metrics(workdir) if "val/loss" in x)
    assert value == pytest.approx(expected, rel=0.1)


def test_a_profile_is_written(synthetic, tmp_path):
    experiment.fit(small(synthetic, epochs=2, profile=True), tmp_path / "run")
    text = (tmp_path / "run" / "profile" / "summary.txt").read_text()
    assert "batch            16 images" in text
    assert "share of peak" in text


def test_a_run_of_an_older_version_gets_the_settings_it_lacks(workdir):
    saved = json.loads((workdir / "config.json").read_text())
    del saved["retrieval"], saved["optimizer"]["clip_norm"]
    config = settings.from_json(saved, attributes_cnn.get_config())
    assert config.retrieval.metric == "cosine"
    assert config.optimizer.clip_norm == 0.0
    assert config.model.widths == (4, 6, 8, 6), "what was saved stands"


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("k_reciprocol", "unknown retrieval stage 'k_reciprocol'; known: .*k_reciprocal"),
        ("k_reciprocal k1", "'k1' is not KEY=VALUE"),
        ("k_reciprocal k1=twenty", "k1 is 'twenty'; it must be a whole number"),
        ("k_reciprocal k1=true", "k1 is True; it must be a whole number"),
        ("k_reciprocal one_more=1", "one_more is 1; it must be true or false"),
        ("agglomerative method=3", "method is 3; it must be a name"),
        ("spatio_temporal training=3", "unknown argument of the stage .* 'training'"),
        ("k_reciprocal k7=20", "unknown argument of the stage k_reciprocal 'k7'; known: k1, k2"),
        ("k_reciprocal query=1", "unknown argument of the stage k_reciprocal 'query'"),
        ("", "a retrieval stage has no name"),
    ],
)
def test_stages_that_do_not_exist(stage, message):
    config = attributes_cnn.get_config()
    config.retrieval.stages = (stage,)
    with pytest.raises(InputError, match=message):
        experiment.make_stages(config, dict)


def test_stages_get_their_arguments():
    config = attributes_cnn.get_config()
    config.retrieval.metric = "euclidean"
    config.retrieval.stages = ("k_reciprocal k1=7 one_more=true", "alpha_query_expansion")
    first, second = experiment.make_stages(config, dict)
    assert first.keywords == {"metric": "euclidean", "k1": 7, "one_more": True}
    assert second.func.__name__ == "alpha_query_expansion"


def test_configs_are_not_shared():
    first = attributes_cnn.get_config()
    second = copy.deepcopy(first)
    first.model.classes.age = 99
    assert attributes_cnn.get_config() == second


def test_persons_as_labels_are_counted_once_and_a_run_goes_on(synthetic, tmp_path):
    config = importlib.import_module("configs.source_b").get_config("identity")
    config.data.dir, config.data.image_size = str(synthetic), (96, 64)
    config.model.update({"backbone": "alexnet dense=false", "pretrained": ""})
    config.model.head = "normalized width=8"
    config.batch_size, config.epochs, config.convolution = 16, 1, "lax"
    experiment.fit(config, tmp_path / "run")
    experiment.fit(config, tmp_path / "run")  # the same command: nothing differs, nothing is left
    assert config.model.identities == -1, "the user's config is left as it was"
    run = runs.restore("reid", str(tmp_path / "run"), "latest", None)
    train, val = experiment.open_training(config)
    assert run.config.model.identities == len(np.unique(train["pid"]))
    assert set(val["identity"]) == {-1}
    outputs = runs.extract(run, val, runs.only("embedding", "feature", "identity"))
    assert outputs["identity"].shape == (len(val["pid"]), run.config.model.identities)
    assert not np.allclose(outputs["embedding"], outputs["feature"])
    losses = {k for line in writers.read_metrics(tmp_path / "run") for k in line}
    assert {"train/loss/identity", "train/loss/triplet", "val/loss/triplet"} <= losses
    config.accumulate = 2
    with pytest.raises(InputError, match="images_per_identity needs whole batches"):
        experiment.fit(config, tmp_path / "other")
