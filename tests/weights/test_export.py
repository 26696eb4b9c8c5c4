"""--task=export: what is written, what is left out, what is refused; and the model card."""

import json

import jax
import numpy as np
import pytest
import yaml

from configs import source_b
from market_jax import build, history, runs, settings
from market_jax.data.datasets import Division
from market_jax.errors import InputError
from market_jax.inference import Predictor
from market_jax.report import model_card
from market_jax.tasks import attributes, export, reid
from tests.weights import networks
from tests.weights.networks import IDENTITIES, read


def test_no_training_identity_and_no_folder_is_left_in_it(trained, file):
    tensors, about = read(file)
    assert tensors["params/head_identity/kernel"].shape == (256, 1)
    kept = trained.predict.variables["params"]["head_identity"]["kernel"]
    assert kept.shape == (256, IDENTITIES)
    assert np.asarray(kept).all(), "it had something to lose"
    assert not tensors["params/head_identity/kernel"].any()
    assert about["config"]["model"]["identities"] == 1
    assert about["config"]["data"]["dir"] == ""
    assert about["config"]["model"]["pretrained"] == "alexnet.pth"
    assert b"somebody" not in file.read_bytes()
    assert about["trained_on"][0]["identities"] == 3
    kinds = {value.ndim > 1: value.dtype.name for value in tensors.values()}
    assert kinds == {True: "float16", False: "float32"}


def test_every_part_loses_its_persons(tmp_path):
    config = source_b.get_config("identity,resnet,depth=18")
    config.data.image_size = (64, 32)
    config.model.update({"name": "parts", "identities": IDENTITIES})
    _, template = runs.make_template(config)
    predict = Predictor(None, jax.tree.map(lambda x: np.ones(x.shape, x.dtype), template))
    run = runs.Run(tmp_path, 1, config, predict, {"config": settings.to_json(config)}, [])
    cut = export._without_persons(run, export._config(run.extra["config"]))["params"]
    heads = [name for name in cut if name.startswith("head_identity_")]
    assert len(heads) > 3
    assert {cut[name]["kernel"].shape[1] for name in heads} == {1}
    assert not any(cut[name]["kernel"].any() for name in heads)
    others = [leaf for name in cut if name not in heads for leaf in jax.tree.leaves(cut[name])]
    assert all(np.asarray(leaf).all() for leaf in others)


def test_the_card_says_what_the_network_must_not_do(trained, file):
    text = file.with_suffix(".md").read_text()
    for part in (
        "\n---\n\n# tiny\n",
        'market_jax.load("tiny")',
        "synthetic (drawn people): 3 identities; held out: 2 (val)",
        "None: this checkpoint was not evaluated",
        "surveillance",
        "who have not consented",
        "no decoder of pictures",
        "96x64",
        'model.backbone.name = "alexnet"',
        "commit ",
    ):
        assert part in text
    assert "somebody" not in text


