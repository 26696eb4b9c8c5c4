"""Pages that show where a network looked: masks, or the last map's activation, over the crops."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from PIL import Image

from market_jax.report import pages
from market_jax.report.pictures import data_url, to_uint8

_STYLE = """
.people { display: flex; flex-wrap: wrap; gap: 1.2rem }
.person { display: flex; gap: .3rem; padding: .3rem; border: 1px solid #dde1e6; border-radius: 3px }
figure { margin: 0; font-size: 11px; color: #5b6470; width: 6.2rem; text-align: center;
  overflow-wrap: anywhere }
img { width: 5rem; height: 10rem; display: block; margin: auto; image-rendering: auto }
.wrong figcaption { color: #b3261e }
"""


class Person(NamedTuple):
    """One crop and its attention masks.

    Attributes:
      name: the image's file name.
      picture: the crop, uint8 [H, W, 3].
      masks: title -> mask [h, w], and whether the prediction that was made with it is right.
    """

    name: str
    picture: np.ndarray
    masks: Mapping[str, tuple[np.ndarray, bool]]


def overlay(picture: np.ndarray, mask: np.ndarray, share: float = 0.5) -> np.ndarray:
    """Lays a mask in colours over a picture, from its smallest value (dark) to its largest.

    Args:
      picture: the crop, uint8 [H, W, 3].
      mask: the mask [h, w], with values of any range.
      share: of the colours, 0 to 1; with 1 the picture is not seen.

    Returns:
      uint8 [H, W, 3].
    """
    low, high = float(mask.min()), float(mask.max())
    scaled = (mask - low) / max(high - low, 1e-12)
    size = picture.shape[1], picture.shape[0]
    large = np.asarray(Image.fromarray(scaled.astype(np.float32)).resize(size, Image.BILINEAR))
    colors = colormaps["inferno"](np.clip(large, 0, 1))[..., :3]
    return to_uint8((1 - share) * picture / 255 + share * colors)


def _figure(title: str, caption: str, picture: np.ndarray, kind: str = "") -> str:
    title = html.escape(title)
    return (
        f'<figure class="{kind}"><img src="{data_url(picture)}" alt="{title}" title="{title}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def page(
    title: str,
    about: Sequence[str],
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    people: Sequence[Person],
) -> str:
    """The text of a self-contained HTML page: a table, then crops with their masks.

    Args:
      title: the heading of the page.
      about: paragraphs that stand below the heading.
      header: the names of the table's columns.
      rows: the cells of the table's rows.
      people: the crops with their masks.
    """
    parts = [f"<h2>Metrics, percent</h2>{pages.table(header, rows)}"]
    if people:
        parts.append(
            "<h2>Where the network looked</h2><p>The mask's mean over channels, from its smallest "
            "value in a crop (dark) to its largest (bright); the numbers are these two.</p>"
        )
    cards = []
    for person in people:
        figures = [_figure(person.name, "", person.picture)]
        for name, (mask, right) in person.masks.items():
            caption = f"{name}: {mask.min():.3g} to {mask.max():.3g}"
            kind = "right" if right else "wrong"
            caption += "" if right else " (wrong answer)"
            figures.append(_figure(person.name, caption, overlay(person.picture, mask), kind))
        cards.append(f'<div class="person">{"".join(figures)}</div>')
    parts.append(f'<div class="people">{"".join(cards)}</div>')
    return pages.document(title, about, parts, _STYLE)


def activation_page(
    title: str, about: Sequence[str], crops: Iterable[tuple[str, np.ndarray, np.ndarray]]
) -> str:
    """The text of a self-contained HTML page: each crop, its activation, and one over the other.

    Args:
      title: the heading of the page.
      about: paragraphs that stand below the heading.
      crops: the name of each, the picture uint8 [H, W, 3], and the map [h, w].
    """
    cards = []
    for name, picture, mask in crops:
        shown = (picture, overlay(picture, mask, 1.0), overlay(picture, mask))
        figures = [
            _figure(name, caption, each)
            for caption, each in zip((name, "activation", "both"), shown, strict=True)
        ]
        cards.append(f'<div class="person">{"".join(figures)}</div>')
    explained = (
        "<p>The sum of the squares of all channels of the network's last map, from its smallest "
        "value in a crop (dark) to its largest (bright).</p>"
    )
    parts = [explained, f'<div class="people">{"".join(cards)}</div>']
    return pages.document(title, about, parts, _STYLE)
