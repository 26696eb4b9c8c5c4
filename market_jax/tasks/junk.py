"""--task=junk: how strange every image is to a network, and a page to decide on junk."""

import csv
import io
import json
from pathlib import Path

import numpy as np

from market_jax import seen
from market_jax.data import columns as columns_
from market_jax.evaluators import junk as evaluator
from market_jax.files import write_atomically
from market_jax.recipes import cluster_contrast
from market_jax.report import pictures
from market_jax.report import review as review_page
from market_jax.runs import Run
from market_jax.tasks import inputs
from market_jax.typing import Columns

FILE, LIST, PAGE = "junk.json", "junk.csv", "junk_review.html"
LEAST = 60  # candidates of the page, where fewer are flagged


def as_csv(names: np.ndarray, values: np.ndarray, flagged: np.ndarray) -> str:
    """The text of `junk.csv`: name, score, flagged (1 or 0), sorted by falling score.

    Args:
      names: the images' names, [M].
      values: the images' scores, [M].
      flagged: bool [M], True where an image is flagged.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("name", "score", "flagged"))
    for i in np.argsort(-values, kind="stable"):
        writer.writerow((names[i], f"{values[i]:.6g}", int(flagged[i])))
    return buffer.getvalue()


def write_review(
    run: Run, columns: Columns, values: np.ndarray, flagged: np.ndarray, score: str
) -> Path:
    """Writes the review page with the images of the highest scores, all flagged ones among them.

    Args:
      run: the run whose reconstructions are shown.
      columns: columns of M images.
      values: the images' scores, [M].
      flagged: bool [M], True where an image is flagged.
      score: the name of the score.

    Returns:
      The path of the page.
    """
    order = np.argsort(-values, kind="stable")[: max(flagged.sum(), LEAST)]
    chosen = columns_.select(columns, order)
    shown = _draw(run, chosen)
    candidates = [
        review_page.Candidate(str(name), float(value), drawn)
        for name, value, drawn in zip(chosen["name"], values[order], shown, strict=True)
    ]
    path = run.evaluation / PAGE
    what = "picture, reconstruction, error" if len(shown[0]) > 1 else "the picture"
    about = (
        f"{len(candidates)} of {len(values)} images, the strangest first by the score "
        f"{score!r}: {what}."
    )
    key = f"market_jax junk {run.workdir.resolve()} {score} {run.step} {len(candidates)}"
    write_atomically(path, review_page.page("Is it junk?", about, key, candidates))
    return path


def _of_rounds(run: Run, columns: Columns) -> dict[str, np.ndarray]:
    """The share of a training's rounds in which each image was in no cluster, where it is kept."""
    path = run.workdir / cluster_contrast.FILE
    if not path.exists() or "digest" not in columns:
        return {}
    shares = cluster_contrast.outlier_shares(path)
    digests = columns["digest"].tolist()
    if not all(digest in shares for digest in digests):
        return {}  # other images
    return {"rounds": np.array([shares[digest] for digest in digests])}


def _draw(run: Run, columns: Columns) -> list[tuple[np.ndarray, ...]]:
    """What is shown of each image: itself, and of an autoencoder what it makes of it."""
    if "reconstruction" not in run.predict.output_names(columns):
        return [(image,) for image in columns["image"][np.arange(len(columns["name"]))]]
    outputs = run.predict(columns, ("target", "reconstruction"))
    images, remade = (
        pictures.to_unit_range(outputs[key], outputs["target"])
        for key in ("target", "reconstruction")
    )
    return [
        (pictures.to_uint8(image), pictures.to_uint8(again), review_page.error_map(image, again))
        for image, again in zip(images, remade, strict=True)
    ]


def run(
    run: Run,
    *,
    split: str = "test",
    images: str | None = None,
    skip_bad: bool = False,
    score: str | None = None,
    threshold: float | None = None,
    made: bool = False,
    review: bool = False,
) -> str:
    """Scores every image, flags the strangest, and judges the scores where junk is known.

    Args:
      run: a run whose model redraws images or knows persons.
      split: What is scored: test, val or train.
      images: Score this folder of crops, of any name, instead of a split.
      skip_bad: Leave bad pictures of --images out and list them.
      score: Of an autoencoder error or normalized (by the image's own variance, the default); of
        a network that knows persons outlier (how near the image is to no others); of images
        that it has clustered in training rounds (how often in no cluster), too.
      threshold: The score above which an image is flagged; by default the smaller one of two
        that are proposed without labels.
      made: Judge the scores on junk made from people, too.
      review: Write the page on which a person decides what is junk.

    Returns:
      The text for the terminal.
    """
    inputs.need_network(run, "junk")
    what = inputs.Judged(split, images, skip_bad=skip_bad, usual="test")
    what.check()
    if images:
        size = run.config.data.image_size
        columns = inputs.read_folder(Path(images), size, named=False, skip_bad=skip_bad)
    else:
        columns = inputs.data_of(run).open(split)
    scores = _of_rounds(run, columns) | evaluator.score_images(run.predict, columns)
    results = evaluator.judge_made(run.predict, columns) if made else {}
    result, flagged = evaluator.summarize(
        columns, scores, results, score=score, threshold=threshold, judged=what.name
    )
    score = result.record["score"]
    values = scores[score]
    write_atomically(run.evaluation / LIST, as_csv(columns["name"], values, flagged))
    caution, known = seen.known_people(run, [columns], split="" if images else split)
    record = dict(result.record) | known | {"checkpoint": run.step}
    write_atomically(run.evaluation / FILE, json.dumps(record, indent=2) + "\n")
    notes = [f"written to {run.evaluation / LIST} and {run.evaluation / FILE}"]
    if review:
        path = write_review(run, columns, values, flagged, score)
        notes.append(f"open {path} in a browser to decide")
    return inputs.as_text(result, *notes, first=caution)
