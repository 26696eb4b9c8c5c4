import json

import jax
import numpy as np
import optax
import pytest

from configs import source_b
from market_jax import build, runs
from market_jax.errors import InputError
from market_jax.recipes import supervised
from market_jax.tasks import attributes as attributes_task
from market_jax.training import checkpoints, transfer, writers
from market_jax.training.state import init_state, init_variables
from tests.conftest import small


def small_identities(synthetic, **changes):
    """The recipe for re-identification at a size for tests."""
    config = source_b.get_config("identity,alexnet,dense=False")
    config.data.dir, config.data.image_size = str(synthetic), (96, 64)
    config.model.head.width = 8
    config.batch_size, config.epochs, config.convolution = 16, 2, "lax"
    config.update_from_flattened_dict(changes)
    return config


def test_identities_as_labels_are_counted_once_and_a_run_goes_on(synthetic, tmp_path):
    config = small_identities(synthetic, epochs=1)
    supervised.fit(config, tmp_path / "run")
    supervised.fit(config, tmp_path / "run")  # the same command: nothing differs, nothing is left
    assert config.model.identities == -1, "the user's config is left as it was"
    run = runs.restore(tmp_path / "run", "latest")
    train, val = (run.dataset().open(split) for split in ("train", "val"))
    assert run.config.model.identities == len(np.unique(train["pid"]))
    assert set(val["identity"]) == {-1}
    outputs = run.predict(val, ("embedding", "feature", "identity"))
    assert outputs["identity"].shape == (len(val["pid"]), run.config.model.identities)
    assert not np.allclose(outputs["embedding"], outputs["feature"])
    values = {k for line in writers.read_metrics(tmp_path / "run") for k in line}
    assert {"train/loss/identity", "train/loss/triplet", "val/loss/triplet"} <= values
    assert {"val/market/mAP", "val/market/rank1"} <= values
    config.grad_accum_steps = 2
    with pytest.raises(InputError, match="num_instances needs whole batches"):
        supervised.fit(config, tmp_path / "other")


def test_map_selects_the_checkpoint(synthetic, tmp_path):
    """The best checkpoint is the one whose held-out mAP is highest, not the one of least loss."""
    select = {"select.metric": "val/market/mAP", "select.mode": "max"}
    config = small_identities(synthetic, epochs=4, patience=0, **select)
    supervised.fit(config, tmp_path / "run")
    lines = [x for x in writers.read_metrics(tmp_path / "run") if "val/loss" in x]
    best = max(lines, key=lambda line: line["val/market/mAP"])
    assert len(lines) == 4
    run = runs.restore(tmp_path / "run")
    assert run.step == best["step"]
    judged = build.evaluators_of(config)["reid"](run.predict, run.dataset())
    assert judged.metrics["market/mAP"] == pytest.approx(best["val/market/mAP"], abs=1e-5)
    progress = run.extra["progress"]
    assert progress["best"] == pytest.approx(best["val/market/mAP"])


def test_the_average_of_the_parameters_is_what_is_evaluated(synthetic, tmp_path):
    config = small(synthetic, epochs=1, ema_decay=0.5)
    supervised.fit(config, tmp_path / "run")
    (line,) = (x for x in writers.read_metrics(tmp_path / "run") if "val/loss" in x)
    run = runs.restore(tmp_path / "run")
    attributes_task.run(run)
    result = json.loads((tmp_path / "run/evaluation/attributes.json").read_text())
    assert result["mean"]["accuracy_12"] == pytest.approx(line["val/accuracy"], abs=1e-6)
    assert (tmp_path / "run/checkpoints" / str(run.step) / "ema").is_dir()


def test_a_frozen_backbone_does_not_move(synthetic, tmp_path):
    """Not even by weight decay: `model.frozen` alone is enough."""
    config = source_b.get_config("heads,alexnet,dense=False")
    config.data.dir, config.data.image_size = str(synthetic), (96, 64)
    config.model.frozen, config.model.head.width = True, 8
    config.batch_size, config.epochs, config.convolution = 16, 1, "lax"
    supervised.fit(config, tmp_path / "run")
    run = runs.restore(tmp_path / "run")
    begin = init_variables(run.predict.model, (96, 64), seed=config.seed)["params"]
    end = run.predict.variables["params"]
    same = jax.tree.map(np.array_equal, begin["backbone"], end["backbone"])
    assert jax.tree.all(same)
    assert not np.array_equal(
        begin["head_age"]["Dense_0"]["kernel"], end["head_age"]["Dense_0"]["kernel"]
    )


def test_two_data_sets_with_different_labels_train_together(synthetic, other, tmp_path):
    config = small(synthetic, **{"data.name": "synthetic,unitn", "epochs": 1})
    config.data.dir = f"{synthetic},{other}"
    supervised.fit(config, tmp_path / "run")
    (line,) = (x for x in writers.read_metrics(tmp_path / "run") if "val/loss" in x)
    assert np.isfinite(line["val/loss/hat"])
    run = runs.restore(tmp_path / "run")
    assert "mean of 12" in attributes_task.run(run)


def test_a_training_begins_with_another_run(synthetic, tmp_path):
    """With its backbone and what else has the same name and shape; another backbone is refused."""
    config = small_identities(synthetic, **{"model.identities": 5})
    first = init_variables(build.model(config.model), (96, 64), seed=0)
    how = {"score": 1.0, "round_start": 0, "extra": {}}
    state = init_state(first, optax.identity(), seed=0)
    checkpoints.save(tmp_path / "first/checkpoints", 7, state, **how)
    config.model.pretrained, config.model.identities = str(tmp_path / "first"), 3
    fresh = init_variables(build.model(config.model), (96, 64), seed=1)
    found = build.pretrained_variables(config, fresh)
    same = jax.tree.map(np.array_equal, found["params"]["backbone"], first["params"]["backbone"])
    assert jax.tree.all(same)
    assert found["params"]["head_identity"] == fresh["params"]["head_identity"], "of other persons"
    narrow = jax.tree.map(lambda x: x[..., :1], fresh)
    with pytest.raises(InputError, match=r"another backbone: params/backbone/.* is .* there and"):
        transfer.begin(narrow, tmp_path / "first")
    with pytest.raises(InputError, match="nothing: holds no checkpoint to begin with"):
        transfer.begin(fresh, tmp_path / "nothing")
