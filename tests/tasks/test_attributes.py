"""The page of --task=attributes, and re-identification from a classifier's outputs."""

import json

import numpy as np
import pytest

from configs import source_b
from market_jax import experiment, galleries, runs
from market_jax.errors import InputError
from market_jax.report import attention
from market_jax.tasks import attributes, reid


@pytest.fixture(scope="module")
def trained(synthetic, tmp_path_factory):
    """A short run of a small network with attention, not pretrained."""
    config = source_b.get_config("sigmoid")
    config.data.dir = str(synthetic)
    config.data.image_size = (96, 64)
    config.model.update({"backbone": "alexnet dense=false", "pretrained": ""})
    config.model.head = "normalized width=8"
    config.convolution = "lax"  # compiles sooner
    config.batch_size, config.epochs = 16, 1
    workdir = tmp_path_factory.mktemp("attributes") / "run"
    experiment.fit(config, workdir)
    return runs.restore("attributes", str(workdir), "latest", None)


def test_the_page_shows_masks_over_crops_and_wrong_answers(trained):
    text = attributes.run(trained, report=True)
    path = trained.workdir / "evaluation" / attributes.PAGE
    assert f"report in {path}" in text
    page = path.read_text()
    rows = experiment.open_split(trained.config, "val")
    shown = min(int((rows["age"] >= 0).sum()), 24)
    assert page.count('class="person"') == shown
    assert page.count("data:image/jpeg;base64,") == 3 * shown, "crop, upper and lower mask"
    predicted, masks = attributes.classify(trained, rows)
    assert sorted(masks) == ["down_color", "up_color"]
    assert masks["up_color"].shape == (len(rows["pid"]), 2, 1)
    wrong = sum(int(np.sum(predicted[name] != rows[name])) for name in masks)
    if shown == len(rows["pid"]):
        assert page.count("(wrong answer)") == wrong
    assert "http" not in page.replace("http://www.w3.org", ""), "the page needs nothing else"


def test_flip_averages_with_the_mirror_image(trained):
    rows = experiment.open_split(trained.config, "val")
    mirrored = rows | {"image": rows["image"][np.arange(len(rows["pid"]))][:, :, ::-1]}
    keep = runs.only("gender")
    sides = [runs.extract(trained, side, keep)["gender"] for side in (rows, mirrored)]
    assert np.abs(sides[0] - sides[1]).max() > 0
    predicted, _ = attributes.classify(trained, rows, flip=True)
    np.testing.assert_array_equal(predicted["gender"], np.argmax(sum(sides), axis=1))
    again, _ = attributes.classify(trained, mirrored, flip=True)
    np.testing.assert_array_equal(predicted["gender"], again["gender"])


def test_neighbours_correct_each_other_by_hand():
    features = np.array([[1.0, 0], [1, 0.1], [1, -0.1], [0, 1]])
    logits = {"hat": np.array([[0.0, 1], [0, 1], [4, 0], [5, 0]])}
    found = attributes.average_over_neighbours(logits, features, 2)
    np.testing.assert_allclose(found["hat"][:3], [[4 / 3, 2 / 3]] * 3)
    alone = attributes.average_over_neighbours(logits, features, 0)
    np.testing.assert_array_equal(alone["hat"], logits["hat"])
    with pytest.raises(InputError, match="neighbours is 4; it must be 0 to 3"):
        attributes.average_over_neighbours(logits, features, 4)


def test_neighbours_are_of_the_embedding(trained):
    rows = experiment.open_split(trained.config, "val")
    every = len(rows["pid"]) - 1
    predicted, _ = attributes.classify(trained, rows, neighbours=every)
    assert all(len(set(found.tolist())) == 1 for found in predicted.values())
    assert "neighbours" in json.loads(
        (trained.workdir / "evaluation" / attributes.FILE).read_text()
    ), "the result says how it was averaged"


def test_an_overlay_is_brightest_where_the_mask_is():
    picture = np.full((8, 4, 3), 100, np.uint8)
    mask = np.zeros((4, 2))
    mask[3] = 2.5
    found = attention.overlay(picture, mask)
    assert found.shape == picture.shape
    assert found[7].mean() > found[0].mean() + 60
    flat = attention.overlay(picture, np.full((4, 2), 7.0))
    assert np.ptp(flat, axis=(0, 1)).max() == 0


def test_features_predictions_and_both(trained):
    rows = experiment.open_split(trained.config, "val")
    outputs = runs.extract(trained, rows, runs.only("embedding", "predictions"))
    a, b = outputs["embedding"], outputs["predictions"]
    assert b.shape == (len(rows["pid"]), 32)
    both = galleries.read_split(trained, "model+predictions", "val")["feature"]
    np.testing.assert_allclose(both, np.concatenate([a, b], axis=1), rtol=1e-5)
    only = galleries.read_split(trained, "predictions", "val")["feature"]
    np.testing.assert_allclose(only, b, rtol=1e-5)


def test_learned_weighting_is_learned_from_training_identities_alone(trained, monkeypatch):
    asked = []
    read = galleries.read_split

    def spy(found, source, split):
        asked.append((source, split))
        rows = read(found, source, split)
        if split != "train":
            return rows
        # the fixture has few persons: each half of one's images is taken for a person
        half = np.arange(len(rows["pid"])) % 2
        return rows | {"pid": 2 * rows["pid"] + half}

    monkeypatch.setattr(galleries, "read_split", spy)
    reid.run(trained, features="predictions", stage=["mahalanobis steps=20"])
    assert ("predictions", "train") in asked
    assert {source for source, _ in asked} == {"predictions"}
    result = json.loads((trained.workdir / "evaluation" / reid.FILE).read_text())
    assert list(result)[:2] == ["ranking", "ranking+mahalanobis"]
