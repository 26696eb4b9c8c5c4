"""Draws an articulated person: a skeleton in space, projected, painted from far to near.

Lengths are shares of an adult's height; x points to the person's left, y up, z ahead. A person
with a yaw of 0 faces the camera.
"""

import dataclasses

import numpy as np
from PIL import Image, ImageDraw

from data_prep.synthetic.people import Person

_HIP, _SHOULDER, _HEAD = 0.5, 0.8, 0.91  # heights of an adult
_THIGH, _SHIN, _UPPER_ARM, _FOREARM = 0.235, 0.225, 0.155, 0.15


@dataclasses.dataclass(frozen=True)
class Pose:
    """How a person stands before the camera.

    Attributes:
      yaw: the direction of the body, in radians; 0 faces the camera, pi shows the back.
      phase: the phase of the walking cycle, in radians.
      pitch: how much the camera looks down; 0 is level.
    """

    yaw: float
    phase: float
    pitch: float


class _Painter:
    """Collects shapes with their depth and paints them from far to near."""

    def __init__(self, size: tuple[int, int], foot: tuple[float, float], scale: float, pose: Pose):
        self.size, self.foot, self.scale, self.pose = size, foot, scale, pose
        self.shapes = []

    def project(self, point) -> tuple[float, float, float]:
        """(x, y, z) -> (column, row, depth); a larger depth is nearer."""
        x, y, z = point
        c, s = np.cos(self.pose.yaw), np.sin(self.pose.yaw)
        across, depth = c * x + s * z, c * z - s * x
        up = y * np.cos(self.pose.pitch) - depth * np.sin(self.pose.pitch)
        return self.foot[0] + across * self.scale, self.foot[1] - up * self.scale, depth

    def polygon(self, corners, color, depth: float) -> None:
        self.shapes.append((depth, "polygon", corners, color))

    def ellipse(self, center, radius, color, nearer: float = 0.0) -> None:
        """An upright ellipse around a point; radius (across, up)."""
        u, v, depth = self.project(center)
        a, b = radius[0] * self.scale, radius[1] * self.scale
        self.shapes.append((depth + nearer, "ellipse", (u - a, v - b, u + a, v + b), color))

    def limb(self, start, end, radii, color, nearer: float = 0.0) -> None:
        """A tapering limb with round ends."""
        (u0, v0, d0), (u1, v1, d1) = self.project(start), self.project(end)
        r0, r1 = (r * self.scale for r in radii)
        angle = np.arctan2(v1 - v0, u1 - u0) + np.pi / 2
        side = np.array([np.cos(angle), np.sin(angle)])
        a, b = np.array([u0, v0]), np.array([u1, v1])
        corners = [a + side * r0, b + side * r1, b - side * r1, a - side * r0]
        depth = (d0 + d1) / 2 + nearer
        self.polygon([tuple(c) for c in corners], color, depth)
        for (u, v), r in (((u0, v0), r0), ((u1, v1), r1)):
            self.shapes.append((depth, "ellipse", (u - r, v - r, u + r, v + r), color))

    def body(self, slices, color, nearer: float = 0.0) -> list[tuple[float, float]]:
        """A closed body from slices (height, half width, half depth, z); returns its outline."""
        left, right = [], []
        for y, width, thickness, z in slices:
            u, v, _ = self.project((0, y, z))
            half = self.scale * np.hypot(
                width * np.cos(self.pose.yaw), thickness * np.sin(self.pose.yaw)
            )
            left.append((u - half, v))
            right.append((u + half, v))
        outline = left + right[::-1]
        self.polygon(outline, color, nearer)
        return outline

    def paint(self, image: Image.Image) -> None:
        """Paints everything onto the image, far parts a little darker."""
        draw = ImageDraw.Draw(image)
        for depth, kind, corners, color in sorted(self.shapes, key=lambda s: s[0]):
            light = float(np.clip(1.0 + 0.9 * depth, 0.82, 1.08))
            fill = tuple(int(min(255, c * light)) for c in color)
            getattr(draw, kind)(corners, fill=fill)