def test_figures_are_those_of_this_checkpoint(trained, tmp_path):
    run = trained._replace(workdir=tmp_path)
    run.evaluation.mkdir()
    about = {"judged": "split val", "data": "unitn", "images": 9, "identities": 3, "checkpoint": 7}
    row = {"mAP": 0.5, "mAP_interval": [0.4, 0.6], "rank1": 0.75, "rank1_interval": None}
    row |= {"mINP": 0.25}
    rows = {"market": row, "course_with_self": row}
    ranked = {"ranking": rows, "features": "model", "flip": True} | about
    mean = {"accuracy_10": 0.8, "majority_10": 0.7, "accuracy_10_binary": 0.9}
    mean |= {"balanced_accuracy_10": 0.6}
    (run.evaluation / reid.FILE).write_text(json.dumps(ranked))
    (run.evaluation / attributes.FILE).write_text(json.dumps({"mean": mean} | about))
    lines = "\n".join(model_card.figures(export.evaluations_of(run)))
    where = "unitn, split val: 9 images of 3 people"
    assert "with_self" not in lines
    assert (
        f"| mAP, ranking, protocol market | {where}, with mirror images | 50.00 (40.0 - 60.0) |"
        in lines
    )
    assert (
        f"| accuracy, mean of 10 attributes | {where} | 80.00; a constant answer 70.00 |" in lines
    )
    assert f"| balanced accuracy, mean of 10 attributes | {where} | 60.00 |" in lines
    assert f"| mINP, ranking, protocol market | {where}, with mirror images | 25.00 |" in lines
    known = {"name": "tiny", "trained_on": [{"name": "unitn"}], "clustered": []}
    matter = "\n".join(model_card.front_matter(known, export.evaluations_of(run)))
    fields = yaml.safe_load(matter)
    assert fields["license_name"] == "research-only"
    worn, persons = fields["model-index"][0]["results"]
    assert worn["dataset"] == {"name": where, "type": "unitn"}
    assert {"type": "mAP", "name": "mAP, ranking, protocol market", "value": 50.0} in persons[
        "metrics"
    ]
    drawn = "\n".join(model_card.front_matter(known | {"trained_on": [{"name": "synthetic"}]}, []))
    assert not {"license", "model-index"} & yaml.safe_load(drawn).keys()
    folder = {"judged": "/home/somebody/crops", "images": 9, "identities": 3}
    assert model_card.judged(folder) == "folder crops: 9 images of 3 people"
    other = "\n".join(model_card.figures(export.evaluations_of(run._replace(step=8))))
    assert "was not evaluated" in other


def test_figures_may_be_those_of_another_run_by_the_same_recipe(trained, tmp_path, monkeypatch):
    other = networks.as_run(
        networks.tiny(**{"data.val_fraction": 0.4, "model.identities": 3}), tmp_path / "b", [1, 2]
    )
    monkeypatch.setattr(export.runs, "restore", lambda *_, **__: other)
    other.evaluation.mkdir(parents=True)
    row = {"mAP": 0.5, "mAP_interval": [0.4, 0.6], "rank1": 0.75, "mINP": 0.25}
    rates = {"precision": 0.9, "recall": 0.5, "false_positive_rate": 0.01}
    found = {"threshold": rates | {"distance": 0.25}, "on_other_identities": rates}
    about = {"judged": "split val", "data": "unitn", "images": 9, "identities": 3, "checkpoint": 7}
    about |= {"features": "model", "flip": False, "metric": "cosine", "verification": found}
    (other.evaluation / reid.FILE).write_text(json.dumps({"ranking": {"market": row}} | about))
    path = tmp_path / "a.safetensors"
    export.run(trained, output=str(path), figures=str(tmp_path / "b"))
    text = path.with_suffix(".md").read_text()
    assert (
        "| mAP, ranking, protocol market | unitn, split val: 9 images of 3 people | 50.00" in text
    )
    assert "another network by the same recipe, which was trained on 2 identities" in " ".join(
        text.split()
    )
    same_person = read(path)[1]["same_person"]
    assert (same_person["threshold"], same_person["precision"]) == (0.25, 0.9)
    other.config.optimizer.learning_rate = 0.5
    other.extra["config"]["optimizer"]["learning_rate"] = 0.5
    path.unlink(), path.with_suffix(".md").unlink()
    with pytest.raises(InputError, match=r"--figures=.*: its optimizer\.learning_rate is 0\.5"):
        export.run(trained, output=str(path), figures=str(tmp_path / "b"))


@pytest.fixture
def twins(tmp_path, monkeypatch):
    """A run that was trained on everybody and its twin; each has begun with a run of its own."""

    def make(name, **changes):
        config = networks.tiny(**{"hooks.memory": {"name": "memory", "slots": len(name)}})
        first = networks.tiny(**changes)
        first.model.pretrained = "auto"
        whom = [Division("shop", {"train": [5, 6]}, {})]
        config.model.pretrained = "a run that is gone"
        run = networks.as_run(config, tmp_path / name, [1, 2])
        beginning = history.Beginning(settings.to_json(first), whom)
        run.extra["beginnings"] = history.as_json([beginning])
        return run

    run, other = make("all"), make("figures", **{"data.val_fraction": 0.4, "seed": 3})
    monkeypatch.setattr(export.runs, "restore", lambda *_, **__: other)
    return run, other, make


