"""Whether a network has seen what it is judged on: its people, or its pictures without labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from market_jax.evaluators import reid
from market_jax.runs import Run
from market_jax.training.transfer import are_related
from market_jax.typing import Columns

TRANSDUCTIVE = (
    "TRANSDUCTIVE: the network has learned from the judged pictures, without their labels"
)


def known_people(run: Run, sides: Sequence[Columns], *, split: str) -> tuple[str, dict[str, Any]]:
    """Says whether a network is judged on pictures or people that it was trained on.

    Args:
      run: the run; of whom one was trained on is said of published networks alone.
      sides: columns of what is judged.
      split: the split that is judged; "" is a folder of pictures.

    Returns:
      A sentence, and entries for the record: of a split "data", the name of the data set; where it
      is so, "transductive"; and of a published network "identities_trained_on".
    """
    record: dict[str, Any] = {"data": run.config.data.name} if split else {}
    first = ""
    if split and is_transductive(run, reid.split_names(split)):
        first, record["transductive"] = f"{TRANSDUCTIVE}.", True
    if not run.is_published:
        return first, record
    if not split:
        text = (
            f"The network was trained on {run.trained_on}: what is judged here says nothing about "
            "new people if the pictures show some of them."
        )
        return text, record
    names = {side["name"] for side in run.extra["trained_on"]}
    if are_related(names - {run.config.data.name}, {run.config.data.name}):
        text = (
            f"CAUTION: the network was trained on {run.trained_on}, which shows people of "
            f"{run.config.data.name} under other numbers; these figures say nothing about people "
            "who are new to the network."
        )
        return f"{first} {text}".lstrip(), record
    shown, known = known_pids(run, sides)
    text = f"{len(known)} of {len(shown)} identities judged here were trained on"
    if known:
        text = f"CAUTION: {text}; these figures say nothing about people who are new to the network"
    return f"{first} {text}.".lstrip(), record | {"identities_trained_on": len(known)}


def known_pids(run: Run, sides: Sequence[Columns]) -> tuple[set[int], set[int]]:
    """Whom the images of a data set show, and whom of them a published network was trained on.

    Args:
      run: a published network, with the data set that is judged.
      sides: columns of images of the data set.

    Returns:
      The pids of the known persons, and those of them that were trained on.
    """
    shown = {int(pid) for side in sides for pid in np.unique(side["pid"]) if pid > 0}
    judged = run.dataset().schema.name
    known = [entry["pids"]["train"] for entry in run.extra["trained_on"] if entry["name"] == judged]
    return shown, shown & {pid for pids in known for pid in pids}


def is_transductive(run: Run, splits: Sequence[str]) -> bool:
    """Whether a run has learned from pictures of these splits without their labels.

    The course release and the published set share pictures whatever the split.

    Args:
      run: the run, with the data set that is judged.
      splits: the splits whose pictures are judged.
    """
    judged = set(run.config.data.name.split(","))
    for names, split in run.extra.get("clustered", ()):
        learned = set(names.split(","))
        if (learned & judged and split in splits) or are_related(learned - judged, judged):
            return True
    return False
