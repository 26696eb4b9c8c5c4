"""Synthetic people: how each one looks, apart from pose and camera."""

import dataclasses

import numpy as np

from market_jax.data.attributes import CLASSES

RGB = {
    "black": (32, 32, 36),
    "white": (232, 232, 228),
    "red": (196, 36, 40),
    "purple": (122, 52, 150),
    "yellow": (226, 196, 48),
    "gray": (132, 134, 138),
    "blue": (44, 84, 184),
    "green": (46, 140, 66),
    "pink": (232, 140, 172),
    "brown": (112, 74, 44),
}
_DARK = ("black", "brown", "gray")  # of shoes, hats and luggage
SKINS = ((238, 204, 178), (222, 178, 142), (188, 138, 100), (126, 86, 60))
HAIRS = ((24, 20, 20), (52, 34, 24), (96, 62, 34), (172, 132, 72))

# class probabilities, in the vocabulary's order; clothes and hair depend on gender
_CHANCES = {
    "age": (0.12, 0.3, 0.42, 0.16),
    "backpack": (0.68, 0.32),
    "bag": (0.72, 0.28),
    "handbag": (0.78, 0.22),
    "down": (0.55, 0.45),
    "up": (0.42, 0.58),
    "hat": (0.78, 0.22),
    "gender": (0.52, 0.48),
}
_LONG_HAIR, _DRESS = (0.12, 0.75), (0.0, 0.45)  # for male, female


@dataclasses.dataclass(frozen=True)
class Person:
    """The look of one identity.

    Attributes:
      attributes: attribute -> label, 12 of them.
      up, down: RGB colours of the clothes; several if the label is "multicolor".
      skin, hair, shoes, pack: RGB colours.
      height: the height as a share of an adult's.
      build: factor of the width of body and limbs.
      stripes: direction of the pattern of multicoloured clothes.
    """

    attributes: dict[str, int]
    up: tuple[tuple[int, int, int], ...]
    down: tuple[tuple[int, int, int], ...]
    skin: tuple[int, int, int]
    hair: tuple[int, int, int]
    shoes: tuple[int, int, int]
    pack: tuple[int, int, int]
    height: float
    build: float
    stripes: str

    def has(self, name: str) -> str:
        """The name of the person's class of an attribute."""
        return CLASSES[name][self.attributes[name]]


def _shade(rng: np.random.Generator, rgb, spread: float) -> tuple[int, int, int]:
    """The colour, somewhat lighter or darker."""
    light = rng.uniform(1 - spread, 1 + spread)
    return tuple(int(np.clip(c * light + rng.normal(0, 20 * spread), 0, 255)) for c in rgb)


def _clothes(rng: np.random.Generator, color: str) -> tuple[tuple[int, int, int], ...]:
    names = [color] if color != "multicolor" else rng.permutation(list(RGB))[:3].tolist()
    return tuple(RGB[name] for name in names)


def in_light(person: Person, rng: np.random.Generator) -> Person:
    """The person with the clothes' colours as the light of one moment shows them.

    Clothes of the same colour differ more between pictures than between persons, so that nobody can
    be recognised by an exact shade.

    Args:
      person: the person.
      rng: source of everything random.
    """
    shades = {
        name: tuple(_shade(rng, rgb, 0.2) for rgb in getattr(person, name))
        for name in ("up", "down")
    }
    shades |= {name: _shade(rng, getattr(person, name), 0.12) for name in ("shoes", "pack", "hair")}
    return dataclasses.replace(person, **shades)


def outfits(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Draws pairs of upper and lower colour labels; all labels appear before one comes twice.

    Args:
      rng: source of everything random.
      count: the number of pairs.
    """
    uppers, lowers = (len(CLASSES[name]) for name in ("up_color", "down_color"))

    def labels(classes):
        rounds = -(-count // classes)
        return np.concatenate([rng.permutation(classes) for _ in range(rounds)])[:count]

    return list(zip(labels(uppers).tolist(), labels(lowers).tolist(), strict=True))


def person(rng: np.random.Generator, outfit: tuple[int, int]) -> Person:
    """Draws a random person in a given outfit.

    Args:
      rng: source of everything random.
      outfit: the labels of the upper and the lower colour.
    """
    labels = {name: int(rng.choice(len(p), p=p)) for name, p in _CHANCES.items()}
    female = labels["gender"]
    labels["hair"] = int(rng.random() < _LONG_HAIR[female])
    labels["clothes"] = int(rng.random() >= _DRESS[female])
    labels["up_color"], labels["down_color"] = outfit
    labels = {name: labels[name] for name in CLASSES}
    age = CLASSES["age"][labels["age"]]
    hair = HAIRS[rng.integers(len(HAIRS))] if age != "old" else (206, 206, 208)
    height = {"young": 0.66, "teenager": 0.9, "adult": 1.0, "old": 0.93}[age]
    return Person(
        attributes=labels,
        up=_clothes(rng, CLASSES["up_color"][outfit[0]]),
        down=_clothes(rng, CLASSES["down_color"][outfit[1]]),
        skin=SKINS[rng.integers(len(SKINS))],
        hair=hair,
        shoes=RGB[_DARK[rng.integers(len(_DARK))]],
        pack=RGB[_DARK[rng.integers(len(_DARK))]],
        height=height * rng.uniform(0.96, 1.04),
        build=rng.uniform(0.92, 1.1) * (0.88 if age == "teenager" else 1.0),
        stripes=("level", "upright")[rng.integers(2)],
    )