def _legs(painter: _Painter, person: Person, hip: float) -> None:
    build = person.build
    swing = 0.5 * np.sin(painter.pose.phase)
    trousers = person.has("clothes") == "pants"
    long = person.has("down") == "long"
    for side, angle in ((1, swing), (-1, -swing)):
        length = hip / _HIP
        top = np.array([side * 0.06, hip, 0.0])
        knee = top + length * _THIGH * np.array([0, -np.cos(angle), np.sin(angle)])
        bend = angle - 0.5 * max(0.0, -np.sin(painter.pose.phase) * side) - 0.08
        ankle = knee + length * _SHIN * np.array([0, -np.cos(bend), np.sin(bend)])
        cloth = person.down[side % len(person.down)]
        thigh = cloth if trousers else person.skin
        shin = cloth if trousers and long else person.skin
        under = 0.0 if trousers else -0.3  # a skirt hides what is under it
        painter.limb(top, knee, (0.06 * build, 0.045 * build), thigh, under)
        painter.limb(knee, ankle, (0.043 * build, 0.03 * build), shin, under - 0.002)
        toe = ankle + np.array([0, -0.012, 0.075])
        heel = ankle + np.array([0, -0.012, -0.01])
        painter.limb(heel, toe, (0.026, 0.022), person.shoes, under)


def _arm(side: int, angle: float, shoulder: float, half: float) -> tuple:
    """(shoulder, elbow, hand) of an arm."""
    top = np.array([side * half, shoulder - 0.02, 0.0])
    elbow = top + _UPPER_ARM * np.array([side * 0.2, -np.cos(angle), np.sin(angle)])
    bend = angle + 0.35
    return top, elbow, elbow + _FOREARM * np.array([0.0, -np.cos(bend), np.sin(bend)])


def _arms(painter: _Painter, person: Person, shoulder: float, half: float) -> None:
    build = person.build
    swing = -0.45 * np.sin(painter.pose.phase)
    long = person.has("up") == "long"
    for side, angle in ((1, swing), (-1, -swing)):
        top, elbow, hand = _arm(side, angle, shoulder, half)
        cloth = person.up[side % len(person.up)]
        sleeve_end = elbow if long else top + 0.62 * (elbow - top)
        painter.limb(top, elbow, (0.034 * build, 0.029 * build), person.skin, nearer=0.004)
        painter.limb(elbow, hand, (0.028 * build, 0.022 * build), person.skin, nearer=0.006)
        painter.limb(top, sleeve_end, (0.042 * build, 0.037 * build), cloth, nearer=0.01)
        if long:
            end = elbow + 0.88 * (hand - elbow)
            painter.limb(elbow, end, (0.036 * build, 0.03 * build), cloth, nearer=0.012)
        painter.ellipse(hand, (0.024, 0.024), person.skin, nearer=0.008)
        if side == 1 and person.has("handbag") == "yes":
            bag = hand + np.array([0.02, -0.11, 0.0])
            painter.limb(hand, bag + np.array([0, 0.05, 0]), (0.007, 0.007), person.pack, 0.02)
            painter.ellipse(bag, (0.07, 0.055), person.pack, nearer=0.03)


def _torso(painter: _Painter, person: Person, hip: float, shoulder: float, half: float) -> None:
    build, female = person.build, person.has("gender") == "female"
    waist = hip + 0.35 * (shoulder - hip)
    waist_half, hip_half = (0.075, 0.105) if female else (0.098, 0.092)
    lean = 0.07 if person.has("age") == "old" else 0.0
    slices = [
        (shoulder + 0.02, 0.05, 0.05, lean),
        (shoulder - 0.01, half, 0.065, lean),
        (shoulder - 0.1, half * 0.95 * build, (0.095 if female else 0.08) * build, 0.7 * lean),
        (waist, waist_half * build, 0.07 * build, 0.3 * lean),
        (hip - 0.01, hip_half * build, 0.08 * build, 0.0),
    ]
    painter.body(slices, person.up[0])
    for i, color in enumerate(person.up[1:] * 2, start=1):  # the pattern of many colours
        share = i / (2 * len(person.up) - 1)
        y = shoulder + share * (hip - shoulder)
        if person.stripes == "level":
            band = [(y + 0.022, half * 0.9, 0.07, 0), (y - 0.022, half * 0.9, 0.07, 0)]
        else:
            band = [(shoulder - 0.02, 0.02 * i, 0.02 * i, 0), (hip, 0.02 * i, 0.02 * i, 0)]
        painter.body(band, color, nearer=0.003 if person.stripes == "level" else 0.004 - i * 1e-4)
    if person.has("clothes") == "dress":
        end = hip - (0.36 if person.has("down") == "long" else 0.17)
        for i, color in enumerate(person.down):  # a skirt, in tiers where of many colours
            a, b = (waist - 0.03 + s / len(person.down) * (end - waist + 0.03) for s in (i, i + 1))
            width = [(y, (0.085 + 0.3 * (waist - y)) * build, 0.09 * build, 0.0) for y in (a, b)]
            painter.body(width, color, nearer=0.075)
    else:
        painter.body(
            [(hip + 0.03, hip_half * build, 0.082 * build, 0), (hip - 0.05, 0.1 * build, 0.08, 0)],
            person.down[0],
            nearer=0.002,
        )


