"""--task=attributes: how well a run predicts the 12 attributes, and its predictions as a file."""

import json
from pathlib import Path

import numpy as np
from absl import logging

from market_jax import experiment, runs
from market_jax.data import attributes, folders
from market_jax.errors import InputError
from market_jax.files import write_atomically
from market_jax.metrics import attributes as metrics
from market_jax.report import attention, predictions, tables
from market_jax.retrieval import search
from market_jax.typing import Columns, Outputs

FILE, PAGE = "attributes.json", "attributes.html"
_SHOWN = 24  # crops of the page
_MASK = "attention_"  # how outputs begin that are masks
_KINDS = ("accuracy", "majority")


def keep(outputs: Outputs) -> Outputs:
    """Of a model's outputs the attributes' logits and the masks, if it has any."""
    masks = {name: value for name, value in outputs.items() if name.startswith(_MASK)}
    return {name: outputs[name] for name in attributes.ATTRIBUTES} | masks


def average_over_neighbours(
    logits: dict[str, np.ndarray], features: np.ndarray, neighbours: int
) -> dict[str, np.ndarray]:
    """The mean of each image's logits [M, K] and those of its nearest images, by cosine.

    Images of one person share their attributes, so that neighbours who are that person correct
    each other. It knows all judged images at once, which a single answer does not.

    Raises:
      InputError: there are fewer images than neighbours.
    """
    size = len(features)
    if not 0 <= neighbours < size:
        raise InputError(
            f"neighbours is {neighbours}; it must be 0 to {size - 1}, the other images"
        )
    at = search.top_k(features, features, neighbours + 1)[1]  # the image itself is among them
    return {name: value[at].mean(axis=1) for name, value in logits.items()}


def classify(
    run: runs.Run, columns: Columns, *, flip: bool = False, neighbours: int = 0
) -> tuple[dict[str, np.ndarray], dict]:
    """Attribute -> the most likely class of every image, int [M]; group -> its mask [M, h, w].

    With flip the logits are the mean of an image's and its mirror image's; with neighbours see
    `average_over_neighbours`.
    """
    if run.model is None:
        raise InputError("--task=attributes needs a trained run: --workdir instead of --config")
    outputs = runs.extract(run, columns, keep)
    logits = {name: outputs[name] for name in attributes.ATTRIBUTES}
    if flip:
        mirrored = runs.extract(run, columns, runs.only(*logits), mirrored=True)
        logits = {name: (value + mirrored[name]) / 2 for name, value in logits.items()}
    if neighbours:
        features = runs.embed(run, "model", columns, flip=flip)
        logits = average_over_neighbours(logits, features, neighbours)
    found = {name: np.argmax(value, axis=-1) for name, value in logits.items()}
    return found, {k.removeprefix(_MASK): v for k, v in outputs.items() if k.startswith(_MASK)}


def read_folder(folder: Path, annotations: Path | None, run: runs.Run) -> Columns:
    """The columns of a folder of crops in a known naming, with labels where a file gives them."""
    report = folders.Report()
    records = folders.scan(folder, "detect", report)
    if annotations is not None:
        table = attributes.read(annotations)
        records = folders.annotate(records, table, report, annotations)
    if report.dropped:
        logging.warning("%s: left out %s", folder, ", ".join(report.dropped))
    return folders.to_columns(records, run.config.data.image_size)


HEADER = ("attribute", "accuracy", "balanced", "F1", "majority", "binary", "binary majority")


def as_rows(result: dict) -> list[tuple[str, ...]]:
    """The result as rows of a table, in percent."""
    keys = ("accuracy", "balanced_accuracy", "f1", "majority", "accuracy_binary", "majority_binary")
    rows = [
        (name, *(tables.percent(row[key]) for key in keys))
        for name, row in result["attributes"].items()
    ]
    for count in (10, 12):
        names = (f"{kind}_{count}{reading}" for reading in ("", "_binary") for kind in _KINDS)
        accuracy, majority, *binary = (tables.percent(result["mean"][name]) for name in names)
        rows.append((f"mean of {count}", accuracy, "", "", majority, *binary))
    return rows


def write_report(
    path: Path,
    title: str,
    rows: list[tuple[str, ...]],
    columns: Columns,
    predicted: dict[str, np.ndarray],
    masks: dict[str, np.ndarray],
) -> None:
    """Writes the page with the table, and with crops under their masks where there are some."""
    labelled = np.flatnonzero(columns["age"] >= 0)
    size = min(_SHOWN, len(labelled)) if masks else 0
    chosen = np.sort(np.random.default_rng(0).choice(labelled, size, replace=False))
    people = [
        attention.Person(
            str(columns["name"][i]),
            columns["image"][np.array([i])][0],
            {
                name: (mask[i], name not in predicted or predicted[name][i] == columns[name][i])
                for name, mask in masks.items()
            },
        )
        for i in chosen
    ]
    write_atomically(path, attention.page(title, [], HEADER, rows, people))


def write_predictions(run: runs.Run, source: str, **averages) -> Path:
    """Writes `evaluation/classification_test.csv` for a folder, or for a split of the data."""
    if source in ("test", "query", "val", "train"):
        columns = experiment.open_split(run.config, source)
    else:
        columns = read_folder(Path(source), None, run)
    path = run.workdir / "evaluation" / "classification_test.csv"
    predicted = classify(run, columns, **averages)[0]
    text = predictions.classification_csv(columns["name"].tolist(), predicted)
    write_atomically(path, text)
    return path


def run(
    found: runs.Run,
    *,
    split: str = "val",
    images: str | None = None,
    annotations: str | None = None,
    predict: str | None = None,
    flip: bool = False,
    neighbours: int = 0,
    report: bool = False,
) -> str:
    """Judges the run, or writes its predictions.

    Args:
      found: the run.
      split: of the data set that is judged: "val" (the held-out identities), "train", "test"...
      images: a folder of crops that is judged instead of a split.
      annotations: its annotation file, CSV or .mat.
      predict: a folder of crops, or a split, to write predictions for; nothing is judged.
      flip: average the logits of an image and its mirror image.
      neighbours: average them over so many nearest images too.
      report: write `evaluation/attributes.html`.

    Returns:
      The text for the terminal.
    """
    averages = {"flip": flip, "neighbours": neighbours}
    if predict:
        path = write_predictions(found, predict, **averages)
        rows = predictions.check_classification_csv(path.read_text())
        return f"{rows} predictions in {path}"
    if bool(images) != bool(annotations):
        raise InputError("--images and --annotations go together: a folder and its labels")
    if images:
        columns, judged = read_folder(Path(images), Path(annotations), found), images
    else:
        columns, judged = experiment.open_split(found.config, split), f"split {split}"
    predicted, masks = classify(found, columns, **averages)
    result = metrics.evaluate(columns, predicted, found.extra["label_counts"])
    persons = columns["pid"][columns["age"] >= 0]
    judged = {
        "judged": judged,
        "images": len(persons),
        "identities": len(np.unique(persons)),
        "checkpoint": found.step,
    } | averages
    path = found.workdir / "evaluation" / FILE
    write_atomically(path, json.dumps(result | judged, indent=2) + "\n")
    title = "{judged}: {images} images of {identities} identities; percent; checkpoint {checkpoint}"
    title, rows = title.format(**judged), as_rows(result)
    said = f"{title}\n\n{tables.align(HEADER, rows)}\n\nwritten to {path}"
    if report:
        page = found.workdir / "evaluation" / PAGE
        write_report(page, title, rows, columns, predicted, masks)
        said += f"\nreport in {page}"
    return said
