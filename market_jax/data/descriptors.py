"""Features that need no training, uint8 [M, H, W, 3] -> [M, D]: the baseline for every model."""

from collections.abc import Callable, Sequence

import numpy as np

from market_jax.typing import Columns

__all__ = ["color_histogram", "pixels"]

_STRIPES, _LEVELS = 8, 4
_SMALL = (32, 16)  # rows and columns of "pixels"


def _cut(images: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """[M, H, W, 3] -> [M, rows, h, columns, w, 3]; what is left at the ends is cut off."""
    m, height, width, _ = images.shape
    rows, columns = min(rows, height), min(columns, width)
    h, w = height // rows, width // columns
    return images[:, : rows * h, : columns * w].reshape(m, rows, h, columns, w, 3)


def pixels(images: np.ndarray) -> np.ndarray:
    """Pixels averaged to 32x16, minus the image's mean: float32 [M, 1536]."""
    small = _cut(images, *_SMALL).mean(axis=(2, 4), dtype=np.float32)
    small = small.reshape(len(images), -1)
    return small - small.mean(axis=1, keepdims=True)


def color_histogram(images: np.ndarray) -> np.ndarray:
    """Square roots of the shares of 4x4x4 colours in 8 horizontal stripes: float32 [M, 512]."""
    level = _cut(images, _STRIPES, 1).astype(np.int64) * _LEVELS // 256
    m, stripes = level.shape[:2]
    color = (level @ np.array([_LEVELS**2, _LEVELS, 1])).reshape(m, stripes, -1)
    colors = _LEVELS**3
    place = (np.arange(m * stripes) * colors).reshape(m, stripes, 1) + color
    counts = np.bincount(place.ravel(), minlength=m * stripes * colors)
    shares = counts.reshape(m, -1) / place.shape[2]
    return np.sqrt(shares).astype(np.float32)


class Descriptor:
    """A function of pictures in a model's place: its one output has the name that is asked for.

    Args:
      function: uint8 [n, H, W, 3] -> [n, D].
    """

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]):
        self._function = function

    def __call__(
        self, columns: Columns, names: Sequence[str], *, flip: bool = False, keep: bool = False
    ) -> dict[str, np.ndarray]:
        """Features of every image, as `inference.Predictor` gives outputs.

        Args:
          columns: "image" and "name" of M images.
          names: one name, which the features get.
          flip: the mean with the mirrored images' features.
          keep: has no effect; features are computed anew.
        """
        images, size, parts = columns["image"], len(columns["name"]), []
        for rows in np.array_split(np.arange(size), -(-size // 1024)):
            chunk = images[rows]
            value = self._function(chunk)
            parts.append((value + self._function(chunk[:, :, ::-1])) / 2 if flip else value)
        return {names[0]: np.concatenate(parts)}
