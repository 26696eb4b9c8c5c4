import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax import registry
from market_jax.data import transforms
from market_jax.errors import InputError

KEY = jax.random.key(0)
IMAGE = jax.random.uniform(jax.random.key(1), (24, 12, 3))
SETTINGS = {
    "flip": {"probability": 0.5},
    "crop": {"padding": 3},
    "rotate": {"degrees": 15.0},
    "jitter": {"brightness": 0.3},
    "noise": {"std": 0.05},
    "erase": {"probability": 0.8},
}


def bind(settings):
    known = registry.names_of(transforms)
    return {n: registry.bind({"name": n} | s, known, "transform") for n, s in settings.items()}


def test_settings_cover_every_transform():
    assert set(SETTINGS) == set(transforms.__all__)


@pytest.mark.parametrize("name", transforms.__all__)
def test_shape_range_and_jit(name):
    transform = getattr(transforms, name)
    for seed in range(4):
        key = jax.random.key(seed)
        eager = transform(key, IMAGE, **SETTINGS[name])
        assert eager.shape == IMAGE.shape
        assert eager.dtype == jnp.float32
        assert 0 <= eager.min() <= eager.max() <= 1
        jitted = jax.jit(lambda k, x: transform(k, x, **SETTINGS[name]))(key, IMAGE)
        np.testing.assert_allclose(eager, jitted, atol=1e-6)


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


def test_unknown_transform():
    with pytest.raises(InputError, match="unknown transform 'flop'; did you mean 'flip'"):
        transforms.augment(KEY, IMAGE[None], {"flop": {}})


def test_an_area_that_falls_is_refused():
    with pytest.raises(
        InputError, match=r"erase.area is \(0.5, 0.1\); the first must not be above"
    ):
        transforms.erase(KEY, IMAGE, area=(0.5, 0.1))


def test_to_float():
    images = np.array([[[[0, 128, 255]]]], np.uint8)
    np.testing.assert_allclose(transforms.to_float(images)[0, 0, 0], [0, 128 / 255, 1], rtol=1e-6)
