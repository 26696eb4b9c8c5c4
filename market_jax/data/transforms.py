"""Augmentation in pure JAX: (key, image [H, W, C] float32 in [0, 1], settings) -> image.

Each transform works on one image; `augment` maps them over the batch with a key for each
image, so that an image's augmentation depends on (key, position) alone. The order of
`__all__` is the order in which they are applied.
"""

from collections.abc import Callable, Mapping
from typing import Annotated

import jax
import jax.numpy as jnp

from market_jax.data import colors
from market_jax.errors import InputError
from market_jax.registry import choose
from market_jax.typing import Array, Fraction, PositiveFraction, Range

__all__ = [
    "flip",
    "crop",
    "rotate",
    "jitter",
    "color_policy",
    "grayscale",
    "gray_patch",
    "noise",
    "erase",
]
# A transform's place here makes its key, so a new one goes to the end: the others draw as before.
_KEYS = ["flip", "crop", "rotate", "jitter", "noise", "erase"]
_KEYS += ["color_policy", "grayscale", "gray_patch"]

Amount = Annotated[float, Range(0, 10)]


def flip(key: Array, image: Array, *, probability: Fraction = 0.5) -> Array:
    """Mirrors left and right, at random.

    Args:
      key: random key for this image.
      image: [H, W, C] float32 in [0, 1].
      probability: the chance of mirroring, 0 to 1.
    """
    return jnp.where(jax.random.bernoulli(key, probability), image[:, ::-1], image)


def crop(key: Array, image: Array, *, padding: Annotated[int, Range(0, 1024)]) -> Array:
    """Pads every side by repeating the border, then crops at random to the old size.

    Args:
      key: random key for this image.
      image: [H, W, C] float32 in [0, 1].
      padding: pixels to add on each side, 0 to 1,024.
    """
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="edge")
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def rotate(
    key: Array,
    image: Array,
    *,
    degrees: Annotated[float, Range(0, 180)],
    probability: Fraction = 1.0,
) -> Array:
    """Rotates about the centre by an angle uniform in [-degrees, degrees]; repeats the border.

    Args:
      key: random key for this image.
      image: [H, W, C] float32 in [0, 1].
      degrees: the largest angle, in degrees, 0 to 180.
      probability: the chance of a rotation, 0 to 1.
    """
    height, width, _ = image.shape
    key_angle, key_apply = jax.random.split(key)
    angle = jnp.deg2rad(jax.random.uniform(key_angle, minval=-degrees, maxval=degrees))
    angle = jnp.where(jax.random.bernoulli(key_apply, probability), angle, 0.0)
    y = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2
    x = jnp.arange(width, dtype=jnp.float32)[None, :] - (width - 1) / 2
    rows = jnp.cos(angle) * y - jnp.sin(angle) * x + (height - 1) / 2
    columns = jnp.sin(angle) * y + jnp.cos(angle) * x + (width - 1) / 2

    def bilinear(channel):
        return jax.scipy.ndimage.map_coordinates(channel, [rows, columns], 1, mode="nearest")

    return jax.vmap(bilinear, in_axes=-1, out_axes=-1)(image)


def jitter(
    key: Array,
    image: Array,
    *,
    brightness: Amount = 0.2,
    contrast: Amount = 0.2,
    saturation: Amount = 0.2,
    probability: Fraction = 1.0,
) -> Array:
    """Scales brightness, contrast and saturation by factors uniform in 1 -+ the given amounts.

    Args:
      key: random key for this image.
      image: [H, W, 3] float32 in [0, 1].
      brightness: the amount for brightness, 0 to 10; 0 changes nothing, and a factor is never below
        0.
      contrast: the amount for contrast.
      saturation: the amount for saturation.
      probability: the chance of a change, 0 to 1.
    """
    key_apply, *keys = jax.random.split(key, 4)
    amounts = (brightness, contrast, saturation)
    b, c, s = (
        jax.random.uniform(k, minval=max(1 - a, 0), maxval=1 + a)
        for k, a in zip(keys, amounts, strict=True)
    )
    changed = image * b
    mean = jnp.mean(colors.luma(changed))
    changed = (changed - mean) * c + mean
    gray = colors.luma(changed)
    changed = jnp.clip((changed - gray) * s + gray, 0.0, 1.0)
    return jnp.where(jax.random.bernoulli(key_apply, probability), changed, image)