def test_a_twin_may_begin_with_a_twin_and_have_another_memory(twins):
    run, other, make = twins
    assert export._of_same_recipe(run, "x") is other
    slower = make("slower", **{"optimizer.learning_rate": 0.5})
    message = r"--figures=x: of what it began with, the optimizer\.learning_rate is .*'s 0\.5"
    with pytest.raises(InputError, match=message):
        export._of_same_recipe(slower, "x")
    del slower.extra["config"]["model"]["pretrained"], slower.extra["beginnings"]
    with pytest.raises(InputError, match=r"its model\.pretrained is 'a run', the run's None"):
        export._of_same_recipe(slower, "x")


def test_whom_the_network_has_seen_before_it_was_this_run_is_named(twins):
    run, *_ = twins
    entries = history.trained_on(run.extra)
    assert [(entry["name"], entry["pids"]["train"]) for entry in entries] == [
        ("synthetic", [1, 2]),
        ("shop", [5, 6]),
    ]
    run.extra["divisions"][0] |= {"name": "shop", "pids": {"train": [5, 6, 7]}}
    assert [entry["identities"] for entry in history.trained_on(run.extra)] == [3]


def test_float16_gives_way_where_it_changes_features(trained, tmp_path, monkeypatch):
    cosines = iter([0.9, 1.0, 0.9])
    monkeypatch.setattr(export, "lowest_cosine", lambda *_: next(cosines))
    text = export.run(trained, output=str(tmp_path / "a.safetensors"))
    assert "kernels in float32" in text
    with pytest.raises(InputError, match=r"in float16 .* cosine is 0.90000; it must be 0.999"):
        export.run(trained, output=str(tmp_path / "b.safetensors"), dtype="float16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.md", "a.safetensors"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, r"--output is None; it must name the file: NAME.safetensors"),
        ({"output": "x.onnx"}, "--output is 'x.onnx'"),
        ({"output": "x.safetensors", "to": "pth"}, "unknown value of --to 'pth'"),
        ({"output": "x.safetensors", "dtype": "int8"}, "unknown value of --dtype 'int8'"),
        ({"output": "README.safetensors"}, "README.md: is there already"),
    ],
)
def test_flags_of_the_export(trained, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(InputError, match=message):
        export.run(trained, **flags)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_what_is_never_exported(trained, file, tmp_path):
    output = str(tmp_path / "x.safetensors")
    elsewhere, moved = (trained.config.copy_and_resolve_references() for _ in range(2))
    elsewhere.data.name, moved.data.dir = "unitn", "/mnt"  # as --data_name and --data_dir leave it
    with pytest.raises(InputError, match="--data_dir does nothing with --task=export, which judg"):
        export.run(trained._replace(config=moved), output=str(tmp_path / "x.onnx"), to="onnx")
    with pytest.raises(InputError, match="--task=export needs a trained run"):
        export.run(runs.without_model(moved, None), output=output, naming="torchvision")
    for run, message in (
        (runs.published(file, cache=False), "needs a trained run"),
        (trained._replace(divisions=None, config=elsewhere), "--data_name does nothing"),
        (trained._replace(predict=None), "needs a trained run"),
    ):
        with pytest.raises(InputError, match=message):
            export.run(run, output=output)
    config = trained.extra["config"] | {"recipe": "mine:fit"}
    with pytest.raises(InputError, match=r"config\.recipe is 'mine:fit', code outside market_jax"):
        export.run(trained._replace(extra=trained.extra | {"config": config}), output=output)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["autoencoder", "vae"])
def test_no_decoder_is_exported(tmp_path, name):
    from configs import autoencoder, vae

    config = {"autoencoder": autoencoder, "vae": vae}[name].get_config()
    config.data.image_size = (32, 16)
    model, template = runs.make_template(config)
    predict = Predictor(build.apply(config, model), template, model=model)
    extra = {"config": settings.to_json(config), "divisions": []}
    run = runs.Run(tmp_path, 1, config, predict, extra, [])
    with pytest.raises(InputError, match="no decoder of people's pictures is ever shipped"):
        export.run(run, output=str(tmp_path / "x.safetensors"))
