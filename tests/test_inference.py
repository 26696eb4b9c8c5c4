import dataclasses
import threading

import jax
import numpy as np
import pytest

from market_jax import inference
from market_jax.errors import InputError
from market_jax.kernels import convolution
from market_jax.models.backbones import resnet
from market_jax.training.state import init_variables


class Colors:
    """A model: the mean colour and a map of each image."""

    def apply(self, variables, images):
        self.traced = getattr(self, "traced", 0) + 1
        left = images[:, :, : images.shape[2] // 2].mean(axis=(1, 2))
        return {"color": left * variables["scale"], "map": images.mean(axis=3)}


def make_columns(count=11):
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 4, 3), np.uint8)
    return {"image": images, "name": np.array([f"{i}.jpg" for i in range(count)])}


def test_a_predictor_gives_every_image_its_outputs_in_order():
    columns, predict = (
        make_columns(),
        inference.Predictor(Colors().apply, {"scale": 2.0}, batch_size=4),
    )
    found = predict(columns, ["color"])["color"]
    expected = columns["image"][:, :, :2].mean(axis=(1, 2)) / 255 * 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(InputError, match="unknown output of the model 'colour'; did you mean"):
        predict(columns, ["colour"])


def test_on_one_cpu_a_batch_is_cut_into_parts(monkeypatch):
    columns, whole = make_columns(24), Colors()
    expected = inference.Predictor(whole.apply, {"scale": 2.0}, batch_size=24)(columns, ["color"])
    monkeypatch.setattr(inference.jax, "device_count", lambda: 1)
    shapes = []

    def apply(variables, images):
        shapes.append(images.shape[0])
        return Colors().apply(variables, images)

    found = inference.Predictor(apply, {"scale": 2.0}, batch_size=24)(columns, ["color", "map"])
    assert set(shapes) == {inference._images_at_once(apply)}
    np.testing.assert_allclose(found["color"], expected["color"], rtol=1e-6)
    np.testing.assert_allclose(found["map"], columns["image"].mean(axis=3) / 255, rtol=1e-5)


def test_a_model_is_told_what_it_takes_beside_the_images(monkeypatch):
    columns = make_columns(21) | {"camera": np.arange(1, 22), "pid": np.zeros(21, int)}

    def apply(variables, images, camera=None):
        assert images.shape[0] == camera.shape[0]
        return {"camera": camera * variables["scale"], "image": images}

    applied = dataclasses.replace(convolution.applying("auto", apply), inputs=("camera",))
    for count in (8, 1):
        monkeypatch.setattr(inference.jax, "device_count", lambda count=count: count)
        predict = inference.Predictor(applied, {"scale": 2}, batch_size=16)
        for flip in (False, True):
            found = predict(columns, ["camera", "image"], flip=flip)
            np.testing.assert_array_equal(found["camera"], 2 * columns["camera"])


def test_images_at_once_follow_the_implementation():
    fused = convolution.has_onednn()
    sizes = {way: inference._images_at_once(convolution.applying(way, None))
             for way in ("auto", "jax", "lax")}  # fmt: skip
    assert sizes == {"auto": 8 if fused else 4, "jax": 4, "lax": 4}


class OnDisk:
    """Pictures that are decoded when they are indexed, and where that happens."""

    def __init__(self, images):
        self.images, self.threads = images, set()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        self.threads.add(threading.get_ident())
        return self.images[rows]

    def take(self, rows):
        other = OnDisk(self.images[rows])
        other.threads = self.threads
        return other


@pytest.mark.parametrize("cores", [2, 64])
def test_pictures_on_disk_are_decoded_between_computations_or_ahead(monkeypatch, cores):
    monkeypatch.setattr(inference.os, "cpu_count", lambda: cores)
    columns = make_columns()
    expected = inference.Predictor(Colors().apply, {"scale": 2.0})(columns, ["color"])["color"]
    stored = OnDisk(columns["image"])
    predict = inference.Predictor(Colors().apply, {"scale": 2.0}, batch_size=8)
    found = predict(columns | {"image": stored}, ["color"])["color"]
    np.testing.assert_array_equal(found, expected)
    assert (stored.threads == {threading.get_ident()}) == (cores == 2)


def test_a_network_is_folded_once_for_each_set_of_variables():
    model = resnet.Model(18)
    variables = init_variables(model, (32, 32), seed=0)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    columns = {"image": images, "name": np.array(["a", "b", "c"])}
    predict = inference.Predictor(model.apply, variables, model=model, batch_size=8)
    found = predict(columns, ["feature"])["feature"]
    folded = predict._folded
    np.testing.assert_array_equal(predict(columns, ["feature"])["feature"], found)
    assert predict._folded is folded
    larger = {**columns, "image": np.repeat(images, 2, axis=1)}
    expected = model.apply(variables, larger["image"] / np.float32(255))["feature"]
    other = predict(larger, ["feature"])["feature"]
    np.testing.assert_allclose(other, expected, atol=1e-5 * np.abs(expected).max())
    expected = model.apply(variables, images / np.float32(255))["feature"]
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    doubled = jax.tree.map(lambda x: 2 * x, variables)
    other = predict.with_variables(doubled)(columns, ["feature"])["feature"]
    expected = model.apply(doubled, images / np.float32(255))["feature"]
    np.testing.assert_allclose(other, expected, atol=1e-5 * np.abs(expected).max())


def test_mirrored_outputs_are_averaged_and_maps_mirrored_back():
    columns, model = make_columns(8), Colors()
    predict = inference.Predictor(model.apply, {"scale": 1.0})
    found = predict(columns, ["color", "map"], flip=True)
    assert model.traced == 2, "two passes"
    np.testing.assert_allclose(found["color"], columns["image"].mean(axis=(1, 2)) / 255, rtol=1e-5)
    np.testing.assert_allclose(found["map"], columns["image"].mean(axis=3) / 255, rtol=1e-5)


def test_each_process_does_its_share(monkeypatch):
    """Three processes, one after the other; what they would gather is put together here."""
    columns = make_columns(10)
    whole = inference.Predictor(Colors().apply, {"scale": 1.0}, batch_size=8)(columns, ["color"])
    parts, sizes = [], []

    def gather(own, most, size):
        sizes.append(len(own["color"]))
        parts.append(own["color"])
        return own

    monkeypatch.setattr(inference, "_gather", gather)
    for index in range(3):
        monkeypatch.setattr(inference.devices, "share", lambda index=index: (index, 3))
        predict = inference.Predictor(Colors().apply, {"scale": np.ones(())}, batch_size=8)
        predict(columns, ["color"])
    assert sizes == [4, 4, 2]
    np.testing.assert_allclose(np.concatenate(parts), whole["color"], rtol=1e-6)


def test_features_that_are_not_finite_are_named():
    predict = inference.Predictor(Colors().apply, {"scale": np.float32("nan")})
    with pytest.raises(InputError, match=r"the features of 0.jpg are not finite"):
        inference.features(predict, make_columns(), ["color"])
    with pytest.raises(InputError, match=r"output 'map' is \(11, 8, 4\); features are"):
        inference.features(predict, make_columns(), ["map"])
