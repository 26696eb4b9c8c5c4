import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax import devices, registry
from market_jax.data import transforms
from market_jax.errors import InputError

KEY = jax.random.key(0)
IMAGE = jax.random.uniform(jax.random.key(1), (24, 12, 3))
SETTINGS = {
    "flip": {"probability": 0.5},
    "crop": {"padding": 3},
    "rotate": {"degrees": 15.0},
    "jitter": {"brightness": 0.3},
    "color_policy": {"probability": 0.8},
    "grayscale": {"probability": 0.5},
    "gray_patch": {"probability": 0.8},
    "noise": {"std": 0.05},
    "erase": {"probability": 0.8},
}


def bind(settings):
    known = registry.names_of(transforms)
    return {n: registry.bind({"name": n} | s, known, "transform") for n, s in settings.items()}


def test_settings_cover_every_transform():
    assert set(SETTINGS) == set(transforms.__all__)


def check_shape_range_and_jit(name):
    transform = getattr(transforms, name)
    for seed in range(4):
        key = jax.random.key(seed)
        eager = transform(key, IMAGE, **SETTINGS[name])
        assert eager.shape == IMAGE.shape
        assert eager.dtype == jnp.float32
        assert 0 <= eager.min() <= eager.max() <= 1
        jitted = jax.jit(lambda k, x: transform(k, x, **SETTINGS[name]))(key, IMAGE)
        np.testing.assert_allclose(eager, jitted, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in transforms.__all__ if name != "rotate"])
def test_shape_range_and_jit(name):
    check_shape_range_and_jit(name)


def test_shape_range_and_jit_of_rotate():
    """As users compile it: without XLA's optimizations it rounds otherwise than op by op."""
    code = "from tests.data import test_transforms as own; own.check_shape_range_and_jit('rotate')"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},  # not the tests'
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("name", transforms.__all__)
def test_every_transform_does_something(name):
    outputs = [
        getattr(transforms, name)(jax.random.key(i), IMAGE, **SETTINGS[name]) for i in range(8)
    ]
    assert any(not np.allclose(out, IMAGE) for out in outputs)
    assert len({np.asarray(out).tobytes() for out in outputs}) > 1, "the key does not count"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("flip", {"probability": 0.0}),
        ("crop", {"padding": 0}),
        ("rotate", {"degrees": 0.0}),
        ("rotate", {"degrees": 90.0, "probability": 0.0}),
        ("jitter", {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}),
        ("jitter", {"probability": 0.0}),
        ("color_policy", {"probability": 0.0}),
        ("grayscale", {"probability": 0.0}),
        ("gray_patch", {"probability": 0.0}),
        ("noise", {"std": 0.0}),
        ("erase", {"probability": 0.0}),
    ],
)
def test_identity(name, settings):
    np.testing.assert_allclose(getattr(transforms, name)(KEY, IMAGE, **settings), IMAGE, atol=1e-5)


def test_flip_mirrors():
    flipped = transforms.flip(KEY, IMAGE, probability=1.0)
    np.testing.assert_array_equal(flipped, IMAGE[:, ::-1])


def test_rotation_by_a_right_angle(monkeypatch):
    monkeypatch.setattr(jax.random, "uniform", lambda key, minval, maxval: jnp.float32(90.0))
    square = IMAGE[:12]
    turned = transforms.rotate(KEY, square, degrees=90.0)
    np.testing.assert_allclose(turned, jnp.rot90(square, -1), atol=1e-4)


def test_erased_area_is_as_asked():
    shares = []
    for seed in range(40):
        image = jnp.zeros((64, 32, 3))
        erased = transforms.erase(
            jax.random.key(seed), image, probability=1.0, area=(0.1, 0.2), aspect=0.5, fill=1.0
        )
        shares.append(float(erased.mean()))
    assert min(shares) > 0.08
    assert max(shares) < 0.23


def test_erasing_twice_draws_anew():
    def erased(times):
        drawn = transforms.erase(
            KEY, jnp.zeros((64, 32, 3)), probability=1.0, fill=1.0, times=times
        )
        return np.asarray(drawn[..., 0] > 0)

    assert (erased(2) >= erased(1)).all()
    assert erased(2).sum() > erased(1).sum()


def test_a_large_jitter_never_has_a_negative_factor():
    wide = {"brightness": 1.2, "contrast": 0.0, "saturation": 0.0}
    means = [
        float(transforms.jitter(jax.random.key(i), jnp.full((4, 4, 3), 0.3), **wide).mean())
        for i in range(60)
    ]
    assert min(means) > 0
    assert min(means) < 0.06
    assert max(means) > 0.55


def changed_by(name, images, **settings):
    """[N, H, W] bool: the pixels that a transform changes, and the changed images."""
    bound = bind({name: settings})
    out = jax.jit(lambda key, x: transforms.augment(key, x, bound))(KEY, images)
    return np.asarray((out != images).any(-1)), np.asarray(out)


IMAGES = jax.random.uniform(jax.random.key(2), (400, 16, 8, 3))


@pytest.mark.parametrize(
    ("name", "probability"), [("color_policy", 0.1), ("grayscale", 0.05), ("gray_patch", 0.4)]
)
def test_the_share_of_changed_pictures_is_the_probability(name, probability):
    changed, _ = changed_by(name, IMAGES)
    share = changed.any((1, 2)).mean()
    assert abs(share - probability) < 3 * np.sqrt(probability * (1 - probability) / len(IMAGES))


