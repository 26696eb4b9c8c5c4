"""Turns arrays into pictures."""

import base64
import io

import numpy as np
from PIL import Image


def jpeg(picture: np.ndarray) -> bytes:
    """The bytes of a JPEG with a picture, uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def data_url(picture: np.ndarray) -> str:
    """A data URL with a picture, uint8 [H, W, 3], as a JPEG; it embeds the picture in a page."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(picture)).decode()


def encode(picture: np.ndarray, suffix: str = ".png") -> bytes:
    """The file of a picture.

    Args:
      picture: uint8 [H, W, 3].
      suffix: of the file's name, which says its format.
    """
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, suffix.removeprefix(".").upper())
    return buffer.getvalue()


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Float in [0, 1] -> uint8; values outside are clipped."""
    return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)


def to_unit_range(values: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Maps a model's images to [0, 1].

    Args:
      values: images [N, H, W, C] in the range of the targets, [0, 1] or [-1, 1].
      target: the model's targets [N, H, W, C]; a value below 0 says that the range is [-1, 1].
    """
    low = -1.0 if np.min(target) < 0 else 0.0
    return np.clip((np.asarray(values) - low) / (1 - low), 0, 1)


def grid(rows: list[np.ndarray], gap: int = 2) -> np.ndarray:
    """Puts rows of pictures into one picture, uint8 [H, W, 3], with white between them.

    Args:
      rows: the pictures of each row, float [n, H, W, 3] in [0, 1].
      gap: white pixels around each picture.
    """
    lines = []
    for row in rows:
        framed = np.pad(row, ((0, 0), (gap, gap), (gap, gap), (0, 0)), constant_values=1.0)
        lines.append(np.concatenate(list(framed), axis=1))
    width = max(line.shape[1] for line in lines)
    filled = [
        np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0)), constant_values=1.0)
        for line in lines
    ]
    return to_uint8(np.concatenate(filled, axis=0))
