"""How strange every image is to a network, and whether that separates junk from people.

To an autoencoder an image is strange that it does not redraw; to a network that knows persons, one
that is near no others.
"""

from collections.abc import Mapping

import numpy as np

from market_jax import progress
from market_jax.data import columns as columns_
from market_jax.data import filenames, images
from market_jax.data.datasets import Dataset
from market_jax.data.junk import make_junk
from market_jax.errors import InputError
from market_jax.evaluators.result import Result, Table
from market_jax.inference import Predictor
from market_jax.metrics import reconstruction
from market_jax.registry import choose
from market_jax.retrieval import pseudo_labels
from market_jax.retrieval.jaccard import jaccard
from market_jax.typing import Columns, Outputs

HEADER = ("junk, score", "AUROC", "average precision", "chance")


def _scores(outputs: Outputs) -> Outputs:
    """A model's outputs -> every score of every image."""
    for name in ("target", "reconstruction"):
        choose(name, outputs, "output of the model")
    return reconstruction.scores(outputs["target"], outputs["reconstruction"])


def score_images(predict: Predictor, columns: Columns) -> dict[str, np.ndarray]:
    """Computes every score of every image: score name -> [M].

    Args:
      predict: a model with the outputs "reconstruction" and "target", for "error" and "normalized",
        see `market_jax.metrics.reconstruction.scores`; or with "embedding", for "outlier": the
        least Jaccard distance at which the image is in a cluster of the others, 0 to 1.
      columns: columns of M images.

    Raises:
      InputError: the model has no such outputs, or a score is not finite.
    """
    if "reconstruction" not in predict.output_names(columns):
        return {"outlier": _stand_alone(predict(columns, ("embedding",))["embedding"])}
    scores = predict(columns, reconstruction.SCORES, derive=_scores)
    for name, values in scores.items():
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise InputError(f"the score {name!r} of {columns['name'][bad[0]]} is not finite")
    return scores


def _stand_alone(vectors: np.ndarray) -> np.ndarray:
    """The score "outlier" of images [M, D], see `score_images`."""
    with progress.waiting("outlier"):
        near = jaccard(vectors, k1=min(30, len(vectors)), k2=min(6, len(vectors)))
        return pseudo_labels.reach(near)


def _score_made(predict: Predictor, people: Columns, made: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of people, and after them of junk; the junk a little at a time, as junk is rare."""
    both = {"image": images.join([people["image"], made]), "name": np.tile(people["name"], 2)}
    if "reconstruction" in predict.output_names(both):
        return score_images(predict, both)
    vectors = predict(both, ("embedding",))["embedding"]
    usual, strange = np.split(vectors, 2)
    parts = np.array_split(strange, -(-len(strange) // max(len(usual) // 20, 1)))
    scores = [_stand_alone(usual)]
    for part in progress.track(parts, "made junk"):
        scores.append(_stand_alone(np.concatenate([usual, part]))[len(usual) :])
    return {"outlier": np.concatenate(scores)}


def judge(scores: Mapping[str, np.ndarray], junk: np.ndarray) -> dict[str, dict[str, float]]:
    """Judges how well each score separates junk from the rest: score name -> metrics.

    Args:
      scores: score name -> [M].
      junk: bool [M], True where an image is junk.

    Raises:
      InputError: all images are junk, or none is.
    """
    return {name: reconstruction.judge(values, junk) for name, values in scores.items()}


def judge_made(predict: Predictor, columns: Columns) -> dict[str, dict]:
    """Judges the scores on junk that is made from the people in the images, in all and by kind.

    Args:
      predict: as for `score_images`.
      columns: columns of images; those of known persons are used.

    Returns:
      "made, all" or "made, <kind>" -> score name -> metrics.

    Raises:
      InputError: no image shows a known person, or `score_images` fails.
    """
    people = columns_.select(columns, columns["pid"] > 0)
    if not len(people["name"]):
        raise InputError("no image shows a known person, of whom junk could be made")
    made, kinds = make_junk(people["image"][np.arange(len(people["name"]))])
    scores = _score_made(predict, people, made)
    result = {}
    for kind in ("all", *np.unique(kinds)):
        chosen = np.ones(len(kinds), bool) if kind == "all" else kinds == kind
        judged = np.concatenate([np.ones(len(kinds), bool), chosen])
        truth = np.repeat([False, True], len(kinds))[judged]
        of_kind = {name: values[judged] for name, values in scores.items()}
        result[f"made, {kind}"] = judge(of_kind, truth)
    return result


def as_table(results: Mapping[str, Mapping]) -> Table:
    """Formats judgements of scores as a table.

    Args:
      results: name of the junk that was judged -> score name -> metrics.
    """
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
    score: str | None,
    threshold: float | None,
    judged: str,
) -> tuple[Result, np.ndarray]:
    """Flags images by their scores, and judges the scores where the data set labels junk.

    Args:
      columns: columns of M images.
      scores: score name -> [M].
      results: judgements on other junk, as from `judge_made`; {} without any.
      score: the name of the score that decides; None is the last of the scores.
      threshold: the score above which an image is flagged; None takes the smaller of the two that
        `metrics.reconstruction.propose_thresholds` proposes.
      judged: what is judged, in words, for the title.

    Returns:
      The result, and bool [M], True where an image is flagged.

    Raises:
      InputError: there is no such score.
    """
    score = score or [*scores][-1]
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
    score: str | None = None,
    made: bool = False,
) -> Result:
    """Scores every image, and judges the scores where junk is labelled.

    Args:
      predict: as for `score_images`.
      dataset: the data set.
      split: the split that is judged: "test", "val" or "train".
      score: the score that decides; None is the last that `score_images` has.
      made: judge the scores on junk made from people too.

    Raises:
      InputError: the model has no such outputs, or there is no such score.
    """
    columns = dataset.open(split)
    results = judge_made(predict, columns) if made else {}
    scores = score_images(predict, columns)
    judged = f"split {split}"
    return summarize(columns, scores, results, score=score, threshold=None, judged=judged)[0]
