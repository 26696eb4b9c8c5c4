"""Pictures of a user: read rightly, or refused with a message that names the file."""

import io
import os
import re

import numpy as np
import pytest
from PIL import Image

from market_jax.data import decoding
from market_jax.errors import InputError
from tests.data.hazards import UPRIGHT, encoded, png, within

COLORED = np.stack([UPRIGHT, UPRIGHT[::-1], 255 - UPRIGHT], axis=-1)
# where the rows and columns of the stored picture lie, by the EXIF standard
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
}
KINDS = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_is_turned_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](COLORED))
    image = decoding.decode(encoded(stored, kind, exif=exif, **KINDS[kind]), "a")
    assert image.shape == COLORED.shape
    assert np.abs(image.astype(int) - COLORED).max() <= (12 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decoding.decode(encoded(COLORED, exif=exif), "a"), COLORED)


def test_16_bit_grey_is_scaled():
    deep = UPRIGHT.astype(np.uint16) * 257
    for content in (encoded(Image.fromarray(deep)), encoded(Image.fromarray(deep + 1))):
        image = decoding.decode(content, "a")
        assert image.dtype == np.uint8
        assert np.abs(image.astype(int) - UPRIGHT[..., None]).max() <= 1


def test_16_bit_rgb_is_scaled():
    deep = COLORED.astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    content = png(COLORED.shape[1], COLORED.shape[0], bits=16, rows=rows)
    image = decoding.decode(content, "a")
    assert np.abs(image.astype(int) - COLORED).max() <= 1


def in_mode(mode: str, kind: str) -> bytes:
    """COLORED in a mode."""
    image = Image.fromarray(COLORED)
    if mode == "PA":
        return encoded(image.convert("P"), kind, transparency=b"\xff" * 256)
    return encoded(image.convert(mode), kind)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[(mode, "PNG") for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA")],
        *[("L", "JPEG"), ("RGB", "JPEG"), ("CMYK", "JPEG"), ("YCbCr", "JPEG")],
        *[("RGB", "WEBP"), ("RGBA", "WEBP"), ("1", "BMP"), ("RGB", "BMP")],
    ],
)
def test_every_plain_mode_is_read(mode, kind):
    image = decoding.decode(in_mode(mode, kind), "a")
    assert image.dtype == np.uint8
    assert image.shape == COLORED.shape
    expected = COLORED
    if mode in ("L", "LA", "1"):
        expected = np.asarray(Image.fromarray(COLORED).convert(mode).convert("RGB"))
    error = np.abs(image.astype(int) - expected)
    assert error.mean() < 24, "the colours are others"


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green")]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


def transparent(kind: str = "PNG") -> bytes:
    image = Image.new("RGBA", (8, 8), (9, 9, 9, 255))
    image.putpixel((3, 3), (9, 9, 9, 254))
    return encoded(image, kind)


GREY, RED = Image.new("L", (8, 8)), Image.new("RGB", (8, 8), "red")
REFUSED = {
    "I.jpg": (lambda: encoded(Image.new("I", (8, 8)), "TIFF"), "none of JPEG, PNG"),
    "F.jpg": (lambda: encoded(Image.new("F", (8, 8)), "TIFF"), "none of JPEG, PNG"),
    "pixel.png": (transparent, "is transparent in part"),
    "pixel.webp": (lambda: transparent("WEBP"), "is transparent in part"),
    "key.png": (lambda: encoded(GREY, transparency=0), "is transparent in part"),
    "rgbkey.png": (lambda: encoded(RED, transparency=(255, 0, 0)), "is transparent in part"),
    "gif.jpg": (lambda: animated("GIF"), "cannot be decoded .none of JPEG, PNG"),
    "apng.png": (lambda: animated("PNG"), "is animated; a single picture is needed"),
    "moving.webp": (lambda: animated("WEBP"), "is animated; a single picture is needed"),
    "tiff.jpg": (lambda: encoded(RED, "TIFF"), "none of JPEG"),
    "eps.jpg": (lambda: encoded(RED, "EPS"), "none of JPEG"),
    "drawn.svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "none of JPEG"),
    "empty.jpg": (lambda: b"", "none of JPEG"),
    "zeros.jpg": (lambda: bytes(4096), "none of JPEG"),
    "head.jpg": (lambda: encoded(RED, "JPEG")[:60], "cannot be decoded"),
    "cut.jpg": (lambda: encoded(COLORED, "JPEG")[:-30], "cannot be decoded"),
    "cut.png": (lambda: encoded(COLORED)[:-40], "cannot be decoded"),
    "cut.webp": (lambda: encoded(COLORED, "WEBP")[:-9], "cannot be decoded"),
    "bomb.png": (lambda: png(60000, 60000), "has more than 64000000 pixels"),
    "large.png": (lambda: png(8001, 8000), "has 8001x8000 pixels; 64000000 are the most"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_single_picture_is_refused(tmp_path, name):
    make, message = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(make())
    with within(5), pytest.raises(InputError, match=message) as error:
        decoding.read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert "BytesIO" not in str(error.value)


def fifo(path):
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (fifo, "is no regular file"),
        (lambda path: path.mkdir(), "is no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is no regular file"),
        (lambda path: path.symlink_to(path), "cannot be read .Too many levels"),
        (lambda path: None, "there is no such file"),
    ],
)
def test_what_is_no_file_is_refused_at_once(tmp_path, make, message):
    path = tmp_path / "a.jpg"
    make(path)
    with within(5), pytest.raises(InputError, match=re.escape(f"{path}: ") + message):
        decoding.read(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "a.jpg"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with within(5), pytest.raises(InputError, match=r"a\.jpg: has 1099511627776 bytes; the most"):
        decoding.read(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("a\0.jpg", "cannot be read .*null"), ("\udcff.jpg", "no such file"), ("a" * 300, "too long")],
)
def test_strange_names_are_refused(tmp_path, name, message):
    with pytest.raises(InputError, match=message) as error:
        decoding.read(f"{tmp_path}/{name}")
    str(error.value).encode("utf-8", "backslashreplace")


def test_the_first_picture_of_a_phone_s_file_is_taken():
    first, second = (Image.fromarray(a) for a in (COLORED, 255 - COLORED))
    content = encoded(first, "MPO", save_all=True, append_images=[second], quality=95)
    assert Image.open(io.BytesIO(content)).n_frames == 2
    assert np.abs(decoding.decode(content, "a").astype(int) - COLORED).mean() < 8


@pytest.mark.parametrize("size", [(16, 10), (8, 5), (7, 9), (2, 2)])
@pytest.mark.parametrize("count", [0, 1, 8, 11])
def test_many_are_resized_as_one_is(size, count):
    """Twice the size has a way of its own."""
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 5, 3), np.uint8)
    images[:1], images[1:2] = 0, 255
    images = list(images)
    if count > 8:
        images[9] = images[9][:7, :4]  # one of another size among them
    resized = decoding.resize_all(iter(images), size, count)
    assert resized.shape == (count, *size, 3)
    assert resized.dtype == np.uint8
    for image, found in zip(images, resized, strict=True):
        expected = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(found, np.asarray(expected))
