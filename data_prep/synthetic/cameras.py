"""Six synthetic cameras: background, light, colour cast, viewpoint, height, blur, JPEG quality."""

import dataclasses
import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_prep.synthetic import figure, people
from data_prep.synthetic.people import Person

SIZE = (64, 128)  # of a crop: width, height
_FINE = 4  # drawn this many times larger
_CANVAS = (SIZE[0] * _FINE, SIZE[1] * _FINE)


@dataclasses.dataclass(frozen=True)
class Camera:
    """A camera and what it sees.

    Attributes:
      ground, wall: RGB colours of the background.
      structure: the thing in the background: "tiles", "bars", "bicycles", "grass", "steps" or
        "door".
      gain: factor of the brightness.
      cast: factors of red, green and blue.
      yaw: the direction that most people walk in, in radians; see `figure.Pose`.
      pitch: how much it looks down; see `figure.Pose`.
      blur: standard deviation of the blur, in pixels of the crop.
      quality: quality of the JPEG.
      place: (x, y) on the site's map, in metres.
    """

    ground: tuple[int, int, int]
    wall: tuple[int, int, int]
    structure: str
    gain: float
    cast: tuple[float, float, float]
    yaw: float
    pitch: float
    blur: float
    quality: int
    place: tuple[float, float]


CAMERAS = {
    1: Camera(
        (150, 146, 138), (96, 104, 98), "tiles", 1.05, (1.04, 1.0, 0.95), 0.4, 0.22, 0.4, 92, (0, 0)
    ),
    2: Camera(
        (120, 120, 122),
        (70, 72, 78),
        "bicycles",
        0.9,
        (0.95, 1.0, 1.07),
        2.6,
        0.12,
        0.5,
        88,
        (40, 5),
    ),
    3: Camera(
        (166, 158, 140),
        (150, 140, 120),
        "bars",
        0.98,
        (1.06, 1.01, 0.92),
        1.57,
        0.3,
        0.3,
        94,
        (70, 40),
    ),
    4: Camera(
        (104, 112, 96),
        (72, 104, 60),
        "grass",
        1.0,
        (0.97, 1.05, 0.96),
        -1.4,
        0.18,
        0.7,
        80,
        (30, 60),
    ),
    5: Camera(
        (134, 130, 130), (48, 46, 52), "door", 0.78, (1.0, 0.97, 1.0), 3.1, 0.08, 0.6, 85, (5, 35)
    ),
    6: Camera(
        (140, 136, 128),
        (116, 112, 108),
        "steps",
        0.95,
        (0.98, 0.98, 1.04),
        -0.5,
        0.26,
        1.0,
        72,
        (90, 0),
    ),
}
WALKING_SPEED = 1.4  # metres a second
FRAME_RATE = 25  # frames a second


def travel_frames(a: int, b: int) -> float:
    """Mean number of frames that a person takes from camera a to camera b.

    Args:
      a: the number of a camera, from 1.
      b: the number of another camera.
    """
    (xa, ya), (xb, yb) = CAMERAS[a].place, CAMERAS[b].place
    return float(np.hypot(xa - xb, ya - yb)) / WALKING_SPEED * FRAME_RATE


def background(camera: Camera, rng: np.random.Generator) -> Image.Image:
    """Draws a part of what the camera sees when nobody is there.

    Args:
      camera: the camera.
      rng: source of everything random.
    """
    width, height = _CANVAS
    horizon = int(height * (0.34 - 0.6 * camera.pitch + rng.uniform(-0.03, 0.03)))
    image = Image.new("RGB", _CANVAS, camera.ground)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width, max(horizon, 0)), fill=camera.wall)
    offset = int(rng.integers(0, width))
    dark = tuple(int(c * 0.72) for c in camera.ground)
    light = tuple(min(255, int(c * 1.15)) for c in camera.wall)
    if camera.structure in ("tiles", "steps"):
        gap = 34 if camera.structure == "tiles" else 58
        for y in range(horizon + offset % gap, height, gap):
            draw.line((0, y, width, y), fill=dark, width=3 if camera.structure == "tiles" else 14)
        if camera.structure == "tiles":
            for x in range(-width, 2 * width, 48):
                x0 = x + offset % 48
                draw.line((width / 2 + (x0 - width / 2) * 0.5, horizon, x0, height), dark, 3)
    elif camera.structure == "bars":
        for x in range(offset % 52 - 52, width, 52):
            draw.rectangle((x, 0, x + 12, int(height * 0.8)), fill=light)
    elif camera.structure == "bicycles":
        for x in range(offset % 70 - 70, width, 70):
            draw.ellipse((x, horizon - 10, x + 64, horizon + 54), outline=(28, 28, 30), width=5)
            draw.line((x + 32, horizon + 22, x + 60, horizon - 36), fill=(150, 40, 40), width=5)
    elif camera.structure == "door":
        x = offset - 90
        draw.rectangle((x, -10, x + 150, int(height * 0.72)), fill=(20, 20, 24))
        draw.line((x, 0, x, int(height * 0.72)), fill=(110, 110, 116), width=8)
    else:  # grass
        for _ in range(240):
            x, y = rng.integers(0, width), rng.integers(max(horizon, 0), height)
            draw.line((x, y, x + 3, y - 14), fill=(70 + int(rng.integers(50)), 118, 58), width=3)
    return image


