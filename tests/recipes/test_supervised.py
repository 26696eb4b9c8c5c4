import copy
import functools
import importlib
import json
import os

import jax
import numpy as np
import optax
import pytest

import data_prep
from configs import attributes_cnn, source_b
from market_jax import build, experiment, registry, runs, settings, tasks
from market_jax.data import attributes, columns, prepared
from market_jax.errors import InputError
from market_jax.recipes import supervised
from market_jax.report import predictions
from market_jax.tasks import attributes as attributes_task
from market_jax.training import checkpoints, profile, writers
from market_jax.training.state import draw_variables, init_state
from tests.conftest import ROOT, small

CONFIGS = sorted(
    p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "common")
)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_name_in_every_config_resolves(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    assert settings.from_json(settings.to_json(config)) == config
    config = settings.count(config, settings.COUNTED)
    model = build.model(config.model, config.dtype)
    build.objective(config, 10)
    build.augment(config)
    build.evaluators_of(config)
    build.hooks(config)
    build.plan(config, 10)
    tx = build.optimizer(config, model, 10)

    def make_state():
        variables = draw_variables(model, config.data.image_size, jax.random.key(0))
        return init_state(variables, tx, seed=config.seed)

    assert jax.tree.leaves(jax.eval_shape(make_state).params)
    for task in config.tasks:
        assert callable(registry.find_file(tasks, task, "task", "run"))


def test_a_run_leaves_what_people_look_at(workdir):
    assert json.loads((workdir / "config.json").read_text())["config"]["seed"] == 0
    assert (workdir / "curves.png").stat().st_size > 5000
    lines = writers.read_metrics(workdir)
    evaluations = [line for line in lines if "val/loss" in line]
    assert len(evaluations) == 3
    assert {"val/accuracy", "val/loss/gender", "val/loss/up_color"} <= evaluations[0].keys()
    assert any("train/images_per_second" in line for line in lines)


def test_attribute_task(workdir):
    run = runs.restore(workdir)
    text = attributes_task.run(run)
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
    run = runs.restore(workdir)
    path = workdir / "evaluation" / "attributes.json"
    attributes_task.run(run, split="test")
    split = json.loads(path.read_text())
    attributes_task.run(
        run,
        images=str(synthetic_raw / "bounding_box_test"),
        annotations=str(synthetic_raw / "market_attribute.mat"),
    )
    folder = json.loads(path.read_text())
    assert folder["attributes"] == split["attributes"]
    assert folder["identities"] == split["identities"] == 2
    with pytest.raises(InputError, match="--images and --annotations go together"):
        attributes_task.run(run, images="x")


def test_predictions_for_a_split_and_a_folder(workdir, synthetic_raw):
    run = runs.restore(workdir, "latest")
    path = workdir / "evaluation" / "classification_test.csv"
    texts = []
    for source in ("test", str(synthetic_raw / "bounding_box_test")):
        said = attributes_task.run(run, predict=source)
        assert str(path) in said
        texts.append(path.read_text())
    assert texts[0] == texts[1]
    count = len(list((synthetic_raw / "bounding_box_test").iterdir()))
    assert predictions.check_classification_csv(texts[0]) == count


def test_going_on_with_other_settings_is_refused(workdir, synthetic):
    changed = small(synthetic, **{"model.residual": False, "seed": 3})
    with pytest.raises(InputError, match=r"model.residual True -> False; seed 0 -> 3"):
        supervised.fit(changed, workdir)
    before = sorted(p.name for p in (workdir / "checkpoints").iterdir())
    supervised.fit(small(synthetic), workdir)  # finished: nothing to do
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == before


def test_a_run_restored_without_its_data_dir(workdir, synthetic):
    run = runs.restore(workdir, data=runs.Data(dir="/somewhere/else"))
    with pytest.raises(InputError, match=r"/somewhere/else: there is no such folder"):
        run.dataset()


def test_newest_run_is_found(workdir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="holds no run that can do 'attributes'"):
        runs.find_run("attributes")
    for age, name in enumerate(("new", "old", "unable")):
        run = tmp_path / "runs" / name
        state = init_state({"params": {}}, optax.identity(), seed=0)
        extra = {"config": {"tasks": ["attributes"] if name != "unable" else ["junk"]}}
        how = {"score": None, "round_start": 0, "extra": extra}
        checkpoints.save(run / "checkpoints", 10, state, **how)
        os.utime(run / "checkpoints" / "10", (1e9 - age, 1e9 - age))
    assert runs.find_run("attributes").name == "new"
    (tmp_path / "runs/new/checkpoints/10/extra/metadata").write_text("{")
    assert runs.find_run("attributes").name == "old", "a damaged run hides no other"
    (tmp_path / "runs/old/checkpoints/10/digests.json").unlink()
    (tmp_path / "runs/old/config.json").write_text("")
    with pytest.raises(InputError, match="holds no run that can do 'attributes'"):
        runs.find_run("attributes")


def test_restore_refuses(workdir, tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        runs.restore(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.name": "duke"}, r"unknown data set \(data.name\) 'duke'; did you mean 'dukemtmc'"),
        ({"data.dir": "/no/where"}, "data.dir is /no/where: there is no such folder"),
        ({"data.name": "unitn"}, "data.name is unitn, but .*/synthetic/1.0.0 is synthetic"),
        ({"data.name": "unitn", "data.dir": ""}, "data.dir is empty; it must name the folder"),
        ({"model.name": "resnet99"}, "unknown model 'resnet99'; did you mean 'resnet'"),
        ({"model.name": "layers"}, "unknown model 'layers'"),
        (
            {"losses.hat.name": "hinge"},
            r"unknown loss \(losses.hat\) 'hinge'; known: center, centroid_triplet",
        ),
        ({"losses.hat.logits": "hut"}, "losses.hat: there is no output or column 'hut'"),
        ({"losses.hat.label_smoothing": 2.0}, "label_smoothing is 2.0; it must be 0 or more"),
        ({"model.classes.age": 3}, "model.classes.age is 3; the data set has 4 classes: young"),
        (
            {"augmentation.flip.probability": 2.0},
            "augmentation.flip.*probability is 2.0; it must be 0 to 1",
        ),
        ({"model.widths": (4,)}, r"widths is \(4,\); it must be 4 values"),
        ({"select.mode": "least"}, "unknown select.mode 'least'; known: max, min"),
        ({"select.metric": "val/mAP"}, "select.metric is 'val/mAP'; evaluated are val/accuracy"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0; it must be 0 or more and below 1"),
        ({"optimizer.lr_multipliers": ((1, 2),)}, "lr_multipliers is .* it must be pairs"),
        ({"optimizer.schedule.name": "step"}, "unknown schedule 'step'"),
        ({"optimizer.plateau_factor": 0.0}, "plateau_factor is 0.0; it must be above 0"),
        (
            {"optimizer.warmup_epochs": float("inf")},
            "warmup_epochs is inf; it must be a finite number",
        ),
        ({"patience": -1}, "patience is -1; it must be 0 to 2,147,483,647"),
        ({"data.name": "synthetic,unitn"}, "must name as many data sets as folders"),
        ({"batch_size": 13}, "batch_size is 13; it must be a multiple of the 2"),
        ({"batch_size": 8000}, "batch_size is 8000, but the training split has"),
        ({"optimizer.name": "lion"}, "unknown optimizer 'lion'"),
        ({"data.image_size": (64, 32, 3)}, r"data.image_size is \(64, 32, 3\); it must be"),
        ({"grad_accum_steps": 0}, "grad_accum_steps is 0; it must be 1 to"),
        ({"grad_accum_steps": 3}, r"batch_size is 16; .* 2 device\(s\) times the 3 parts"),
        ({"dtype": "float16"}, "unknown dtype 'float16'; did you mean 'bfloat16'"),
        ({"convolution": "mkl"}, "convolution is 'mkl'; known: auto, onednn, jax, lax"),
        ({"epochs": 0}, "epochs is 0; it must be 1 to"),
        ({"data.val_fraction": 1.5}, "data.val_fraction is 1.5; it must be 0 or more and below"),
    ],
)
def test_bad_settings_end_in_a_message(synthetic, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        supervised.fit(small(synthetic, **changes), tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_loss_without_what_it_reads_is_refused(synthetic, tmp_path):
    config = small(synthetic)
    del config.losses.hat.logits
    with pytest.raises(InputError, match=r"\(losses.hat\): missing a required argument: 'logits'"):
        supervised.fit(config, tmp_path / "run")


def test_learned_weights_that_no_loss_takes_are_refused():
    config = source_b.get_config("uncertain")
    experiment.check(config)
    for loss in config.losses.values():
        del loss.uncertainty
    with pytest.raises(InputError, match=r"model\.uncertainty is True, but no loss takes a"):
        experiment.check(config)


def test_a_loss_that_is_not_finite_names_its_batch(synthetic, tmp_path):
    config = small(synthetic, **{"optimizer.learning_rate": 1e30, "optimizer.warmup_epochs": 0.0})
    with pytest.raises(InputError) as error:
        supervised.fit(config, tmp_path / "run")
    message = str(error.value)
    step = int(message.split("step ")[1].split()[0])
    train = build.dataset(config).open("train")
    rows = build.sampler(config, train).indices(step)
    assert ", ".join(train["name"][rows]) in message
    assert "the last good checkpoint: none" in message
    assert checkpoints.find(tmp_path / "run" / "checkpoints") is None


def test_a_raw_folder_is_prepared_once(synthetic_raw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = data_prep.find_or_prepare("synthetic", str(synthetic_raw))
    assert first.is_relative_to("data")
    assert data_prep.find_or_prepare("synthetic", str(synthetic_raw)) == first
    assert prepared.find(first) == first


def test_train_and_val_share_no_identity(synthetic, dataset):
    train, val = (dataset.open(split) for split in ("train", "val"))
    assert not set(train["pid"]) & set(val["pid"])
    everyone = columns.open_split(synthetic, "train", image_size=(32, 16))
    assert len(everyone["pid"]) == len(train["pid"]) + len(val["pid"])
    assert np.all(everyone["pid"] > 0)


def test_images_on_disk_train_alike(synthetic, workdir, tmp_path):
    config = small(synthetic, **{"data.in_memory": False})
    supervised.fit(config, tmp_path / "run")
    values = [
        [line["val/loss"] for line in writers.read_metrics(d) if "val/loss" in line]
        for d in (workdir, tmp_path / "run")
    ]
    assert values[0] == values[1]


@pytest.mark.parametrize(
    "changes",
    [{"dtype": "bfloat16"}, {"grad_accum_steps": 2}, {"remat": True, "convolution": "lax"}],
)
def test_other_ways_to_compute_train_too(synthetic, workdir, tmp_path, changes):
    supervised.fit(small(synthetic, epochs=1, **changes), tmp_path / "run")
    (value,) = (x["val/loss"] for x in writers.read_metrics(tmp_path / "run") if "val/loss" in x)
    expected = next(x["val/loss"] for x in writers.read_metrics(workdir) if "val/loss" in x)
    assert value == pytest.approx(expected, rel=0.1)


def test_a_profile_is_written(synthetic, tmp_path, monkeypatch):
    few = functools.partial(profile.matrix_product_peak, size=256)  # the tests' flags make it slow
    monkeypatch.setattr(profile, "matrix_product_peak", few)
    supervised.fit(small(synthetic, epochs=2, profile=True), tmp_path / "run")
    text = (tmp_path / "run" / "profile" / "summary.txt").read_text()
    assert "batch            16 images" in text
    assert "share of peak" in text


def test_a_run_of_an_older_version_is_refused(workdir, synthetic, tmp_path):
    saved = json.loads((workdir / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(saved["config"]))
    message = "was trained by an older version of market_jax, which wrote format 1; this one reads"
    with pytest.raises(InputError, match=message):
        supervised.fit(small(synthetic), tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match=message):
        runs.restore(tmp_path)


def test_going_on_refuses_what_changes_the_result_and_nothing_else(workdir, synthetic, tmp_path):
    config, usual = small(synthetic), attributes_cnn.get_config()
    other = {"data.dir": "/moved", "data.in_memory": False, "epochs": 9, "log_every": 7}
    config.update_from_flattened_dict(other)
    config.evaluators.reid = {"name": "reid"}
    saved = json.loads((workdir / "config.json").read_text())["config"]
    settings.check_same_run(workdir, saved, config, usual)
    del saved["ema_decay"], saved["optimizer"]["clip_norm"]
    settings.check_same_run(tmp_path, saved, config, usual)
    config.ema_decay = 0.9
    with pytest.raises(InputError, match=r"\(ema_decay None -> 0.9\)"):
        settings.check_same_run(tmp_path, saved, config, usual)
    config.ema_decay, config.optimizer.clip_norm = 0.0, 1.0
    with pytest.raises(InputError, match=r"\(optimizer.clip_norm None -> 1.0\)"):
        settings.check_same_run(tmp_path, saved, config, usual)


def test_configs_are_not_shared():
    first = attributes_cnn.get_config()
    second = copy.deepcopy(first)
    first.model.classes.age = 99
    assert attributes_cnn.get_config() == second
