"""--task=map: a run's embeddings in two dimensions, to be looked at."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from market_jax import inference, kinds, seen
from market_jax.data import columns as columns_
from market_jax.files import write_atomically
from market_jax.registry import choose
from market_jax.report import scatter
from market_jax.retrieval import projection
from market_jax.runs import Run
from market_jax.tasks import inputs
from market_jax.typing import Columns, NonNegativeInt, Seed

NEEDS = "reid"  # what the newest run must be able to do
METHODS = {"pca": "principal components", "tsne": "t-SNE"}


def choose_people(columns: Columns, count: int) -> Columns:
    """The images of the persons who have most.

    Args:
      columns: columns of M images.
      count: the number of persons; 0 takes all images, and so does a split that knows nobody.
    """
    pids, sizes = np.unique(columns["pid"][columns["pid"] > 0], return_counts=True)
    if not count or not len(pids):
        return columns
    chosen = pids[np.argsort(-sizes, kind="stable")][:count]
    return columns_.select(columns, np.isin(columns["pid"], chosen))


def group(
    columns: Columns, color: str, classes: Mapping[str, Sequence[str]]
) -> tuple[np.ndarray, list[str]]:
    """The groups that images are coloured by.

    Args:
      columns: columns of M images.
      color: "person", "camera", or a label of the images.
      classes: label -> class names.

    Returns:
      The position of each image's group, int [M], -1 where it is unknown; and the groups' names.

    Raises:
      InputError: there is no such label.
    """
    labels = {name: names for name, names in classes.items() if name in columns}
    choose(color, dict.fromkeys(("person", "camera", *labels)), "color")
    if color in labels:
        present = np.unique(columns[color][columns[color] >= 0])
        names = [f"{color}: {labels[color][i]}" for i in present]
        return _positions(columns[color], present), names
    key, least = ("pid", 1) if color == "person" else ("camid", 0)
    present = np.unique(columns[key][columns[key] >= least])
    return _positions(columns[key], present), [f"{color} {number}" for number in present]


def _positions(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """The place of each value among sorted ones, -1 where it is none of them."""
    known = np.isin(values, present)
    return np.where(known, np.searchsorted(present, values), -1)


def as_csv(columns: Columns, points: np.ndarray) -> str:
    """The text of the table: name, x, y, pid, camid.

    Args:
      columns: columns of M images.
      points: [M, 2].
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("name", "x", "y", "pid", "camid"))
    for i, (x, y) in enumerate(points):
        row = columns["name"][i], f"{x:.6g}", f"{y:.6g}", columns["pid"][i], columns["camid"][i]
        writer.writerow(row)
    return buffer.getvalue()


def _open(run: Run, what: inputs.Judged) -> tuple[Columns, Mapping[str, Sequence[str]]]:
    """Columns of the images, and the classes of their labels."""
    what.check()
    if what.images:
        size = run.config.data.image_size
        folder = Path(what.images)
        return inputs.read_folder(folder, size, named=False, skip_bad=what.skip_bad), {}
    dataset = inputs.data_of(run)
    return dataset.open(what.split), dataset.schema.labels


def _project(features: np.ndarray, method: str, seed: int):
    """Points [M, 2], and what the axes are; None where they mean nothing."""
    if method == "tsne":
        return projection.tsne(features, seed=seed), None
    points, shares = projection.pca(features)
    ordinals = zip(("first", "second"), shares, strict=True)
    return points, tuple(
        f"{name} component, {share:.0%} of the variance" for name, share in ordinals
    )


def run(
    run: Run,
    *,
    split: str = "val",
    images: str | None = None,
    skip_bad: bool = False,
    color: str = "person",
    method: str = "tsne",
    count: int = 20,
    seed: int = 0,
) -> str:
    """Draws a map of a run's embeddings, and writes its points.

    Args:
      run: a trained run.
      split: What is shown: val, holdout, train, test or query.
      images: Show this folder of crops, of any name, instead of a split.
      skip_bad: Leave bad pictures of --images out and list them.
      color: person, camera, or a label of the data set, such as gender.
      method: tsne (who is near whom) or pca (what varies most).
      count: How many persons are shown, those who have most pictures; 0 shows all pictures.
      seed: Seeds t-SNE.

    Returns:
      The text for the terminal.
    """
    inputs.need_network(run, "map")
    choose(method, METHODS, "method")
    count, seed = kinds.check("--count", count, NonNegativeInt), kinds.check("--seed", seed, Seed)
    what = inputs.Judged(split, images, skip_bad=skip_bad)
    columns, classes = _open(run, what)
    caution, _ = seen.known_people(run, [columns], split="" if images else split)
    columns = choose_people(columns, count)
    groups, names = group(columns, color, classes)
    found = inference.features(run.predict, columns)
    points, labels = _project(found["feature"], method, seed)
    people = len(np.unique(columns["pid"][columns["pid"] > 0]))
    about = f"{len(points)} images of {people} persons, {METHODS[method]} by {color}"
    title = f"{Path(images).name if images else what.name}: {about}"
    picture = run.evaluation / f"map_{method}_{color}.png"
    table = run.evaluation / f"map_{method}.csv"
    scatter.draw(points, groups, names, picture, title=title, labels=labels)
    write_atomically(table, as_csv(columns, points))
    text = f"{what.name}: {about}\n\nwritten to {picture} and {table}"
    return "\n\n".join(filter(None, [caution, text]))
