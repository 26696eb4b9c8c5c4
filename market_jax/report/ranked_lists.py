"""A page that shows how a ranking went: metrics, CMC curves, ranked lists."""

import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from market_jax.report import pages
from market_jax.report.pictures import data_url
from market_jax.typing import Columns

_STYLE = """
.list { display: flex; gap: .35rem; margin: .2rem 0 1rem; overflow-x: auto }
figure { margin: 0; text-align: center; font-size: 11px; color: #5b6470; flex: 0 0 4.6rem }
figure img { width: 4rem; height: 8rem; object-fit: fill; border: .25rem solid #8a94a0;
  border-radius: 3px; display: block; margin: auto }
.query { margin-right: .8rem } .query img { border-color: #1c1f23 }
.right img { border-color: #1a8f3c } .wrong img { border-color: #d22f27 }
.left img { border-color: #c3c9d0; opacity: .4 }
.key span { display: inline-block; margin-right: 1.2rem }
.key b { display: inline-block; width: .9em; height: .9em; margin-right: .35em; border-radius: 2px;
  vertical-align: -.1em }
"""
_KEY = (("#1a8f3c", "right"), ("#d22f27", "wrong"), ("#c3c9d0", "own camera, does not count"))


class Answer(NamedTuple):
    """One picture of a ranked list.

    Attributes:
      picture: the picture, uint8 [H, W, 3].
      kind: "query", "right", "wrong", or "left" for a picture that is left out of the metrics.
      caption: the text below the picture.
      name: the file name, shown when the mouse is over the picture.
    """

    picture: np.ndarray
    kind: str
    caption: str
    name: str


def _picture(answer: Answer) -> str:
    name, caption = html.escape(answer.name), html.escape(answer.caption)
    return (
        f'<figure class="{answer.kind}"><img src="{data_url(answer.picture)}" alt="{name}" '
        f'title="{name}"><figcaption>{caption}</figcaption></figure>'
    )


def _curves(cmc: Mapping[str, np.ndarray]) -> str:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, values in cmc.items():
        axes.plot(np.arange(1, len(values) + 1), 100 * values, label=name, linewidth=1.8)
    axes.set(xlabel="rank", ylabel="queries with a match, %", ylim=(None, 100.5))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def choose_queries(precision: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Chooses the queries with the lowest, the middle and the highest average precision.

    Args:
      precision: the average precision of each query, [Q]; NaN is never chosen.
      count: the number of queries of each kind.

    Returns:
      Heading -> positions of queries, the lowest first, for the best queries the highest first.
    """
    order = np.argsort(precision, kind="stable")
    order = order[: np.count_nonzero(~np.isnan(precision))]
    middle = max((len(order) - count) // 2, 0)
    return {
        "Worst queries": order[:count],
        "Median queries": order[middle : middle + count],
        "Best queries": order[::-1][:count],
    }


def answers(
    query: tuple[Columns, int],
    gallery: Columns,
    distances: np.ndarray,
    *,
    pictures: tuple[Callable, Callable],
    count: int,
    by_camera: bool,
) -> list[Answer]:
    """The ranked list of one query: the query, then the nearest gallery images.

    Args:
      query: columns of the queries, and the query's position in them.
      gallery: columns of G images.
      distances: the query's distances [G]; what is infinitely far is not shown.
      pictures: two functions, for queries and for the gallery: name -> picture uint8 [H, W, 3].
      count: the number of gallery images that are shown; junk is passed over.
      by_camera: whether images of the same person from the query's own camera do not count.
    """
    side, row = query
    pid, camid, name = side["pid"][row], side["camid"][row], str(side["name"][row])
    shown = [Answer(pictures[0](name), "query", f"{pid}, camera {camid}", name)]
    counted = np.flatnonzero((gallery["pid"] >= 0) & np.isfinite(distances))
    for at in counted[np.argsort(distances[counted], kind="stable")[:count]]:
        right = gallery["pid"][at] == pid
        own = by_camera and right and gallery["camid"][at] == camid
        kind = "left" if own else "right" if right else "wrong"
        name = str(gallery["name"][at])
        caption = f"{distances[at]:.3f}, camera {gallery['camid'][at]}"
        shown.append(Answer(pictures[1](name), kind, caption, name))
    return shown


def page(
    title: str,
    about: Sequence[str],
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    cmc: Mapping[str, np.ndarray],
    lists: Mapping[str, Sequence[Sequence[Answer]]],
) -> str:
    """The text of a self-contained HTML page: metrics, CMC curves, ranked lists.

    Args:
      title: the heading of the page.
      about: paragraphs that stand below the heading.
      header: the column names of the table of metrics.
      rows: the cells of the table's rows.
      cmc: name of a curve -> fractions [max_rank].
      lists: heading -> ranked lists, see `answers`.
    """
    key = "".join(f'<span><b style="background:{c}"></b>{text}</span>' for c, text in _KEY)
    parts = [
        f"<h2>Metrics, percent</h2>{pages.table(header, rows)}",
        f"<h2>Cumulative matching</h2>{_curves(cmc)}",
        f'<h2>Ranked lists</h2><p class="key">{key}</p>',
    ]
    for heading, several in lists.items():
        parts.append(f"<h2>{html.escape(heading)}</h2>")
        parts += [f'<div class="list">{"".join(map(_picture, one))}</div>' for one in several]
    return pages.document(title, about, parts, _STYLE)
