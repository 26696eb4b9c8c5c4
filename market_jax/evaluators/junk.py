"""How strange every image is to an autoencoder, and whether that tells junk from people."""

from collections.abc import Mapping

import numpy as np

from market_jax.data import columns as columns_
from market_jax.data import filenames
from market_jax.data.datasets import Dataset
from market_jax.data.junk import make_junk
from market_jax.errors import InputError
from market_jax.evaluators.result import Result, Table
from market_jax.inference import Predictor
from market_jax.metrics import reconstruction
from market_jax.registry import choose
from market_jax.typing import Columns, Outputs

HEADER = ("junk, score", "AUROC", "average precision", "chance")


def _scores(outputs: Outputs) -> Outputs:
    """A model's outputs -> every score of every image."""
    for name in ("target", "reconstruction"):
        choose(name, outputs, "output of the model")
    return reconstruction.scores(outputs["target"], outputs["reconstruction"])


def score_images(predict: Predictor, columns: Columns) -> dict[str, np.ndarray]:
    """Every score of every image: name -> [M].

    Args:
      predict: a model with the outputs "reconstruction" and "target".
      columns: of M images.

    Raises:
      InputError: the model has no such outputs, or a score is not finite.
    """
    scores = predict(columns, reconstruction.SCORES, derive=_scores)
    for name, values in scores.items():
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise InputError(f"the score {name!r} of {columns['name'][bad[0]]} is not finite")
    return scores


def judge(scores: Mapping[str, np.ndarray], junk: np.ndarray) -> dict[str, dict[str, float]]:
    """Score name -> how well it tells junk (bool [M]) from the rest.

    Args:
      scores: name -> [M].
      junk: bool [M].
    """
    return {name: reconstruction.judge(values, junk) for name, values in scores.items()}


def judge_made(predict: Predictor, columns: Columns) -> dict[str, dict]:
    """`judge` on junk that is made from the people in the images: all of it, and by kind.

    Args:
      predict: the model.
      columns: of images, of which those of known persons are used.

    Raises:
      InputError: nobody is known in the images.
    """
    people = columns_.select(columns, columns["pid"] > 0)
    if not len(people["name"]):
        raise InputError("no image shows a known person, of whom junk could be made")
    made, kinds = make_junk(people["image"][np.arange(len(people["name"]))])
    usual = score_images(predict, people)
    strange = score_images(predict, people | {"image": made})
    result = {}
    for kind in ("all", *np.unique(kinds)):
        chosen = np.ones(len(kinds), bool) if kind == "all" else kinds == kind
        truth = np.repeat([False, True], [len(kinds), chosen.sum()])
        both = {name: np.concatenate([usual[name], strange[name][chosen]]) for name in usual}
        result[f"made, {kind}"] = judge(both, truth)
    return result


def as_table(results: Mapping[str, Mapping]) -> Table:
    """{what: {score: judgement}} as a table."""
    rows = [
        (
            f"{what}, {score}",
            f"{row['auroc']:.3f}",
            f"{row['average_precision']:.3f}",
            f"{row['chance']:.3f}",
        )
        for what, by_score in results.items()
        for score, row in by_score.items()
    ]
    return Table(HEADER, rows)


def summarize(
    columns: Columns,
    scores: Mapping[str, np.ndarray],
    results: Mapping[str, Mapping],
    *,
    score: str,
    threshold: float | None,
    judged: str,
) -> tuple[Result, np.ndarray]:
    """The result of scores, and which images are flagged (bool [M]).

    Args:
      columns: of the images.
      scores: name -> [M].
      results: what was judged already, beside the data set's own junk.
      score: that decides.
      threshold: above which an image is flagged; None takes the smaller proposed one.
      judged: what the images are.
    """
    values = choose(score, scores, "score")
    proposed = reconstruction.propose_thresholds(values)
    limit = min(proposed.values()) if threshold is None else threshold
    flagged, junk = values > limit, columns["pid"] == filenames.JUNK
    about = {
        "judged": judged,
        "images": len(values),
        "score": score,
        "threshold": limit,
        "proposed": proposed,
        "flagged": int(flagged.sum()),
    }
    notes = []
    if junk.any() and not junk.all():
        results = {"labelled junk": judge(scores, junk)} | dict(results)
        about |= {"junk": int(junk.sum()), "flagged_junk": int((flagged & junk).sum())}
        notes.append(f"of {about['junk']} images labelled junk {about['flagged_junk']} are flagged")
    if not results:
        notes.append("the images have no junk labels: nothing is judged (see --made)")
    title = (
        f"{judged}: {len(values)} images, {about['flagged']} flagged: "
        f"{score} above {limit:.4g} (proposed: quantile {proposed['quantile']:.4g}, "
        f"robust z-score {proposed['robust_z']:.4g})"
    )
    metrics = {
        f"junk/{name}_auroc": row["auroc"] for name, row in results.get("labelled junk", {}).items()
    }
    shown = (as_table(results),) if results else ()
    return Result(title, metrics, dict(results) | about, shown, tuple(notes)), flagged


def evaluate(
    predict: Predictor,
    dataset: Dataset,
    *,
    split: str = "test",
    score: str = "normalized",
    made: bool = False,
) -> Result:
    """Scores every image, and judges the scores where junk is labelled.

    Args:
      predict: a model with the outputs "reconstruction" and "target".
      dataset: that is judged.
      split: "test", "val" or "train".
      score: "error" or "normalized", see `market_jax.metrics.reconstruction.scores`.
      made: judge the scores on junk made from people, too.
    """
    columns = dataset.open(split)
    results = judge_made(predict, columns) if made else {}
    scores = score_images(predict, columns)
    judged = f"split {split}"
    return summarize(columns, scores, results, score=score, threshold=None, judged=judged)[0]
