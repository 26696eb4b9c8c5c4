"""--task=junk: how strange every image is to an autoencoder, and the page to decide on it."""

import csv
import io
import json
from pathlib import Path

import numpy as np

from market_jax import experiment, galleries, runs
from market_jax.data import columns, filenames
from market_jax.data.junk import make_junk
from market_jax.errors import InputError
from market_jax.files import write_atomically
from market_jax.metrics import reconstruction
from market_jax.registry import choose
from market_jax.report import pictures, tables
from market_jax.report import review as review_page
from market_jax.typing import Columns

FILE, LIST, PAGE = "junk.json", "junk.csv", "junk_review.html"
LEAST = 60  # candidates of the page, where fewer are flagged


def score_images(found: runs.Run, rows: Columns) -> dict[str, np.ndarray]:
    """Every score of every image: name -> [M]."""

    def keep(outputs):
        return reconstruction.scores(outputs["target"], outputs["reconstruction"])

    return runs.extract(found, rows, keep)


def as_csv(names: np.ndarray, values: np.ndarray, flagged: np.ndarray) -> str:
    """The text of `junk.csv`: name, score, flagged (1 or 0); the strangest first."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("name", "score", "flagged"))
    for i in np.argsort(-values, kind="stable"):
        writer.writerow((names[i], f"{values[i]:.6g}", int(flagged[i])))
    return buffer.getvalue()


def judge(scored: dict[str, np.ndarray], junk: np.ndarray) -> dict[str, dict[str, float]]:
    """Score name -> how well it tells junk from the rest."""
    return {name: reconstruction.judge(values, junk) for name, values in scored.items()}


def judge_made(found: runs.Run, rows: Columns) -> dict:
    """The same on junk that is made from the people in the images: all of it, and by kind."""
    people = columns.select(rows, rows["pid"] > 0)
    if not len(people["name"]):
        raise InputError("no image shows a known person, of whom junk could be made")
    images = people["image"][np.arange(len(people["name"]))]
    made, kinds = make_junk(images)
    usual = score_images(found, people)
    strange = score_images(found, people | {"image": made})
    result = {}
    for kind in ("all", *np.unique(kinds)):
        chosen = np.ones(len(kinds), bool) if kind == "all" else kinds == kind
        truth = np.repeat([False, True], [len(kinds), chosen.sum()])
        scored = {name: np.concatenate([usual[name], strange[name][chosen]]) for name in usual}
        result[str(kind)] = judge(scored, truth)
    return result


def write_review(
    found: runs.Run, rows: Columns, values: np.ndarray, flagged: np.ndarray, score: str
) -> Path:
    """Writes the page with the flagged images, or the strangest where few are."""
    order = np.argsort(-values, kind="stable")[: max(flagged.sum(), LEAST)]
    chosen = columns.select(rows, order)
    outputs = runs.extract(found, chosen, runs.only("target", "reconstruction"))
    images, remade = (
        pictures.to_unit_range(outputs[key], outputs["target"])
        for key in ("target", "reconstruction")
    )
    candidates = [
        review_page.Candidate(
            str(name),
            float(value),
            (
                pictures.to_uint8(image),
                pictures.to_uint8(again),
                review_page.error_map(image, again),
            ),
        )
        for name, value, image, again in zip(
            chosen["name"], values[order], images, remade, strict=True
        )
    ]
    path = found.workdir / "evaluation" / PAGE
    about = (
        f"{len(candidates)} of {len(values)} images, the strangest first by the score "
        f"{score!r}: picture, reconstruction, error."
    )
    key = f"market_jax junk {found.workdir.resolve()} {score} {found.step} {len(candidates)}"
    write_atomically(path, review_page.page("Is it junk?", about, key, candidates))
    return path


def rows_of_table(results: dict[str, dict]) -> list[tuple[str, ...]]:
    """{what: score -> judgement} as rows of a table."""
    return [
        (
            f"{what}, {score}",
            f"{row['auroc']:.3f}",
            f"{row['average_precision']:.3f}",
            f"{row['chance']:.3f}",
        )
        for what, by_score in results.items()
        for score, row in by_score.items()
    ]


def run(
    found: runs.Run,
    *,
    split: str = "test",
    images: str | None = None,
    score: str = "normalized",
    threshold: float | None = None,
    made: bool = False,
    review: bool = False,
) -> str:
    """Scores every image, flags the strangest, and judges the scores where junk is known.

    Args:
      found: a run whose model has the outputs "reconstruction" and "target".
      split: that is scored: "test", "val", "train".
      images: a folder of crops that is scored instead.
      score: "error" or "normalized", see `market_jax.metrics.reconstruction.scores`.
      threshold: above which an image is flagged; by default the smaller one of two that are
        proposed without labels.
      made: judges the scores on junk made from the images of persons too.
      review: writes the page on which a person decides.

    Returns:
      The text for the terminal.

    Raises:
      InputError: what the data, the run or the arguments have wrong.
    """
    rows = (
        galleries.read_folder(found, images, None)
        if images
        else experiment.open_split(found.config, split)
    )
    scored = score_images(found, rows)
    values = choose(score, scored, "score")
    proposed = reconstruction.propose_thresholds(values)
    limit = min(proposed.values()) if threshold is None else threshold
    flagged = values > limit
    folder = found.workdir / "evaluation"
    write_atomically(folder / LIST, as_csv(rows["name"], values, flagged))
    about = {
        "judged": images or f"split {split}",
        "images": len(values),
        "score": score,
        "threshold": limit,
        "proposed": proposed,
        "flagged": int(flagged.sum()),
        "checkpoint": found.step,
    }
    said = [
        f"{about['judged']}: {len(values)} images, {about['flagged']} flagged: "
        f"{score} above {limit:.4g} (proposed: quantile {proposed['quantile']:.4g}, "
        f"robust z-score {proposed['robust_z']:.4g})"
    ]
    results = {}
    junk = rows["pid"] == filenames.JUNK
    if junk.any() and not junk.all():
        results["labelled junk"] = judge(scored, junk)
        hits = int((flagged & junk).sum())
        about |= {"junk": int(junk.sum()), "flagged_junk": hits}
        said.append(f"of {junk.sum()} images labelled junk {hits} are flagged")
    if made:
        results |= {f"made, {kind}": by for kind, by in judge_made(found, rows).items()}
    if results:
        header = ("junk, score", "AUROC", "average precision", "chance")
        said.append(tables.align(header, rows_of_table(results)))
    else:
        said.append("the images have no junk labels: nothing is judged (see --made)")
    write_atomically(folder / FILE, json.dumps(results | about, indent=2) + "\n")
    said.append(f"written to {folder / LIST} and {folder / FILE}")
    if review:
        path = write_review(found, rows, values, flagged, score)
        said.append(f"open {path} in a browser to decide")
    return "\n\n".join(said)
