import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from market_jax.data import colors

RNG = np.random.default_rng(0)
PICTURES = {
    "random": RNG.integers(0, 256, (24, 12, 3)),
    "large": RNG.integers(0, 256, (256, 128, 3)),
    "dark": RNG.integers(10, 90, (40, 30, 3)),
    "uneven": np.minimum(RNG.geometric(0.03, (48, 20, 3)), 255),
    "of one level": np.full((40, 30, 3), 77),
    "tiny": RNG.integers(0, 256, (2, 2, 3)),
}
ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "color": ImageEnhance.Color,
    "sharpness": ImageEnhance.Sharpness,
}


def compare(name, picture, pillow, *arguments):
    """Eager, jitted and Pillow's levels are the same, but for a rounding."""
    levels = jnp.asarray(PICTURES[picture], jnp.int32)
    operation = getattr(colors, name)
    eager = operation(levels, *arguments)
    assert eager.dtype == jnp.int32
    assert 0 <= eager.min() <= eager.max() <= 255
    np.testing.assert_array_equal(eager, jax.jit(operation)(levels, *arguments))
    there = np.asarray(pillow(Image.fromarray(PICTURES[picture].astype(np.uint8))), np.int32)
    np.testing.assert_allclose(eager, there, atol=1)
    assert np.mean(np.asarray(eager) != there) < 0.02


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("factor", [0.0, 0.125, 0.6328125, 1.0, 1.37109375, 1.875])
@pytest.mark.parametrize("name", ENHANCERS)
def test_an_enhancement_is_pillows(name, factor, picture):
    compare(name, picture, lambda image: ENHANCERS[name](image).enhance(factor), factor)


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("bits", [1, 4, 6, 8])
def test_posterize_is_pillows(bits, picture):
    compare("posterize", picture, lambda image: ImageOps.posterize(image, bits), bits)


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("threshold", [0.0, 99.5, 128.0, 256.0])
def test_solarize_is_pillows(threshold, picture):
    compare("solarize", picture, lambda image: ImageOps.solarize(image, threshold), threshold)


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("name", ["equalize", "autocontrast", "invert"])
def test_an_operation_without_a_strength_is_pillows(name, picture):
    compare(name, picture, getattr(ImageOps, name))


def test_luma_is_pillows_gray():
    picture = PICTURES["random"].astype(np.uint8)
    gray = np.asarray(Image.fromarray(picture).convert("L"))
    np.testing.assert_allclose(colors.luma(picture / np.float32(255))[..., 0] * 255, gray, atol=0.6)


def test_the_strength_says_which_way_and_how_far():
    image = jnp.asarray(PICTURES["random"] / 255, jnp.float32)

    def applied(*drawn):
        choices, strengths = zip(*drawn, strict=True)
        return colors.apply(image, jnp.array(choices, jnp.int32), jnp.array(strengths, jnp.float32))

    assert len(colors.OPERATIONS) == 9
    for choice in range(6):
        np.testing.assert_allclose(applied((choice, 0.0)), image, atol=1e-6)
    np.testing.assert_allclose(applied((0, -1.0)), image * 0.1, atol=1 / 255)
    np.testing.assert_allclose(applied((4, -1.0)) * 255, PICTURES["random"] & 0xF0, atol=1e-4)
    np.testing.assert_allclose(applied((5, 1.0)), 1 - image, atol=1e-6)
    np.testing.assert_allclose(applied((8, 0.3), (8, -0.3)), image, atol=1e-6)
    np.testing.assert_allclose(
        applied((8, 0.0), (0, -1.0)), (1 - image) * 0.1, atol=1 / 255, err_msg="in their order"
    )
