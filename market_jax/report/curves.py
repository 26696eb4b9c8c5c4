"""Training curves as a picture."""

from pathlib import Path

from matplotlib.figure import Figure


def draw(lines: list[dict[str, float]], path: Path) -> None:
    """Draws loss and accuracy against the step, training and validation.

    Args:
      lines: of metrics.jsonl, each with "step".
      path: of the PNG.
    """
    names = [n for n in ("loss", "accuracy") if any(f"val/{n}" in line for line in lines)]
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
