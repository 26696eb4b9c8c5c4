"""Pictures of a user: from a file's bytes to uint8 [H, W, 3]. The one door for all of them."""

import io
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from market_jax.errors import InputError
from market_jax.files import read_bytes

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # by content, whatever the name says; MPO is a JPEG
MOST_PIXELS = 64_000_000
_MOST_BYTES = 1 << 28
_PLAIN = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "PA", "RGBA", "RGBX")


def decode(content: bytes, where: str, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Decodes a picture: uint8 [H, W, 3], the way up that its EXIF orientation says.

    16-bit grey is scaled to 8 bits; colour profiles are not applied. Of the two pictures of an MPO
    file (a JPEG by some phones) the first is taken.

    Args:
      content: the bytes of the file.
      where: the picture's path, for the message.
      most_pixels: how many it may have, at most `MOST_PIXELS`.

    Raises:
      InputError: the picture is broken, has more pixels, is of another format than
        `FORMATS`, animated, transparent, or of a mode that cannot be converted rightly; the message
        begins with `where`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF, and of sizes that are checked here
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return _convert(image, most_pixels)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except Image.DecompressionBombError:
        raise InputError(f"{where}: has more than {MOST_PIXELS} pixels") from None
    except (Exception, RecursionError, MemoryError) as error:  # whatever a parser makes of it
        reason = str(error).replace(repr(io.BytesIO), "it")
        if "cannot identify image file" in reason:
            reason = f"none of {', '.join(FORMATS)}"
        raise InputError(f"{where}: the picture cannot be decoded ({reason})") from None


def _convert(image: Image.Image, most_pixels: int) -> np.ndarray:
    """An opened picture's pixels as RGB."""
    if image.width * image.height > most_pixels:
        raise InputError(f"has {image.width}x{image.height} pixels; {most_pixels} are the most")
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise InputError("is animated; a single picture is needed")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        return np.repeat(((wide * 255 + 32767) // 65535).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode not in _PLAIN:
        raise InputError(f"is of mode {image.mode}, which is not read; 8 bits, grey or RGB, are")
    if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
        raise InputError("is transparent in part; put it on a background first")
    return np.asarray(image.convert("RGB"))


def read(path: Path | str) -> np.ndarray:
    """Reads a picture's file: uint8 [H, W, 3], see `decode`.

    Args:
      path: the file.

    Raises:
      InputError: the file cannot be read, or the picture not be decoded.
    """
    return decode(read_bytes(path, _MOST_BYTES), str(path))


def resize(image: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Resizes a picture, bilinear; returns the array itself if the size fits.

    Args:
      image: the picture, uint8 [H, W, 3].
      image_size: the wanted (height, width).
    """
    height, width = image_size
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


_GROUP = 8  # small pictures that fit into a core's cache, with what is made of them


def resize_all(images: Iterable[np.ndarray], image_size: tuple[int, int], size: int) -> np.ndarray:
    """Resizes pictures to one array: uint8 [size, H, W, 3], each as `resize` does.

    Args:
      images: the pictures, uint8 [h, w, 3]; taken one by one.
      image_size: the wanted (height, width).
      size: how many there are.
    """
    resized = np.empty((size, *image_size, 3), np.uint8)
    halves: dict[int, np.ndarray] = {}

    def double() -> None:
        if halves:
            resized[list(halves)] = _double(np.stack([*halves.values()]))
            halves.clear()

    for i, image in enumerate(images):
        if (2 * image.shape[0], 2 * image.shape[1]) != tuple(image_size):
            resized[i] = resize(image, image_size)
            continue
        halves[i] = image
        if len(halves) == _GROUP:
            double()
    double()
    return resized


def _double(images: np.ndarray) -> np.ndarray:
    """Pictures [n, H, W, 3] at twice their size, by Pillow's rule in a quarter of its time."""
    n, height, width, channels = images.shape
    row = 2 * width * channels
    wide = np.empty((n, height * width, 2), f"V{channels}")  # a pixel is copied as one thing
    for side, values in enumerate(_between(images.reshape(n * height, -1), channels)):
        wide[..., side] = values.view(wide.dtype).reshape(n, -1)
    doubled = np.empty((n, height, 2, row), np.uint8)
    for side, values in enumerate(_between(wide.view(np.uint8).reshape(n, -1), row)):
        doubled[:, :, side] = values.reshape(n, height, row)
    return doubled.reshape(n, 2 * height, 2 * width, channels)


def _between(lines: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The points a quarter before and behind each point of lines [M, L x step], rounded half up."""
    values = lines.astype(np.uint16)
    behind = values * np.uint16(3) + np.uint16(2)
    before = behind.copy()
    before[:, step:] += values[:, :-step]
    before[:, :step] += values[:, :step]  # beyond the edge is what is at the edge
    behind[:, :-step] += values[:, step:]
    behind[:, -step:] += values[:, -step:]
    return (before >> 2).astype(np.uint8), (behind >> 2).astype(np.uint8)
