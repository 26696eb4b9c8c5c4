"""Training curves as a picture."""

import io
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from market_jax.files import write_atomically

_WANTED = ("loss", "loss/reconstruction", "loss/kl", "loss/mmd", "accuracy")


def _names(lines: list[dict[str, float]]) -> list[str]:
    """The metrics that are drawn: the usual ones, and every mAP that was evaluated."""
    evaluated = {key.removeprefix("val/") for line in lines for key in line if "val/" in key}
    return [n for n in _WANTED if n in evaluated] + sorted(n for n in evaluated if "mAP" in n)


def draw(lines: list[dict[str, float]], path: Path) -> None:
    """Draws loss, its terms, accuracy and mAP of training and validation against the step.

    Args:
      lines: the lines of metrics.jsonl, each with "step".
      path: where the PNG is written; nothing is written before the first evaluation.
    """
    names = _names(lines)
    if not names:
        return
    figure = Figure(figsize=(5 * len(names), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for split, style in (("train", {"alpha": 0.6}), ("val", {"marker": "o", "markersize": 3})):
            key = f"{split}/{name}"
            points = [(line["step"], line[key]) for line in lines if key in line]
            if points:
                axes.plot(*zip(*points, strict=True), label=split, **style)
        axes.set(xlabel="step", ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    write_atomically(path, buffer.getvalue())


def draw_dimensions(kl: np.ndarray) -> np.ndarray:
    """Draws the KL divergence of each latent dimension, the largest first.

    Args:
      kl: the divergences [D], in nats.

    Returns:
      uint8 [H, W, 3].
    """
    figure = Figure(figsize=(6, 3.2), layout="constrained", dpi=120)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.bar(np.arange(len(kl)), np.sort(kl)[::-1], width=1.0)
    axes.set(xlabel="latent dimension, sorted", ylabel="KL, nats")
    axes.grid(alpha=0.3)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
