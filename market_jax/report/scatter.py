"""A picture of points in groups."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import CSS4_COLORS
from matplotlib.figure import Figure

from market_jax.files import write_atomically

LISTED = 20  # groups that a legend can name
_COLORS = [*("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9"), "#1c1f23"]  # C7 is grey
_MARKERS = "o^sDvP*X<>"
_GREY, _EDGE = "#c4c9cf", "#5b6470"
_NOBODY = {"color": _GREY, "marker": "o"}


def styles(names: Sequence[str]) -> list[dict]:
    """Colours and markers that tell groups apart: a second marker begins where the colours end.

    Args:
      names: of the groups; those whose last word is a colour have it. Beyond those of a legend each
        has a colour of its own.
    """
    plain, words = _plain_styles(len(names)), [name.rsplit(" ", 1)[-1] for name in names]
    if not any(word in CSS4_COLORS for word in words):
        return plain
    return [
        {"color": word, "marker": "o", "edgecolors": _EDGE}
        if word in CSS4_COLORS
        else style | {"marker": "*"}
        for word, style in zip(words, plain, strict=True)
    ]


def _plain_styles(count: int) -> list[dict]:
    if count <= LISTED:
        known = len(_COLORS)
        return [{"color": _COLORS[i % known], "marker": _MARKERS[i // known]} for i in range(count)]
    order = np.arange(count) * 0.618034 % 1  # neighbours in the list are far apart in hue
    colors = colormaps["hsv"](order) * [0.85, 0.85, 0.85, 1]
    return [
        {"color": tuple(color), "marker": _MARKERS[i % 4]}
        for i, color in enumerate(colors.tolist())
    ]


def _plot(axes: Axes, points: np.ndarray, groups: np.ndarray, names: Sequence[str]) -> None:
    """The points of each group, those without one below all others."""
    size = float(np.clip(12_000 / len(points), 12, 60))
    look = {"s": size, "linewidths": 0.4, "edgecolors": "white"}
    for number, (name, style) in enumerate(zip(names, styles(names), strict=True)):
        axes.scatter(*points[groups == number].T, label=name, zorder=2, **(look | style))
    nobody = groups < 0
    if nobody.any():
        axes.scatter(*points[nobody].T, label="unknown", zorder=1, **(look | _NOBODY))


def draw(
    points: np.ndarray,
    groups: np.ndarray,
    names: Sequence[str],
    path: Path,
    *,
    title: str,
    labels: tuple[str, str] | None = None,
) -> None:
    """Draws points in the colours of their groups, with a legend where it can name them.

    Args:
      points: [M, 2].
      groups: the position of each point's group in `names`, int [M]; -1 has none and is grey.
      names: of the groups.
      path: where the PNG is written.
      title: stands above the points.
      labels: what the axes are; None are axes that mean nothing, in the same scale.
    """
    figure = Figure(figsize=(9.5, 7), layout="constrained")
    axes = figure.subplots()
    _plot(axes, points, groups, names)
    axes.set_title(title, fontsize=12, loc="left")
    if labels:
        axes.set_xlabel(labels[0], fontsize=11)
        axes.set_ylabel(labels[1], fontsize=11)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    else:
        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_color(_GREY)
    if len(names) <= LISTED:
        place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
        axes.legend(**place, fontsize=10, frameon=False, markerscale=1.2)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png")
    write_atomically(path, buffer.getvalue())
