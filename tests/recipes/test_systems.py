"""Every system that the reports compare themselves with trains, and is judged, at a small size."""

import importlib
import json

import jax
import numpy as np
import pytest

from configs import ablation, comparison, infovae, small, sun, transreid
from market_jax import build, calibration, registry, runs, tasks
from market_jax.errors import InputError
from market_jax.recipes import supervised
from market_jax.tasks import export
from market_jax.training import transfer, writers
from market_jax.training.state import init_variables

SYSTEMS = [
    ("apr", ""),
    ("ctl", ""),
    ("infovae", ""),
    ("jcm", "ctc=0.5"),
    ("pfeiffer", "separate,uncertain"),
    ("residual_attention", "width=2"),
    ("rgpr", "small"),
    ("st_reid", ""),
    ("sun", ""),
]


def shrunk(name, arguments, folder):
    """The experiment with a toy for a backbone, and one epoch."""
    make = importlib.import_module(f"configs.{name}").get_config
    config = make(arguments) if arguments else make()
    config.data.dir, config.data.image_size = str(folder), (64, 32)
    config.batch_size, config.epochs, config.evaluate_every, config.log_every = 16, 1, 1, 1
    config.num_instances = min(config.num_instances, 4)
    config.optimizer.update(warmup_epochs=0.0, freeze_epochs=0.0, lr_multipliers=())
    config.stages = {}
    if "backbone" in config.model:
        config.model.pretrained = ""
    if "backbone" in config.model and name != "residual_attention":
        config.model.backbone = {"name": "tests.toys:Backbone", "width": 8}
    if "stage" in config.model:
        config.model.stage = 1
    return config


@pytest.mark.parametrize(("name", "arguments"), SYSTEMS)
def test_a_system_trains_and_is_judged(name, arguments, synthetic, tmp_path):
    config = shrunk(name, arguments, synthetic)
    supervised.fit(config, tmp_path / "run")
    lines = writers.read_metrics(tmp_path / "run")
    (judged,) = (line for line in lines if "val/loss" in line)
    for term in config.losses:
        assert np.isfinite(judged[f"val/loss/{term}"]), term
    if "reid" in config.evaluators:
        assert 0 < judged["val/market/mAP"] <= 1
    run = runs.restore(tmp_path / "run", allow_imports=True)
    for task in config.tasks:
        assert registry.find_file(tasks, task, "task", "run")(run)
    if "reid" in config.tasks:
        record = json.loads((run.evaluation / "reid.json").read_text())
        assert record["ranking"]["market"]["mAP"] > 0


def test_transreid_knows_the_cameras_of_its_own_data_set_alone(synthetic, other, tmp_path):
    config = transreid.get_config("vit,size=tiny,depth=2")
    config.data.dir, config.data.image_size = str(synthetic), (64, 32)
    config.batch_size, config.epochs, config.evaluate_every = 16, 1, 1
    config.optimizer.update(warmup_epochs=0.0, learning_rate=0.001)
    supervised.fit(config, tmp_path / "run")
    (judged,) = (line for line in writers.read_metrics(tmp_path / "run") if "val/loss" in line)
    assert 0 < judged["val/market/mAP"] <= 1
    run = runs.restore(tmp_path / "run", "latest", cache=False)
    columns, trained_on = map(run.dataset().open, ("val", "train"))
    assert run.config.model.backbone.cameras == tuple(np.unique(trained_on["camid"]))
    own = run.predict(columns, ["embedding"])["embedding"]
    unknown = {name: column for name, column in columns.items() if name != "camera"}
    without = run.predict(unknown, ["embedding"])["embedding"]
    assert np.abs(own - without).max() > 1e-3
    data = runs.Data("unitn", str(other))
    there = runs.restore(tmp_path / "run", "latest", data, cache=False).predict
    found = there(columns, ["embedding"])["embedding"]
    np.testing.assert_allclose(found, without, atol=1e-5)
    with pytest.raises(InputError, match="is told the cameras where it is judged"):
        calibration.find(run)
    fresh = init_variables(build.model(run.config.model), (64, 32), seed=1)
    drawn = fresh["params"]["backbone"]
    first = {name: np.array(drawn[name]) for name in ("camera_embed", "pos_embed")}
    begun = transfer.begin(fresh, tmp_path / "run")["params"]["backbone"]
    same = [name for name, value in first.items() if np.array_equal(begun[name], value)]
    assert same == ["camera_embed"], "a number may be another camera's elsewhere"


def test_attributes_from_one_data_set_and_persons_from_another(synthetic, other, tmp_path):
    config = shrunk("pfeiffer", "joined", synthetic)
    config.data.name, config.data.dir = "synthetic,unitn", f"{synthetic},{other}"
    assert config.losses.attributes.dataset == 0
    assert config.losses.persons.dataset == 1
    supervised.fit(config, tmp_path / "run")
    lines = writers.read_metrics(tmp_path / "run")
    for task in ("persons", "attributes"):
        found = [line[f"train/loss/{task}"] for line in lines if f"train/loss/{task}" in line]
        assert max(found) > 0, task
        assert np.isfinite(found).all(), task
    for name, folder in (("unitn", other), ("synthetic", synthetic)):
        data = runs.Data(name, str(folder))
        run = runs.restore(tmp_path / "run", data=data, allow_imports=True)
        run.config.data.split_seed = 9  # who was held out stands in the run alone
        held_out = {each["name"]: each["pids"]["val"] for each in run.extra["divisions"]}
        assert np.unique(run.dataset().open("val")["pid"]).tolist() == sorted(held_out[name])
        with pytest.raises(InputError, match="--data_name does nothing with --task=export"):
            export.run(run, output=str(tmp_path / "network.safetensors"))