def color_policy(
    key: Array,
    image: Array,
    *,
    probability: Fraction = 0.1,
    count: Annotated[int, Range(0, 100)] = 2,
    magnitude: Fraction = 1.0,
) -> Array:
    """AutoAugment-like colour policies (Cubuk et al., 2019): a few operations drawn at random.

    They are brightness, contrast, color (saturation), sharpness, posterize, solarize, equalize,
    autocontrast and invert, on 8-bit levels as in Pillow, each as likely as the others and with a
    strength of its own. The learned policies are not used, and the geometric operations are left
    out: `crop`, `rotate` and `flip` do that.

    Args:
      key: random key for this image.
      image: [H, W, 3] float32 in [0, 1].
      probability: the chance of a change, 0 to 1.
      count: the number of operations, 0 to 100, one after the other; one may be drawn twice.
      magnitude: the strength is uniform up to this share of the paper's range, 0 to 1. The last
        three operations have no strength.
    """
    key_apply, key_choice, key_strength = jax.random.split(key, 3)
    choices = jax.random.randint(key_choice, (count,), 0, len(colors.OPERATIONS))
    strengths = jax.random.uniform(key_strength, (count,), minval=-magnitude, maxval=magnitude)

    @jax.custom_batching.sequential_vmap  # image by image only what was drawn is computed
    def change(is_changed, *arguments):
        return jax.lax.cond(is_changed, colors.apply, lambda image, *_: image, *arguments)

    return change(jax.random.bernoulli(key_apply, probability), image, choices, strengths)


def grayscale(key: Array, image: Array, *, probability: Fraction = 0.05) -> Array:
    """Makes the whole picture gray: global grayscale transformation (Gong et al., 2021).

    Args:
      key: random key for this image.
      image: [H, W, 3] float32 in [0, 1].
      probability: the chance of a gray picture, 0 to 1.
    """
    return jnp.where(jax.random.bernoulli(key, probability), _gray(image), image)


def gray_patch(
    key: Array,
    image: Array,
    *,
    probability: Fraction = 0.4,
    area: tuple[Fraction, Fraction] = (0.02, 0.4),
    aspect: PositiveFraction = 0.3,
) -> Array:
    """Makes a rectangle gray: local grayscale transformation (Gong et al., 2021).

    Args:
      key: random key for this image.
      image: [H, W, 3] float32 in [0, 1].
      probability: the chance of a gray rectangle, 0 to 1.
      area: the smallest and the largest share of the image, each 0 to 1.
      aspect: height over width is log-uniform in [aspect, 1 / aspect]; above 0, at most 1.

    Raises:
      InputError: the smallest share is above the largest.
    """
    _check_area("gray_patch", area)
    inside = _rectangle(key, image.shape, probability, area, aspect)
    return jnp.where(inside, _gray(image), image)


def _gray(image) -> Array:
    """[H, W, 1] in [0, 1], which the rounding of the luma could leave."""
    return jnp.clip(colors.luma(image), 0.0, 1.0)


def noise(key: Array, image: Array, *, std: Fraction, probability: Fraction = 1.0) -> Array:
    """Adds Gaussian noise.

    Args:
      key: random key for this image.
      image: [H, W, C] float32 in [0, 1].
      std: standard deviation of the noise, in units of the [0, 1] range, 0 to 1.
      probability: the chance of noise, 0 to 1.
    """
    key_noise, key_apply = jax.random.split(key)
    noisy = jnp.clip(image + std * jax.random.normal(key_noise, image.shape), 0.0, 1.0)
    return jnp.where(jax.random.bernoulli(key_apply, probability), noisy, image)


