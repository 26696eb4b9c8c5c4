"""Colour operations on 8-bit levels in pure JAX, with the results of Pillow.

Levels are int32 [H, W, 3] in 0 to 255. Each operation is that of Pillow's `ImageOps` or
`ImageEnhance` of the same name. A level may differ by 1, as `autocontrast` divides exactly and
factors are rounded to 1/16,384, so that jitted and eager results are equal.
"""

import jax
import jax.numpy as jnp

from market_jax.typing import Array


def luma(image: Array) -> Array:
    """Brightness as the eye sees it: [H, W, 3] float32 in [0, 1] -> [H, W, 1]."""
    weights = jnp.array([0.299, 0.587, 0.114], image.dtype)
    return (image @ weights)[..., None]


def brightness(levels: Array, factor: Array) -> Array:
    """Scales the levels; factor 0 is black, 1 the picture as it is."""
    return _blend(jnp.zeros_like(levels), levels, factor)


def contrast(levels: Array, factor: Array) -> Array:
    """Scales the distance to the mean gray of the picture; factor 1 is the picture as it is."""
    gray = _gray(levels)
    total, rest = jnp.divmod(jnp.sum(gray), gray.size)
    mean = total + (2 * rest >= gray.size)  # rounded, a half upwards
    return _blend(mean, levels, factor)


def color(levels: Array, factor: Array) -> Array:
    """Scales the distance to the gray of each pixel; factor 0 is gray, 1 the picture as it is."""
    return _blend(_gray(levels), levels, factor)


def sharpness(levels: Array, factor: Array) -> Array:
    """Scales the distance to the smoothed picture; factor 0 is smooth, 1 the picture as it is.

    A pixel is smoothed with its 8 neighbours, itself weighing 5 of 13. The border is kept.
    """
    height, width, _ = levels.shape
    padded = jnp.pad(levels, ((1, 1), (1, 1), (0, 0)))
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * levels
    y = jnp.arange(height)[:, None, None]
    x = jnp.arange(width)[None, :, None]
    inner = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
    smooth = jnp.where(inner, (2 * total + 13) // 26, levels)  # a 13th, rounded
    return _blend(smooth, levels, factor)


def posterize(levels: Array, bits: Array) -> Array:
    """Keeps the upper `bits` of the 8 bits of each level."""
    return levels & (256 - jnp.left_shift(1, 8 - bits))


def solarize(levels: Array, threshold: Array) -> Array:
    """Inverts the levels that are at the threshold or above."""
    return jnp.where(levels < threshold, levels, 255 - levels)


def equalize(levels: Array) -> Array:
    """Maps each channel such that its levels are as near to equally frequent as can be."""
    height, width, channels = levels.shape
    channel = jnp.arange(channels)
    counts = jnp.zeros((channels, 256), jnp.int32).at[channel, levels].add(1)
    highest = counts[channel, jnp.max(levels, axis=(0, 1))][:, None]
    step = (height * width - highest) // 255  # pixels per new level
    table = (step // 2 + jnp.cumsum(counts, axis=1) - counts) // jnp.maximum(step, 1)
    table = jnp.where(step > 0, jnp.minimum(table, 255), jnp.arange(256))
    return table[channel, levels]


def autocontrast(levels: Array) -> Array:
    """Stretches each channel such that its darkest level becomes 0 and its brightest 255."""
    low, high = jnp.min(levels, axis=(0, 1)), jnp.max(levels, axis=(0, 1))
    stretched = (levels - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched, levels)


def invert(levels: Array) -> Array:
    """Makes dark bright and bright dark."""
    return 255 - levels


def _blend(degenerate, levels, factor) -> Array:
    """From the degenerate picture, factor 0, through the levels, 1, and on; fractions are cut."""
    factor = jnp.round(factor * 2**14) / 2**14  # so that float32 holds every product exactly
    blended = degenerate + factor * (levels - degenerate)
    return jnp.clip(blended, 0, 255).astype(jnp.int32)


def _gray(levels) -> Array:
    """[H, W, 1], the luma in Pillow's fixed-point numbers."""
    red, green, blue = jnp.split(levels, 3, axis=-1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


# (levels, strength from -1 to 1) -> levels; where there is no direction, the sign does not count
OPERATIONS = (
    lambda levels, strength: brightness(levels, 1 + 0.9 * strength),
    lambda levels, strength: contrast(levels, 1 + 0.9 * strength),
    lambda levels, strength: color(levels, 1 + 0.9 * strength),
    lambda levels, strength: sharpness(levels, 1 + 0.9 * strength),
    lambda levels, strength: posterize(levels, 8 - jnp.round(4 * abs(strength)).astype(jnp.int32)),
    lambda levels, strength: solarize(levels, 256 * (1 - abs(strength))),
    lambda levels, _: equalize(levels),
    lambda levels, _: autocontrast(levels),
    lambda levels, _: invert(levels),
)


def apply(image: Array, choices: Array, strengths: Array) -> Array:
    """Applies operations one after the other.

    Args:
      image: [H, W, 3] float32 in [0, 1]; it is rounded to 8 bits.
      choices: [n] int32, places in `OPERATIONS`.
      strengths: [n] float32 in [-1, 1]. Factors are 1 + 0.9 strength; posterizing keeps 8 to 4
        bits, solarizing inverts above 256 to 0.

    Returns:
      The changed image, [H, W, 3] float32 in [0, 1].
    """

    def one(levels, drawn):
        return jax.lax.switch(drawn[0], OPERATIONS, levels, drawn[1]), None

    levels = jnp.round(image * 255.0).astype(jnp.int32)
    levels, _ = jax.lax.scan(one, levels, (choices, strengths))
    return levels.astype(jnp.float32) / 255.0