def expose(image: Image.Image, camera: Camera, rng: np.random.Generator) -> bytes:
    """Turns a drawing into the camera's picture: noise, colours, blur, and an encoded JPEG.

    Args:
      image: the drawing, an RGB image.
      camera: the camera.
      rng: source of everything random.
    """
    crop = image.resize(SIZE, Image.Resampling.BOX)
    crop = crop.filter(ImageFilter.GaussianBlur(camera.blur * rng.uniform(0.7, 1.3)))
    pixels = np.asarray(crop, np.float32)
    shadow = np.linspace(1.06, 0.9, SIZE[0])[None, :, None]
    shadow = shadow if rng.random() < 0.5 else shadow[:, ::-1]
    light = camera.gain * rng.uniform(0.9, 1.1) * np.array(camera.cast)
    pixels = pixels * shadow * light + rng.normal(0, 4.0, pixels.shape)
    buffer = io.BytesIO()
    crop = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    crop.save(buffer, "JPEG", quality=camera.quality)
    return buffer.getvalue()


def _pose(camera: Camera, rng: np.random.Generator, turned: bool) -> figure.Pose:
    yaw = camera.yaw + rng.normal(0, 0.35) + (np.pi if turned else 0.0)
    return figure.Pose(yaw, rng.uniform(0, 2 * np.pi), camera.pitch + rng.normal(0, 0.02))


def shoot(
    camera: Camera, person: Person, rng: np.random.Generator, *, turned: bool = False
) -> bytes:
    """Draws the crop of a person, as a detector would cut it out, as an encoded JPEG.

    Args:
      camera: the camera.
      person: the person that is shown.
      rng: source of everything random: pose, place and light.
      turned: whether the person walks against the camera's usual direction.
    """
    image = background(camera, rng)
    width, height = _CANVAS
    scale = height * rng.uniform(0.84, 0.93) / (0.35 + 0.65 * person.height)
    foot = (width * rng.uniform(0.44, 0.56), height * rng.uniform(0.94, 0.985))
    person = people.in_light(person, rng)
    figure.draw(image, person, _pose(camera, rng, turned), foot=foot, scale=scale)
    return expose(image, camera, rng)


def shoot_junk(camera: Camera, strangers: list[Person], rng: np.random.Generator) -> bytes:
    """Draws a crop without a whole person: background, a body part, or two half people.

    Args:
      camera: the camera.
      strangers: two people, of whom parts may be shown.
      rng: source of everything random.
    """
    image = background(camera, rng)
    width, height = _CANVAS
    kind = rng.choice(["background", "part", "halves"])
    if kind == "part":
        foot = (width * rng.uniform(0.2, 0.8), height * rng.uniform(1.2, 2.2))
        figure.draw(image, strangers[0], _pose(camera, rng, False), foot=foot, scale=2.1 * height)
    elif kind == "halves":
        for person, x in zip(strangers, (0.0, 1.0), strict=True):
            foot = (width * (x + rng.uniform(-0.06, 0.06)), height * rng.uniform(0.94, 1.05))
            figure.draw(image, person, _pose(camera, rng, False), foot=foot, scale=0.92 * height)
    return expose(image, camera, rng)