def _head(painter: _Painter, person: Person, shoulder: float) -> None:
    child = person.has("age") == "young"
    lean = 0.1 if person.has("age") == "old" else 0.0
    radius = 0.07 if child else 0.06
    center = np.array([0.0, shoulder + 0.055 + radius, lean])
    painter.limb((0, shoulder, lean * 0.7), center, (0.03, 0.03), person.skin, nearer=0.005)
    painter.ellipse(center, (radius * 0.86, radius * 1.12), person.skin, nearer=0.02)
    back = center + np.array([0, 0.012, -0.035])
    painter.ellipse(back, (radius * 0.95, radius * 1.1), person.hair, nearer=0.02)
    crown = center + np.array([0, radius * 0.72, -0.004])
    painter.ellipse(crown, (radius * 0.84, radius * 0.52), person.hair, nearer=0.03)
    if person.has("hair") == "long":
        end = np.array([0.0, shoulder - 0.09, lean * 0.6 - 0.075])
        painter.limb(back, end, (radius * 0.95, radius * 0.75), person.hair, nearer=0.02)
        for side in (1, -1):
            strand = np.array([side * radius * 0.85, shoulder - 0.02, lean * 0.8 - 0.01])
            painter.limb(
                center + np.array([side * radius * 0.8, 0.02, -0.01]),
                strand,
                (0.02, 0.016),
                person.hair,
                nearer=0.025,
            )
    if person.has("hat") == "yes":
        band = center + np.array([0, radius * 0.75, 0])
        painter.ellipse(band, (radius * 1.05, radius * 0.62), person.shoes, nearer=0.06)
        painter.limb(
            band + np.array([0, -0.02, 0.02]),
            band + np.array([0, -0.025, 0.1]),
            (0.035, 0.02),
            person.shoes,
            nearer=0.065,
        )
    for side in (1, -1):  # eyes, seen from the front alone
        eye = center + np.array([side * 0.02, 0.005, radius])
        if painter.project(eye)[2] > painter.project(center)[2] + 0.02:
            painter.ellipse(eye, (0.007, 0.006), (40, 30, 30), nearer=0.05)


def _luggage(painter: _Painter, person: Person, hip: float, shoulder: float, half: float) -> None:
    if person.has("backpack") == "yes":
        back_shown = np.cos(painter.pose.yaw) < 0
        middle = (shoulder - 0.13, 0.09, 0.075, -0.12)
        slices = [(shoulder - 0.01, 0.075, 0.05, -0.12), middle, (hip + 0.03, 0.085, 0.07, -0.12)]
        painter.body(slices, person.pack, nearer=0.09 if back_shown else -0.09)
        for side in (1, -1):  # straps
            top = (side * half * 0.55, shoulder, 0.075)
            end = (side * half * 0.6, shoulder - 0.17, 0.085)
            painter.limb(top, end, (0.014, 0.014), person.pack)
    if person.has("bag") == "yes":
        for z in (0.09, -0.09):
            start, end = (-half * 0.6, shoulder, z * 0.6), (0.1, hip + 0.02, z)
            painter.limb(start, end, (0.011, 0.011), person.pack, nearer=0.02)
        painter.ellipse((0.13, hip - 0.02, 0.0), (0.065, 0.06), person.pack, nearer=0.04)
    if person.has("age") == "old":  # a walking stick
        _, _, hand = _arm(-1, 0.35, shoulder, half)
        painter.limb(hand, (hand[0], 0.0, hand[2] + 0.06), (0.009, 0.008), (70, 48, 30), 0.03)


def draw(
    image: Image.Image, person: Person, pose: Pose, *, foot: tuple[float, float], scale: float
) -> None:
    """Draws a person onto an image.

    Args:
      image: an RGB image, changed in place.
      person: the person to draw.
      pose: how the person stands.
      foot: (column, row) of the point between the feet, in pixels.
      scale: an adult's height in pixels.
    """
    legs = {"young": 0.86, "teenager": 0.99}.get(person.has("age"), 1.0)
    hip = _HIP * person.height * legs
    trunk = (_SHOULDER - _HIP) * (person.height if person.height > 0.8 else 0.74)
    half = (0.112 if person.has("gender") == "female" else 0.142) * person.build
    half *= 0.8 if person.has("age") == "young" else 1.0
    painter = _Painter(image.size, foot, scale, pose)
    shoulder = hip + trunk
    _legs(painter, person, hip)
    _torso(painter, person, hip, shoulder, half)
    _arms(painter, person, shoulder, half)
    _head(painter, person, shoulder)
    _luggage(painter, person, hip, shoulder, half)
    painter.paint(image)