def erase(
    key: Array,
    image: Array,
    *,
    probability: Fraction = 0.5,
    area: tuple[Fraction, Fraction] = (0.02, 0.4),
    aspect: PositiveFraction = 0.3,
    fill: Fraction = 0.45,
    times: Annotated[int, Range(0, 100)] = 1,
) -> Array:
    """Random erasing: fills rectangles (Zhong et al., 2020), which are cut to fit the image.

    The authors' program draws height over width uniformly, and again until the rectangle fits.

    Args:
      key: random key for this image.
      image: [H, W, C] float32 in [0, 1].
      probability: the chance of each rectangle, 0 to 1.
      area: the smallest and the largest share of the image, each 0 to 1.
      aspect: height over width is log-uniform in [aspect, 1 / aspect]; above 0, at most 1.
      fill: the value of an erased pixel, 0 to 1.
      times: the number of rectangles, 0 to 100.

    Raises:
      InputError: the smallest share is above the largest.
    """
    _check_area("erase", area)
    for i in range(times):
        own = key if i == 0 else jax.random.fold_in(key, i)
        image = jnp.where(_rectangle(own, image.shape, probability, area, aspect), fill, image)
    return image


def _check_area(name, area) -> None:
    if area[0] > area[1]:
        raise InputError(
            f"augmentation.{name}.area is {area}; the first must not be above the second"
        )


def _rectangle(key, shape, probability, area, aspect) -> Array:
    """[H, W, 1] bool: inside a rectangle, which is nowhere in the other cases."""
    height, width, _ = shape
    key_apply, key_area, key_aspect, key_y, key_x = jax.random.split(key, 5)
    share = jax.random.uniform(key_area, minval=area[0], maxval=area[1]) * height * width
    ratio = jnp.exp(jax.random.uniform(key_aspect, minval=jnp.log(aspect), maxval=-jnp.log(aspect)))
    h = jnp.minimum(jnp.sqrt(share * ratio), height)
    w = jnp.minimum(jnp.sqrt(share / ratio), width)
    top = jax.random.uniform(key_y) * (height - h)
    left = jax.random.uniform(key_x) * (width - w)
    y = jnp.arange(height)[:, None, None]
    x = jnp.arange(width)[None, :, None]
    inside = (y >= top) & (y < top + h) & (x >= left) & (x < left + w)
    return inside & jax.random.bernoulli(key_apply, probability)


def to_float(images: Array) -> Array:
    """uint8 [N, H, W, C] -> float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255.0


def resize(images: Array, image_size: tuple[int, int]) -> Array:
    """Brings images to a size, bilinearly; smaller ones are averaged over the pixels they cover.

    Args:
      images: [N, H, W, C] float32.
      image_size: (height, width); images of that size are returned as they are.
    """
    number, *size, channels = images.shape
    if tuple(size) == tuple(image_size):
        return images
    return jax.image.resize(images, (number, *image_size, channels), "linear")


def augment(key: Array, images: Array, transforms: Mapping[str, Callable]) -> Array:
    """Applies transforms to every image of a batch, in the order of `__all__`.

    Args:
      key: random key for this batch.
      images: [N, H, W, C], float32 in [0, 1].
      transforms: name -> function (key, image) -> image, a transform with its settings bound. One
        with probability 0 is left out.

    Returns:
      The changed images, [N, H, W, C] float32 in [0, 1].

    Raises:
      InputError: a name is not a transform, or a setting is out of range.
    """
    for name in transforms:
        choose(name, dict.fromkeys(__all__), "transform")

    def is_used(name):
        return getattr(transforms[name], "keywords", {}).get("probability", 1.0) != 0

    used = [name for name in __all__ if name in transforms and is_used(name)]

    def one(index, image):
        image_key = jax.random.fold_in(key, index)
        for name in used:
            transform_key = jax.random.fold_in(image_key, _KEYS.index(name))
            image = transforms[name](transform_key, image)
        return image

    return jax.vmap(one)(jnp.arange(images.shape[0]), images)
