"""What a run keeps about itself, and about the networks that it began with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from market_jax import settings
from market_jax.data.datasets import Division
from market_jax.data.schema import Schema
from market_jax.errors import InputError
from market_jax.training import checkpoints, transfer
from market_jax.weights import published


class Beginning(NamedTuple):
    """A network that a run began with.

    Attributes:
      config: the config that it was started with, as JSON.
      divisions: who was trained on and who was held out.
    """

    config: dict[str, Any]
    divisions: list[Division]


class Saved(NamedTuple):
    """What the latest checkpoint of a run says about it, or the file of a published network.

    Attributes:
      config: the config that it was started with, as JSON.
      schema: the labels that it learns.
      kept: who is trained on and who is held out.
      clustered: the pictures that it has learned from without labels, and what it began with has:
        (names of the data sets, split) each.
      beginnings: what it began with, then what that began with, and so on. Of a published network
        there are none: `kept` has whom all of them were trained on.
    """

    config: dict[str, Any]
    schema: Schema
    kept: list[Division]
    clustered: list[tuple[str, str]]
    beginnings: list[Beginning]


def read(workdir: Path) -> Saved | None:
    """What the latest checkpoint in a folder says about the run; None without a checkpoint.

    Args:
      workdir: the folder of the run.

    Raises:
      InputError: the checkpoint is damaged, or an older version has written it.
    """
    directory = workdir / "checkpoints"
    latest = checkpoints.find(directory)
    if latest is None:
        return None
    with checkpoints.offering_others(directory, latest):
        extra = checkpoints.read_extra(directory, latest)
    settings.check_format(extra, directory)
    labels = {name: tuple(classes) for name, classes in extra["labels"].items()}
    return Saved(
        config=extra["config"],
        schema=Schema(f"the run {workdir}", labels),
        kept=[Division(**division) for division in extra["divisions"]],
        clustered=[tuple(pair) for pair in extra.get("clustered", ())],
        beginnings=beginnings_of(extra),
    )


def beginnings_of(extra: Mapping[str, Any]) -> list[Beginning]:
    """What a run began with, then what that began with, and so on.

    Args:
      extra: the JSON saved with a checkpoint of the run, or the metadata of a published network.

    Raises:
      InputError: an older version has written it, which did not keep them.
    """
    name = extra["config"]["model"].get("pretrained", "")
    if "beginnings" not in extra and "trained_on" not in extra and transfer.find(name):
        raise InputError(
            f"a run that began with {name!r} has not kept whom that network knows: an older "
            "version has trained it; train it again"
        )
    return [
        Beginning(entry["config"], [Division(**division) for division in entry["divisions"]])
        for entry in extra.get("beginnings", ())
    ]


def trained_on(extra: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An entry for each data set whose people a network was trained on, or what it began with.

    Args:
      extra: the JSON saved with a checkpoint of a run, or the metadata of a published network, see
        `published.TRAINED_ON`; {} of what is no network.

    Raises:
      InputError: see `beginnings_of`.
    """
    if "trained_on" in extra:
        return list(extra["trained_on"])
    known, entries = {}, []
    for division in learned(extra):
        persons, seen = set(division.pids["train"]), known.setdefault(division.name, set())
        if not persons <= seen:
            sides = {side: list(pids) for side, pids in division.pids.items()}
            entries.append({"name": division.name, "identities": len(persons), "pids": sides})
        seen |= persons
    return entries


def learned(extra: Mapping[str, Any]) -> list[Division]:
    """The divisions whose side "train" a network has learned from, and what it began with.

    Args:
      extra: see `trained_on`.

    Raises:
      InputError: see `beginnings_of`.
    """
    if not extra:
        return []
    if "trained_on" in extra:
        return [Division(entry["name"], entry["pids"], {}) for entry in extra["trained_on"]]
    own = Beginning(extra["config"], [Division(**division) for division in extra["divisions"]])
    return [
        division
        for config, divisions in (own, *beginnings_of(extra))
        for division in divisions
        if _learns_from(config, division.name)
    ]


def _learns_from(config: Mapping[str, Any], name: str) -> bool:
    """Whether a training sees pictures of "train" of a data set; one without labels may not."""
    unlabelled = config.get("unlabelled")
    if not unlabelled or unlabelled["batch_size"] < config["batch_size"]:
        return True
    split, _, chosen = unlabelled["pictures"].partition("/")
    return split == "train" and chosen in ("", name)


def as_json(beginnings: Sequence[Beginning]) -> list[dict[str, Any]]:
    """What a checkpoint keeps, for `beginnings_of`.

    Args:
      beginnings: of the run.
    """
    return [
        {"config": config, "divisions": [division._asdict() for division in divisions]}
        for config, divisions in beginnings
    ]


def _read_beginning(config: ConfigDict) -> Saved | None:
    """What is known of the network of this package that a run begins with; None without one."""
    source = transfer.find(config.model.get("pretrained", ""))
    if source is None:
        return None
    if source.which:
        return read(source.path)
    about = published.read(source.path).about
    divisions = learned(about)
    schema = Schema(f"the network {source.path}", about["labels"])
    clustered = [tuple(pair) for pair in about["clustered"]]
    return Saved(about["config"], schema, divisions, clustered, [])


def begin(config: ConfigDict) -> tuple[list[tuple[str, str]], list[Beginning]]:
    """The fields `clustered` and `beginnings` of a run that begins, see `Saved`.

    Args:
      config: of the experiment.

    Raises:
      InputError: a checkpoint or a file is damaged, or an older version has written it.
    """
    before = _read_beginning(config)
    clustered, beginnings = [], []
    if before:
        clustered = before.clustered
        beginnings = [Beginning(before.config, before.kept), *before.beginnings]
    if "unlabelled" in config:
        split, _, name = config.unlabelled.pictures.partition("/")
        clustered = [(name or config.data.name, split), *clustered]
    return clustered, beginnings
