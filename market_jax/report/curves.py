"""Training curves as a picture."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def draw(lines: list[dict[str, float]], path: Path) -> None:
    """Draws loss, its terms and accuracy against the step, training and validation.

    Args:
      lines: of metrics.jsonl, each with "step".
      path: of the PNG.
    """
    wanted = ("loss", "loss/reconstruction", "loss/kl", "loss/mmd", "accuracy")
    names = [n for n in wanted if any(f"val/{n}" in line for line in lines)]
    if not names:
        return
    figure = Figure(figsize=(5 * len(names), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for split, style in (("train", {"alpha": 0.6}), ("val", {"marker": "o", "markersize": 3})):
            key = f"{split}/{name}"
            points = [(line["step"], line[key]) for line in lines if key in line]
            axes.plot(*zip(*points, strict=True), label=split, **style)
        axes.set(xlabel="step", ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def draw_dimensions(kl: np.ndarray, path: Path) -> None:
    """Draws the KL divergence of each latent dimension [D], in nats, the largest first."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.bar(np.arange(len(kl)), np.sort(kl)[::-1], width=1.0)
    axes.set(xlabel="latent dimension, sorted", ylabel="KL, nats")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