def test_a_gray_picture_is_gray_all_over():
    changed, out = changed_by("grayscale", IMAGES[:20], probability=1.0)
    assert changed.all()
    assert (out == out[..., :1]).all()
    weights = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(out[..., 0], np.asarray(IMAGES[:20]) @ weights, atol=1e-5)


def test_gray_stays_in_range():
    white = transforms.grayscale(KEY, jnp.ones((4, 4, 3)), probability=1.0)
    assert white.max() <= 1
    np.testing.assert_allclose(white, 1.0, rtol=1e-6)


def test_a_gray_patch_is_a_gray_rectangle():
    changed, out = changed_by("gray_patch", IMAGES[:40], probability=1.0, area=(0.1, 0.3))
    assert 0 < changed.mean() < 0.35
    for inside, image in zip(changed, out, strict=True):
        rows, columns = inside.any(1), inside.any(0)
        np.testing.assert_array_equal(inside, rows[:, None] & columns[None, :])
        assert all(
            np.abs(np.diff(side.astype(int), prepend=0, append=0)).sum() == 2
            for side in (rows, columns)
        ), "in one piece"
        assert (image[inside] == image[inside][:, :1]).all()


def test_colors_are_drawn_for_each_image_and_as_far_as_asked():
    images = jnp.stack([IMAGE] * 60)
    _, out = changed_by("color_policy", images, probability=1.0, count=1)
    assert 20 < len({image.tobytes() for image in out}) <= 60
    _, weak = changed_by("color_policy", images, probability=1.0, count=1, magnitude=0.0)
    kinds = {image.tobytes() for image in weak}
    assert 2 <= len(kinds) <= 4, "as it was, equalized, stretched or inverted"
    none = transforms.color_policy(KEY, IMAGE, probability=1.0, count=0)
    np.testing.assert_allclose(none, IMAGE, atol=0.5 / 255 + 1e-6)


def test_colors_do_not_depend_on_the_devices():
    bound = bind({"color_policy": {"probability": 0.5}})
    augment = jax.jit(lambda key, images: transforms.augment(key, images, bound))
    images = IMAGES[:16]
    there = augment(KEY, images)
    spread = devices.place_batch(devices.make_mesh(), {"image": np.asarray(images)})["image"]
    np.testing.assert_array_equal(augment(KEY, spread), there)


def test_noise_has_the_given_deviation():
    noisy = transforms.noise(KEY, jnp.full((64, 64, 3), 0.5), std=0.05)
    assert abs(float(jnp.std(noisy)) - 0.05) < 0.002


def test_augment_is_per_image_and_keyed():
    bound = bind(SETTINGS)
    augment = jax.jit(lambda key, images: transforms.augment(key, images, bound))
    images = jnp.stack([IMAGE] * 4)
    once = augment(KEY, images)
    np.testing.assert_array_equal(once, augment(KEY, images))
    assert not np.allclose(once[0], once[1])
    np.testing.assert_allclose(augment(KEY, images[:2]), once[:2], atol=1e-6)
    assert not np.allclose(once, augment(jax.random.key(5), images))


def test_a_probability_of_zero_leaves_a_transform_out_and_the_others_as_they_were():
    images = jnp.stack([IMAGE] * 2)
    settings = {"flip": {}, "noise": {"std": 0.1}}
    off = settings | {"rotate": {"degrees": 30.0, "probability": 0.0}}
    np.testing.assert_array_equal(
        transforms.augment(KEY, images, bind(settings)),
        transforms.augment(KEY, images, bind(off)),
    )


def test_a_new_transform_leaves_the_draws_of_the_others():
    """A key comes from a place in a list, to whose end new names go."""
    first = ["flip", "crop", "rotate", "jitter", "noise", "erase"]
    assert transforms._KEYS[: len(first)] == first
    assert sorted(transforms._KEYS) == sorted(transforms.__all__)


def test_unknown_transform():
    with pytest.raises(InputError, match="unknown transform 'flop'; did you mean 'flip'"):
        transforms.augment(KEY, IMAGE[None], {"flop": {}})


@pytest.mark.parametrize("name", ["erase", "gray_patch"])
def test_an_area_that_falls_is_refused(name):
    with pytest.raises(
        InputError, match=name + r".area is \(0.5, 0.1\); the first must not be above"
    ):
        getattr(transforms, name)(KEY, IMAGE, area=(0.5, 0.1))


def test_resizing_to_the_same_size_changes_nothing():
    assert transforms.resize(IMAGES, (16, 8)) is IMAGES


def test_halving_averages():
    images = IMAGES[:3, :2, :2]
    halved = transforms.resize(images, (1, 1))
    np.testing.assert_allclose(halved, images.mean((1, 2), keepdims=True), atol=1e-6)
    stripes = jnp.zeros((1, 8, 8, 3)).at[:, :, ::2].set(1.0)
    halved = transforms.resize(stripes, (4, 4))
    assert halved.shape == (1, 4, 4, 3)
    assert halved.dtype == jnp.float32
    np.testing.assert_allclose(halved[:, :, 1:-1], 0.5, atol=1e-6)


def test_to_float():
    images = np.array([[[[0, 128, 255]]]], np.uint8)
    np.testing.assert_allclose(transforms.to_float(images)[0, 0, 0], [0, 128 / 255, 1], rtol=1e-6)
