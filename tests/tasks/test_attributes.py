"""The page of --task=attributes, and re-identification from a classifier's outputs."""

import json

import jax
import numpy as np
import pytest

from configs import source_b
from market_jax import build, inference, runs
from market_jax.data.attributes import ATTRIBUTES
from market_jax.errors import InputError
from market_jax.evaluators import attributes as evaluator
from market_jax.recipes import supervised
from market_jax.report import attention
from market_jax.tasks import attributes, reid
from market_jax.training.state import init_variables


@pytest.fixture(scope="module")
def trained(synthetic, tmp_path_factory):
    """A short run of a small network with attention, not pretrained."""
    config = source_b.get_config("sigmoid,alexnet,dense=False")
    config.data.dir = str(synthetic)
    config.data.image_size = (96, 64)
    config.model.head.width = 8
    config.convolution = "lax"  # compiles sooner
    config.batch_size, config.epochs = 16, 1
    workdir = tmp_path_factory.mktemp("attributes") / "run"
    supervised.fit(config, workdir)
    return runs.restore(workdir, "latest")


def test_the_page_shows_masks_over_crops_and_wrong_answers(trained):
    text = attributes.run(trained, report=True)
    path = trained.workdir / "evaluation" / attributes.PAGE
    assert f"report in {path}" in text
    page = path.read_text()
    rows = trained.dataset().open("val")
    shown = min(int((rows["age"] >= 0).sum()), 24)
    assert page.count('class="person"') == shown
    assert page.count("data:image/jpeg;base64,") == 3 * shown, "crop, upper and lower mask"
    predicted, masks = evaluator.classify(trained.predict, rows, ATTRIBUTES, masks=True)
    assert sorted(masks) == ["down_color", "up_color"]
    assert masks["up_color"].shape == (len(rows["pid"]), 2, 1)
    wrong = sum(int(np.sum(predicted[name] != rows[name])) for name in masks)
    if shown == len(rows["pid"]):
        assert page.count("(wrong answer)") == wrong
    assert "http" not in page.replace("http://www.w3.org", ""), "the page needs nothing else"


def test_flip_averages_with_the_mirror_image(trained):
    rows = trained.dataset().open("val")
    mirrored = rows | {"image": rows["image"][np.arange(len(rows["pid"]))][:, :, ::-1]}
    sides = [trained.predict(side, ["gender"])["gender"] for side in (rows, mirrored)]
    assert np.abs(sides[0] - sides[1]).max() > 0
    predicted, _ = evaluator.classify(trained.predict, rows, ["gender"], flip=True)
    np.testing.assert_array_equal(predicted["gender"], np.argmax(sum(sides), axis=1))
    again, _ = evaluator.classify(trained.predict, mirrored, ["gender"], flip=True)
    np.testing.assert_array_equal(predicted["gender"], again["gender"])


def test_a_picture_with_flip_and_neighbours_goes_through_the_network_twice(trained):
    """Once as it is and once mirrored: the logits and the embedding come from the same passes."""
    rows, passes = trained.dataset().open("val"), []

    def apply(variables, images):
        passes.append(images.shape)
        return trained.predict.apply(variables, images)

    size = len(rows["image"])
    network = inference.Predictor(apply, trained.predict.variables, batch_size=size)
    evaluator.classify(network, rows, ATTRIBUTES, flip=True, neighbours=2)
    assert len(passes) == 2


def test_neighbours_correct_each_other_by_hand():
    features = np.array([[1.0, 0], [1, 0.1], [1, -0.1], [0, 1]])
    logits = {"hat": np.array([[0.0, 1], [0, 1], [4, 0], [5, 0]])}
    found = evaluator.average_over_neighbours(logits, features, 2)
    np.testing.assert_allclose(found["hat"][:3], [[4 / 3, 2 / 3]] * 3)
    alone = evaluator.average_over_neighbours(logits, features, 0)
    np.testing.assert_array_equal(alone["hat"], logits["hat"])
    with pytest.raises(InputError, match="neighbours is 4; it must be 0 to 3"):
        evaluator.average_over_neighbours(logits, features, 4)


def test_neighbours_are_of_the_embedding(trained):
    rows = trained.dataset().open("val")
    every = len(rows["pid"]) - 1
    predicted, _ = evaluator.classify(trained.predict, rows, ATTRIBUTES, neighbours=every)
    assert all(len(set(found.tolist())) == 1 for found in predicted.values())
    attributes.run(trained, neighbours=1)
    assert "neighbours" in json.loads(
        (trained.workdir / "evaluation" / attributes.FILE).read_text()
    ), "the result says how it was averaged"


def test_annotations_with_other_classes_are_refused(trained, monkeypatch):
    """The numbers of the one would be compared with those of the other."""
    rows, files = trained.dataset().open("val"), {"images": "crops", "annotations": "a.csv"}
    monkeypatch.setattr(attributes, "_open", lambda *_: rows)
    labels = trained.extra["labels"]
    turned = {"gender": labels["gender"][::-1]}
    run = trained._replace(extra=trained.extra | {"labels": labels | turned})
    with pytest.raises(InputError, match=r"label 'gender' has the classes female, male in the run"):
        attributes.run(run, **files)
    found = evaluator.outputs_to_judge
    monkeypatch.setattr(
        evaluator, "outputs_to_judge", lambda *a: [n for n in found(*a) if n != "gender"]
    )
    assert "gender" not in attributes.run(run, **files), "what is not judged may differ"


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
    rows = trained.dataset().open("val")
    outputs = trained.predict(rows, ("embedding", "predictions"))
    a, b = outputs["embedding"], outputs["predictions"]
    assert b.shape == (len(rows["pid"]), 32)
    for source, expected in (
        ("model+predictions", np.concatenate([a, b], axis=1)),
        ("predictions", b),
        ("model", a),
    ):
        found = reid.Features(trained, source, False).of_split("val")["feature"]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_features_before_the_bnneck(trained):
    backbone = {"name": "tests.toys:Backbone", "width": 4}
    fields = {"name": "classifier", "classes": {}, "backbone": backbone, "identities": 3}
    model = build.model(fields)
    variables = jax.device_get(init_variables(model, (32, 16), seed=0))
    running = {"mean": np.full(4, 0.2, np.float32), "var": np.full(4, 4.0, np.float32)}
    variables["batch_stats"]["bnneck"] = running
    run = trained._replace(predict=inference.Predictor(model.apply, variables, model=model))
    before, after = (
        reid.Features(run, source, False).of_split("val")["feature"]
        for source in ("before_bnneck", "model")
    )
    assert np.ptp(before) > 0
    np.testing.assert_allclose(after, (before - 0.2) / np.sqrt(4 + 1e-5), atol=1e-5)


def test_learned_weighting_is_learned_from_training_identities_alone(trained, monkeypatch):
    asked = []
    read = reid.Features.of_split

    def spy(features, split):
        asked.append((features.outputs, split))
        rows = read(features, split)
        # the fixture has few identities: each half of one's images is taken for an identity
        half = np.arange(len(rows["pid"])) % 2
        return rows | {"pid": 2 * rows["pid"] + half}

    monkeypatch.setattr(reid.Features, "of_split", spy)
    reid.run(trained, features="predictions", transform=["mahalanobis steps=20"])
    assert asked == [(("predictions",), "train")], "learned once, for three protocols"
    result = json.loads((trained.workdir / "evaluation" / reid.FILE).read_text())
    assert list(result)[:2] == ["ranking", "ranking+mahalanobis"]
    assert len(result["ranking+mahalanobis"]) == 3
