"""Whether a network has seen what it is judged on: its people, or its pictures without labels."""

import bisect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from market_jax import build, history, runs
from market_jax.data.datasets import Division, Part
from market_jax.evaluators import reid
from market_jax.export import onnx
from market_jax.runs import Run
from market_jax.training import transfer
from market_jax.typing import Columns
from market_jax.weights import published

TRANSDUCTIVE = (
    "TRANSDUCTIVE: the network has learned from the judged pictures, without their labels"
)


def known_people(
    run: Run, sides: Sequence[Columns], *, split: str, source: str = "model"
) -> tuple[str, dict[str, Any]]:
    """Says whether a network is judged on pictures or people that it was trained on.

    Args:
      run: the run.
      sides: columns of what is judged.
      split: the split that is judged; "" is a folder of pictures.
      source: where the features come from, see `runs.feature_source`.

    Returns:
      A sentence, "" where there is nothing to say, and entries for the record: of a split "data",
      the name of the data set; where it is so, "transductive" and "related", the data sets that
      show the same people under other numbers; of a network "identities_trained_on", None where
      that is not known.
    """
    record: dict[str, Any] = {"data": run.config.data.name} if split else {}
    if not runs.is_own(source):
        people = _people_of(source)
        if people is None:
            text = f"CAUTION: {source} does not say whom its network was trained on."
            return text, record | {"identities_trained_on": None}
        run = run._replace(extra=people)
    trained = history.trained_on(run.extra)
    if not split:
        text = (
            f"The network was trained on {in_words(trained)}: what is judged here says nothing "
            "about new people if the pictures show some of them."
        )
        return text if trained else "", record
    first = []
    if is_transductive(run, reid.split_names(split)):
        record["transductive"] = True
        first.append(f"{TRANSDUCTIVE}.")
    if not trained:
        return " ".join(first), record
    parts = run.dataset().parts
    judged = {part.schema.name for part in parts}
    others = [
        entry
        for entry in trained
        if any(transfer.are_related({entry["name"]}, {name}) for name in judged - {entry["name"]})
    ]
    if others:
        first.append(
            f"CAUTION: the network was trained on {in_words(others)}, which shows people of "
            f"{run.config.data.name} under other numbers; these figures say nothing about people "
            "who are new to the network."
        )
        return " ".join(first), record | {"related": [entry["name"] for entry in others]}
    shown, known = known_pids(run, sides, parts)
    text = f"{len(known)} of {len(shown)} identities judged here were trained on"
    if known:
        text = f"CAUTION: {text}; these figures say nothing about people who are new to the network"
    if known or run.is_published:  # of a run it goes without saying
        first.append(f"{text}.")
    return " ".join(first), record | {"identities_trained_on": len(known)}


def _people_of(source: str) -> dict[str, Any] | None:
    """What an ONNX file says of whom its network has seen, as `Run.extra`; {} of no such file."""
    if not source.endswith(onnx.SUFFIX):
        return {}
    path = Path(source).expanduser()
    people = published.read_people(path, onnx.about(path))
    return people and people | {"labels": {}}


def in_words(trained: Sequence[Mapping[str, Any]]) -> str:
    """Whom a network was trained on, in words.

    Args:
      trained: see `history.trained_on`.
    """
    words = [f"{each['identities']} identities of {each['name']}" for each in trained]
    return " and ".join(words) or "nobody"


def known_pids(
    run: Run, sides: Sequence[Columns], parts: Sequence[Part]
) -> tuple[set[int], set[int]]:
    """Whom the images of a data set show, and whom of them a network was trained on.

    As in `transfer.check_held_out`, the same numbers are other people where all pictures and labels
    that a run has noted are others now.

    Args:
      run: the run, with the data set that is judged.
      sides: columns of images of the data set.
      parts: the data sets that it is made of.

    Returns:
      The pids of the known persons, and those of them that were trained on.
    """
    shown = {int(pid) for side in sides for pid in np.unique(side["pid"]) if pid > 0}
    offsets, known = [part.pid_offset for part in parts], set()
    whose = {pid: parts[bisect.bisect_left(offsets, pid) - 1] for pid in shown}
    for division in history.learned(run.extra):
        numbers = set(division.pids["train"])
        found = {
            pid
            for pid, part in whose.items()
            if part.schema.name == division.name and pid - part.pid_offset in numbers
        }
        if found and not _are_others(run, division):
            known |= found
    return shown, known


def _are_others(run: Run, division: Division) -> bool:
    """Whether the data set that is judged shows other people under the numbers of a division."""
    return bool(division.digests) and any(
        own.name == division.name and transfer.are_others(division, rows)
        for own, rows in transfer.divided(build.dataset(run.config))
    )


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
        if (learned & judged and split in splits) or transfer.are_related(learned - judged, judged):
            return True
    return False
