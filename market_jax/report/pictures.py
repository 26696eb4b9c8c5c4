"""Pictures from arrays."""

import base64
import io

import numpy as np
from PIL import Image


def data_url(picture: np.ndarray) -> str:
    """uint8 [H, W, 3] -> the address of a JPEG that lies in the page itself."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Float in [0, 1] -> uint8, what lies outside cut off."""
    return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)


def to_unit_range(values: np.ndarray, target: np.ndarray) -> np.ndarray:
    """A model's images to [0, 1], from there or from [-1, 1], as its targets say.

    Args:
      values: [N, H, W, C] images of a model.
      target: its targets, whose range says which one it is.
    """
    low = -1.0 if np.min(target) < 0 else 0.0
    return np.clip((np.asarray(values) - low) / (1 - low), 0, 1)


def grid(rows: list[np.ndarray], gap: int = 2) -> np.ndarray:
    """Rows of pictures, each float [n, H, W, 3] in [0, 1] -> one picture, uint8, white between.

    Args:
      rows: float [n, H, W, 3] each.
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
