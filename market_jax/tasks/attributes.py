"""--task=attributes: judges how well a run predicts the labels, or writes its predictions."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from market_jax import seen
from market_jax.data.attributes import CLASSES
from market_jax.data.schema import Schema, merge
from market_jax.errors import InputError
from market_jax.evaluators import attributes as evaluator
from market_jax.evaluators.result import Result
from market_jax.files import write_atomically
from market_jax.report import attention, predictions
from market_jax.runs import Run
from market_jax.tasks import inputs
from market_jax.typing import Columns

FILE, PAGE = "attributes.json", "attributes.html"
_SHOWN = 24  # crops of the page


def write_page(
    path: Path, result: Result, columns: Columns, predicted: Mapping, masks: Mapping
) -> None:
    """Writes a page with the table, and with crops and their attention masks if there are any.

    Args:
      path: where the page is written.
      result: the result of the evaluation.
      columns: columns of M images.
      predicted: label -> predicted class int [M].
      masks: group of labels -> mask [M, h, w]; {} without any.
    """
    labelled = np.flatnonzero(np.any([columns[name] >= 0 for name in predicted], axis=0))
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
    (table,) = result.tables
    write_atomically(path, attention.page(result.title, [], *table, people))


def write_predictions(
    run: Run, source: str, *, flip: bool, neighbours: int, skip_bad: bool
) -> Path:
    """Writes `evaluation/classification_test.csv` with the predictions for a folder or a split.

    Args:
      run: a trained run.
      source: the path of a folder of crops, or the name of a split.
      flip: average the logits of an image and its mirror image.
      neighbours: average the logits over this many nearest images too; 0 averages none.
      skip_bad: leave bad pictures of a folder out and list them.

    Returns:
      The path of the file.

    Raises:
      InputError: the run does not predict the 12 attributes of the course's format, or an image
        cannot be read.
    """
    if source in inputs.SPLITS:
        inputs.refuse("with a split: it is of a folder", skip_bad=skip_bad)
        columns = inputs.data_of(run).open(source)
    else:
        size = run.config.data.image_size
        columns = inputs.read_folder(Path(source), size, named=False, skip_bad=skip_bad)
    labels = predictions.check_labels(run.schema.labels)
    predicted, _ = evaluator.classify(
        run.predict, columns, labels, flip=flip, neighbours=neighbours
    )
    path = run.evaluation / "classification_test.csv"
    text = predictions.classification_csv(columns["name"].tolist(), predicted)
    write_atomically(path, text)
    return path


def _open(run: Run, what: inputs.Judged) -> Columns:
    """Columns of the images that are judged."""
    what.check()
    if not what.images:
        return inputs.data_of(run).open(what.split)
    size, labels = run.config.data.image_size, Path(what.annotations)
    return inputs.read_folder(Path(what.images), size, annotations=labels, skip_bad=what.skip_bad)


def run(
    run: Run,
    *,
    split: str = "val",
    images: str | None = None,
    annotations: str | None = None,
    predict: str | None = None,
    flip: bool = False,
    neighbours: int = 0,
    skip_bad: bool = False,
    report: bool = False,
) -> str:
    """Judges the run, or writes its predictions.

    Args:
      run: a trained run.
      split: What is judged: val (the held-out identities), train, test or query.
      images: Judge this folder of crops instead of a split.
      annotations: The labels of --images: CSV or .mat.
      predict: Write predictions for a folder of crops, or for a split; nothing is judged.
      flip: Average the logits of an image and its mirror image.
      neighbours: Average them over so many nearest images too.
      skip_bad: Leave bad pictures and rows of folders and lists out and list them.
      report: Write a page with the table, and with attention over crops.

    Returns:
      The text for the terminal.
    """
    inputs.need_network(run, "attributes")
    if bool(images) != bool(annotations):
        raise InputError("--images and --annotations go together: a folder and its labels")
    what = inputs.Judged(split, images, annotations, skip_bad=skip_bad)
    if predict:
        given = what.given() | {"skip_bad": False, "report": report}
        inputs.refuse("with --predict, which judges nothing", **given)
        path = write_predictions(run, predict, flip=flip, neighbours=neighbours, skip_bad=skip_bad)
        rows = predictions.check_classification_csv(path.read_text())
        return f"{rows} predictions in {path}"
    columns, classes = _open(run, what), run.schema.labels
    known = [name for name in classes if name in columns]
    labels = evaluator.outputs_to_judge(run.predict, columns, known)
    if annotations:
        own = Schema(f"the run {run.workdir}", {name: classes[name] for name in labels})
        merge([own, Schema(annotations, {n: CLASSES[n] for n in CLASSES if n in labels})])
    predicted, masks = evaluator.classify(
        run.predict, columns, labels, flip=flip, neighbours=neighbours, masks=report
    )
    warning, known_here = seen.known_people(run, [columns], split="" if images else split)
    about = {"judged": what.name, "flip": flip, "neighbours": neighbours, "checkpoint": run.step}
    result = evaluator.summarize(
        columns, predicted, run.extra["label_counts"], classes, about | known_here
    )
    path = run.evaluation / FILE
    write_atomically(path, json.dumps(result.record, indent=2) + "\n")
    made_by = run.extra["name"] if run.is_published else f"checkpoint {run.step}"
    notes = [f"{made_by}; written to {path}"]
    if report:
        write_page(run.evaluation / PAGE, result, columns, predicted, masks)
        notes.append(f"report in {run.evaluation / PAGE}")
    return inputs.as_text(result, *notes, first=warning)
