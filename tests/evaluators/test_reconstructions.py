import numpy as np
import pytest
from PIL import Image

from configs import autoencoder, infovae, vae
from market_jax.recipes import supervised
from market_jax.training import writers

PICTURES = {"reconstructions.png", "samples.png", "interpolations.png", "latent.png"}


def small(module, directory):
    """The experiment at a size for tests."""
    config = module.get_config()
    config.data.dir = str(directory)
    config.data.image_size = (32, 16)
    config.batch_size, config.epochs, config.log_every = 16, 2, 2
    config.model.widths = (4, 8)
    if "latent" in config.model:
        config.model.latent = 6
    return config


@pytest.mark.parametrize("module", [vae, infovae])
def test_a_variational_autoencoder_leaves_what_people_look_at(synthetic, tmp_path, module):
    config = small(module, synthetic)
    supervised.fit(config, tmp_path)
    assert {p.name for p in tmp_path.glob("*.png")} == PICTURES | {"curves.png"}
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.size == (12 * 20, 2 * 36)
    first, *_, last = [x for x in writers.read_metrics(tmp_path) if "val/loss" in x]
    assert {"val/loss/reconstruction", "val/loss/kl", "val/active"} <= first.keys()
    assert last["val/loss/reconstruction"] < first["val/loss/reconstruction"]
    whole = sum(
        config.losses[name].weight * first[f"val/loss/{name}"]
        for name in config.losses
        if config.losses[name].weight
    )
    assert first["val/loss"] == pytest.approx(whole, rel=1e-4)
    if module is infovae:
        assert "val/accuracy" in first


@pytest.mark.parametrize("switches", [True, False])
def test_an_autoencoder_leaves_its_reconstructions(synthetic, tmp_path, switches):
    config = small(autoencoder, synthetic)
    config.model.switches = switches
    config.model.bottleneck = 0 if switches else 8
    config.report_every = 1 if switches else 0  # drawn in the end alone
    supervised.fit(config, tmp_path)
    assert {p.name for p in tmp_path.glob("*.png")} == {"reconstructions.png", "curves.png"}
    with Image.open(tmp_path / "reconstructions.png") as picture:
        rows = np.asarray(picture, float)
    half = len(rows) // 2
    assert np.abs(rows[:half] - rows[half:]).mean() < 60, "below are the same images, about"


def test_the_schedule_of_a_weight_reaches_the_training(synthetic, tmp_path):
    config = small(vae, synthetic)
    config.losses.kl.schedule.name = "linear"
    config.losses.kl.schedule.share = 1.0
    config.epochs, config.log_every = 1, 1
    supervised.fit(config, tmp_path)
    lines = [x for x in writers.read_metrics(tmp_path) if "train/loss" in x]
    for i, line in enumerate(lines):
        share = i / len(lines)
        expected = line["train/loss/reconstruction"] + share * line["train/loss/kl"]
        assert line["train/loss"] == pytest.approx(expected, rel=1e-4)