def test_every_mask_and_every_branch_of_sun_has_a_say():
    config = sun.get_config("mobilenet_v2,width=0.25")
    config.model.identities = 3
    model = build.model(config.model)
    image = jax.random.uniform(jax.random.key(0), (1, 64, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(1), image)
    apply = jax.jit(model.apply)
    usual = apply(variables, image)
    rng, params = np.random.default_rng(0), variables["params"]
    masks = [("backbone", name) for name in params["backbone"] if "attention" in name]
    branches = [(name,) for name in params if name.startswith("branch")]
    assert len(masks) == 2
    assert branches
    for place in (*masks, *branches):
        whole = tree = jax.tree.map(np.array, params)
        for name in place:
            tree = tree[name]
        for leaf in jax.tree.leaves(tree):
            leaf += rng.normal(size=leaf.shape)
        found = apply(variables | {"params": whole}, image)
        assert np.abs(found["embedding"] - usual["embedding"]).max() > 1e-4, place


def test_source_a_keeps_its_pictures_and_its_optimizer_in_the_comparison():
    config, own = comparison.get_config("infovae"), infovae.get_config()
    assert (config.epochs, config.patience) == (20, 0)
    assert config.data.image_size == own.data.image_size
    assert config.optimizer == own.optimizer
    assert not config.stages


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *(s for s in SYSTEMS if s[0] != "infovae"),
        ("small", ""),
        ("source_b", "identity"),
        ("sbs", ""),
    ],
)
def test_the_comparison_trains_all_alike_and_leaves_the_method(name, arguments):
    own = importlib.import_module(f"configs.{name}")
    own = own.get_config(arguments) if arguments else own.get_config()
    config, usual = comparison.get_config(f"{name},{arguments}".rstrip(",")), small.get_config()
    assert config.epochs == 20
    share = config.optimizer.warmup_epochs / 20
    assert share == pytest.approx(usual.optimizer.warmup_epochs / usual.epochs)
    config.optimizer.warmup_epochs = usual.optimizer.warmup_epochs
    for part in ("optimizer", "batch_size"):
        assert config[part] == usual[part]
    assert config.data.image_size == (256, 128)
    sizes = [stage["image_size"] for stage in config.stages.values()]
    assert sizes == [(128, 64), (192, 96)][name == "jcm" :]
    for part in ("model", "losses", "augmentation", "hooks", "tasks", "num_instances"):
        assert config[part] == own[part]
    if "identities" in config.model:
        config.model.identities = 3
    model, key = build.model(config.model), jax.random.key(0)
    whole, first = (jax.ShapeDtypeStruct((1, *s, 3), np.float32) for s in [(256, 128), sizes[0]])
    jax.eval_shape(model.apply, jax.eval_shape(model.init, key, whole), first)


@pytest.mark.parametrize("name", ["aprr", ""])
def test_the_comparison_names_what_is_no_experiment(name):
    with pytest.raises(ValueError, match=f"'{name}' is no experiment in configs/"):
        comparison.get_config(name)


def test_the_comparison_takes_no_comparison():
    with pytest.raises(ValueError, match="'ablation' is a comparison itself"):
        comparison.get_config("ablation,gem")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("rgpr", "resnet,bott"), ("pfeiffer", "resnet,joind"), ("jcm", "resnet,b")],
)
def test_a_word_that_is_not_known_is_named(name, arguments):
    word = arguments.split(",")[1]
    with pytest.raises(ValueError, match=f"'{word}' is more than a backbone and its arguments"):
        importlib.import_module(f"configs.{name}").get_config(arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("jcm", "ctc=1", "ctc is 1; it must be 0 or more and below 1"),
        ("jcm", "ctc=x", "ctc is 'x'; it must be 0 or more"),
        ("rgpr", "bot,small", "must name one of bot and small"),
        ("rgpr", "none,patches", "and none alone"),
        ("ablation", "gem,depth=50", "must be changes and a rate alone"),
        ("ablation", "identity,gem", "or identity alone"),
        ("ablation", "identity,rate=1e-3", "or identity alone"),
        ("ablation", "gemm", "unknown change 'gemm'"),
        ("residual_attention", "resnet", "'resnet' is more than a variant and a backbone"),
    ],
)
def test_arguments_that_do_not_fit_are_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        importlib.import_module(f"configs.{name}").get_config(arguments)


def test_the_ablation_takes_another_rate():
    assert ablation.get_config("gem,rate=7e-4").optimizer.learning_rate == 7e-4
    assert ablation.get_config("rate=7e-4").losses == ablation.get_config().losses


@pytest.mark.parametrize("change", ablation.CHANGES)
def test_every_change_of_the_ablation_makes_an_experiment(change):
    config = ablation.get_config(change)
    config.model.identities = 3
    build.model(config.model)
    build.objective(config)
    build.augment(config)
    build.evaluators_of(config)
    assert (config == ablation.get_config()) is False or change == "small"


@pytest.mark.parametrize("backbone", ["densenet", "alexnet", "tests.toys:Striped"])
def test_a_backbone_without_a_last_stride_is_taken_too(backbone):
    config = importlib.import_module("configs.bot").get_config(backbone)
    config.model.identities = 3
    assert build.model(config.model).backbone
