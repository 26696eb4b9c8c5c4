"""The distance up to which two pictures show the same person, as an evaluation has found it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from market_jax import files
from market_jax.errors import InputError
from market_jax.evaluators import reid
from market_jax.models import inputs
from market_jax.report import model_card
from market_jax.runs import Run


class Calibration(NamedTuple):
    """A distance up to which two pictures are taken for the same person.

    It is fitted on half of the identities of an evaluation; the rates are those of the others.

    Attributes:
      threshold: the distance.
      precision: the share of the pairs taken for the same person that really are, where pairs of
        different persons are as frequent as they were there.
      recall: the share of the pairs of the same person that is found.
      false_positive_rate: the share of the pairs of different persons taken for the same person.
      metric: the distance, "cosine" or "euclidean".
      flip: whether embeddings are means with the mirror images'.
      judged: the pictures of the evaluation, in words.
    """

    threshold: float
    precision: float
    recall: float
    false_positive_rate: float
    metric: str
    flip: bool
    judged: str


def of_record(record: Mapping[str, Any]) -> Calibration | None:
    """The calibration in the record of an evaluation; None if it has none for embeddings.

    Args:
      record: what `--task=reid` has written.
    """
    found = record.get("verification")
    if not found or record["features"] != "model" or record["judged"] == "split train":
        return None
    if any(record.get(key) for key in ("transductive", "related", "identities_trained_on")):
        return None
    rates = {key: value for key, value in found["on_other_identities"].items() if key != "distance"}
    return Calibration(
        threshold=found["threshold"]["distance"],
        metric=record["metric"],
        flip=record["flip"],
        judged=model_card.judged(record),
        **rates,
    )


def find(run: Run) -> Calibration:
    """The calibration of a network: a run's own evaluation has it, or a published network's file.

    Args:
      run: the run.

    Raises:
      InputError: nothing has calibrated it, or its embeddings depend on more than the pictures.
    """
    if run.is_published:
        if not run.extra["same_person"]:
            raise InputError(
                f"the published network {run.extra['name']!r} was not judged on pairs of pictures "
                "before it was exported"
            )
        return Calibration(**run.extra["same_person"])
    if inputs.names(run.predict.model):
        raise InputError(
            f"{run.workdir}: this network is told the cameras where it is judged, and nothing but "
            "the picture here: a threshold that was found is not one for these embeddings"
        )
    path = run.evaluation / reid.FILE
    record = files.read_json(path) if path.exists() else {}
    found = of_record(record) if record.get("checkpoint") == run.step else None
    if found is None:
        raise InputError(
            f"{path}: has no threshold for the embeddings of step {run.step} on people who were "
            f"not trained on; write it: python evaluate.py --task=reid --workdir={run.workdir}"
        )
    return found
