"""A page with the pictures of a gallery that answer a query."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from market_jax.data import decoding
from market_jax.errors import InputError
from market_jax.report import pages
from market_jax.report.pictures import data_url

SURE = 0.7  # the probability from which a class is said

STYLE = """
.found { display: flex; flex-wrap: wrap; gap: .9rem; margin: 1rem 0 2rem }
.found figure { margin: 0; width: 7.2rem; font-size: 12px; color: #5b6470; line-height: 1.35 }
.found img { width: 7.2rem; height: 14.4rem; object-fit: contain; background: #eef1f4;
  border-radius: 4px; display: block; margin-bottom: .3rem; box-sizing: border-box }
.found .near img { border: 3px solid #1a8f3c } .found .query img { border: 3px solid #1c1f23 }
.found b { color: #1c1f23 } .found .gone { height: 14.4rem; background: #eef1f4; padding: .6rem;
  border-radius: 4px; box-sizing: border-box; margin-bottom: .3rem }
"""


def wears(attributes: Mapping[str, tuple[str, float]]) -> str:
    """What a picture is surely taken to show: "female, up red, backpack".

    Args:
      attributes: label -> (class, probability).
    """
    words = []
    for label, (name, probability) in attributes.items():
        if probability < SURE or name == "no":
            continue
        readable = label.replace("_", " ")
        words.append(readable if name == "yes" else f"{readable} {name}")
    return ", ".join(words)


def line(same: Any, hits: Sequence[Any]) -> str:
    """A sentence on how many answers are taken for the same person.

    Args:
      same: a `calibration.Calibration`.
      hits: answers, each with a "distance".
    """
    count = sum(hit.distance <= same.threshold for hit in hits)
    return (
        f"{count} of these are within {same.threshold:.4f}, up to which two pictures are taken for "
        f"the same person: {100 * same.precision:.0f} % of such pairs were, and "
        f"{100 * same.recall:.0f} % of all of the same person were found ({same.judged})."
    )


def page(query: np.ndarray, hits: Sequence[Any], about: Mapping[str, Any], same: Any) -> str:
    """The text of a self-contained HTML page: the query, and its answers in their order.

    Args:
      query: the picture, uint8 [H, W, 3].
      hits: the answers, `galleries.gallery.Hit`.
      about: what was asked: "query", "gallery", "where".
      same: a `calibration.Calibration`, or None where it is not known.
    """
    lines = [f"Query {about['query']} in the gallery {about['gallery']}"]
    lines += [f"where {about['where']}"] if about["where"] else []
    lines += [line(same, hits)] if same else []
    first = _figure(f'<img src="{data_url(query)}" alt="query">', "query", "<b>query</b>")
    limit = same.threshold if same else -1.0
    shown = [_answer(rank, hit, hit.distance <= limit) for rank, hit in enumerate(hits, start=1)]
    parts = [f'<div class="found">{"".join([first, *shown])}</div>']
    if not hits:
        parts.append("<p>No picture holds the condition.</p>")
    return pages.document("Who is this?", lines, parts, STYLE)


def _answer(rank: int, hit: Any, near: bool) -> str:
    camera = f", camera {hit.camid}" if hit.camid >= 0 else ""
    caption = f"<b>{rank}.</b> {hit.distance:.3f}{camera}<br>{html.escape(wears(hit.attributes))}"
    name = html.escape(hit.path)
    try:
        picture = f'<img src="{data_url(decoding.read(hit.path))}" alt="{name}" title="{name}">'
    except InputError:
        picture = f'<div class="gone" title="{name}">the picture is no longer there</div>'
    return _figure(picture, "near" if near else "", caption)


def _figure(picture: str, kind: str, caption: str) -> str:
    return f'<figure class="{kind}">{picture}<figcaption>{caption}</figcaption></figure>'
