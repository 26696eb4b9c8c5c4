"""Clusters as a teacher: pictures without labels are clustered, learned from, and clustered anew.

Cluster Contrast (Dai et al. 2022), where every cluster has one slot of the memory and outliers are
left out; and SpCL (Ge et al. 2020), where every picture has one, an outlier is a class of its own,
and persons whose labels are known are learned beside them. It differs from both in that the memory
is filled anew at the beginning of each round, from the network as it is. A round is an epoch of
`config.steps_per_epoch` steps.
"""

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from market_jax import devices, fitting, registry, settings
from market_jax.data import columns as columns_
from market_jax.data import samplers
from market_jax.data.datasets import Dataset
from market_jax.data.samplers import Sampler
from market_jax.errors import InputError
from market_jax.experiment import Sides, Training
from market_jax.files import write_atomically
from market_jax.inference import Predictor, features
from market_jax.losses import memory
from market_jax.retrieval import pseudo_labels
from market_jax.training.loop import Round
from market_jax.training.state import TrainState
from market_jax.typing import Columns, PositiveInt

FILE = "clusters.npz"


class Unlabelled(NamedTuple):
    """`config.unlabelled`: the pictures that are clustered.

    Attributes:
      pictures: their split, "test"; of one of several data sets "SPLIT/NAME", "train/unitn". Their
        labels are not looked at. All others of "train" are learned by their labels.
      batch_size: how many of a batch are theirs; the others are of known persons.
      instances: whether every picture has a slot of the memory, and an outlier is a class of its
        own; else every cluster has one, and outliers are left out.
    """

    pictures: str
    batch_size: PositiveInt
    instances: bool = False


def _read(config: ConfigDict) -> tuple[Unlabelled, Callable]:
    """`config.unlabelled`, and the function from features to clusters of `config.clusters`."""
    fields = {"name": "pictures"} | config.unlabelled.to_dict()
    unlabelled = registry.bind(fields, {"pictures": Unlabelled}, "setting of the unlabelled")
    known = registry.names_of(pseudo_labels)
    cluster = registry.bind(config.clusters, known, "clustering (clusters)")
    return registry.complete(unlabelled, "unlabelled")(), cluster


def _find(config: ConfigDict, dataset: Dataset, pictures: str) -> tuple[Columns, Columns]:
    """The images of "train" with labels, and the others."""
    split, _, name = pictures.partition("/")
    rows = dataset.open(split)
    chosen = np.ones(len(rows["pid"]), bool)
    if name:
        names = {key: number for number, key in enumerate(config.data.name.split(","))}
        number = registry.choose(name, names, "data set (unlabelled.pictures)")
        chosen = rows["dataset"] == number if len(names) > 1 else chosen
    labelled = columns_.select(rows, ~chosen) if split == "train" else dataset.open("train")
    return columns_.number_identities(labelled), columns_.select(rows, chosen)


def open_sides(config: ConfigDict, dataset: Dataset) -> Sides:
    """The images with labels and after them those without, whose labels nothing sees but a report.

    Args:
      config: of the experiment; `model.identities` and `hooks.memory.slots` of -1 are filled in.
      dataset: that it is trained on.

    Raises:
      InputError: a setting is wrong, or a batch and the images do not fit together.
    """
    if not config.steps_per_epoch:
        raise InputError("steps_per_epoch is 0; this recipe needs it: the steps of a round")
    if config.stages:
        raise InputError(f"this recipe has no stages; the config has {', '.join(config.stages)}")
    unlabelled, _ = _read(config)
    labelled, rows = _find(config, dataset, unlabelled.pictures)
    known, unknown = len(labelled["pid"]), len(rows["pid"])
    rest = config.batch_size - unlabelled.batch_size
    if rest < 0 or bool(rest) != bool(known) or not unknown:
        raise InputError(
            f"batch_size is {config.batch_size}, unlabelled.batch_size is "
            f"{unlabelled.batch_size}: the rest is for {known} images with labels, beside "
            f"{unknown} without"
        )
    nothing = np.full(unknown, -1, np.int32)
    hidden = dict.fromkeys(("pid", "identity", *dataset.schema.labels), nothing)
    train = columns_.stack(labelled, rows | hidden)
    train["true_pid"] = np.concatenate([labelled["pid"], rows["pid"]])
    train["slot"] = np.full(known + unknown, -1, np.int32)
    persons = int(labelled["identity"].max(initial=-1)) + 1
    slots = persons + (unknown if unlabelled.instances else unknown // 2)
    counted = {"model.identities": persons, "hooks.memory.slots": slots}
    val = dataset.open("val")
    val = val | {"slot": np.full(len(val["pid"]), -1, np.int32)}
    return Sides(settings.count(config, counted), train, val)


def assign(
    columns: Columns, labels: np.ndarray, *, instances: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The slot and the class of every image: known persons first, then clusters, then outliers.

    Args:
      columns: columns of M images; those with "identity" -1, the last ones, are clustered.
      labels: the clusters of these, from 0.
      instances: as in `Unlabelled`.

    Returns:
      Slots and classes int32 [M]; -1 for an outlier that is left out.
    """
    slots = columns["identity"].copy()
    hidden, persons = np.flatnonzero(slots < 0), int(slots.max()) + 1
    outliers = labels == pseudo_labels.OUTLIER
    if not instances:
        slots[hidden] = np.where(outliers, -1, persons + labels)
        return slots, slots
    classes = slots.copy()
    alone = labels.max(initial=-1) + np.cumsum(outliers)
    classes[hidden] = persons + np.where(outliers, alone, labels)
    slots[hidden] = persons + np.arange(len(hidden))
    return slots, classes


def _make_sampler(
    config: ConfigDict, columns: Columns, classes: np.ndarray, number: int, batch_size: int
) -> Sampler:
    """Batches of known persons, and after them of clusters; outliers are put together at random."""
    seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
    draw = {"num_instances": config.num_instances, "seed": seed}
    hidden = columns["identity"] < 0
    sizes = np.bincount(classes + 1)  # of the classes from -1
    alone = np.flatnonzero(hidden & (classes >= 0) & (sizes[classes + 1] == 1))
    groups = np.where(hidden, classes + 1, 0)
    mixed = np.random.default_rng(seed).permutation(len(alone)) // config.num_instances
    groups[alone] = len(sizes) + mixed
    found, taken = len(np.unique(groups[groups > 0])), batch_size // config.num_instances
    if found < taken:
        raise InputError(
            f"round {number} has {found} clusters; a batch takes {taken}: change the settings of "
            "clusters (eps, min_samples), or lower unlabelled.batch_size"
        )
    second = samplers.by_identity(groups, batch_size, camids=columns["camid"], **draw)
    if batch_size == config.batch_size:
        return second
    first = samplers.by_identity(columns["pid"], config.batch_size - batch_size, **draw)
    return samplers.side_by_side(first, second)


def _describe(columns: Columns, labels: np.ndarray) -> dict[str, float]:
    """What is logged of a clustering; beside its size, how well it agrees with who is who."""
    from sklearn import metrics  # slow to import

    found = {"round/clusters": labels.max(initial=-1) + 1, "round/outliers": np.sum(labels < 0)}
    truth = columns["true_pid"][columns["identity"] < 0]
    judged = (truth > 0) & (labels >= 0)
    if judged.any():
        pair = truth[judged], labels[judged]
        found["round/nmi"] = metrics.normalized_mutual_info_score(*pair)
        found["round/ari"] = metrics.adjusted_rand_score(*pair)
    return {name: float(value) for name, value in found.items()}


def _keep(path: Path, names: np.ndarray, labels: np.ndarray, number: int) -> None:
    """Writes the clusters of every round up to this one; a round that is made again, once."""
    before = labels[None][:0]
    if number and path.exists():
        with np.load(path) as kept:
            before = kept["labels"][:number]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, name=names, labels=np.concatenate([before, labels[None]]))
    write_atomically(path, buffer.getvalue())


def make_rounds(training: Training, workdir: Path) -> Callable[[TrainState, int], Round]:
    """Makes the rounds: features, clusters, a memory of them, and the batches.

    Args:
      training: what `experiment.prepare` has built, with the images of `open_sides`.
      workdir: the folder of the run, where `FILE` is written: "name" [M] of the pictures without
        labels, and "labels" int [R, M], their clusters in R rounds.

    Returns:
      A function (state, number) -> round.

    Raises:
      InputError: (when called) there are fewer clusters than a batch takes.
    """
    config, columns = training.config, training.train
    unlabelled, cluster = _read(config)
    hidden = np.flatnonzero(columns["identity"] < 0)
    predict = Predictor(training.apply, None, model=training.model, batch_size=config.batch_size)

    def make_round(state: TrainState, number: int) -> Round:
        now = predict.with_variables(state.averaged_variables)
        vectors = features(now, columns)["feature"]
        kept = state.collections["memory"]
        threshold = float(kept["threshold"]) if number else None
        labels, threshold = cluster(vectors[hidden], threshold=threshold)
        if jax.process_index() == 0:
            _keep(workdir / FILE, columns["name"][hidden], labels, number)
        slots, classes = assign(columns, labels, instances=unlabelled.instances)
        made = memory.fill(vectors, slots, classes, len(kept["labels"]))
        made["threshold"] = jnp.float32(threshold)

        def reset(state: TrainState) -> TrainState:
            filled = devices.replicate(training.mesh, made)
            return state.replace(collections=state.collections | {"memory": filled})

        devices.release_memory()
        return Round(
            columns | {"slot": slots},
            _make_sampler(config, columns, classes, number, unlabelled.batch_size),
            config.steps_per_epoch,
            reset,
            report=_describe(columns, labels),
        )

    return make_round


def fit(config: ConfigDict, workdir: Path, defaults: ConfigDict | None = None) -> None:
    """Trains an experiment in a folder, or continues the run that the folder holds.

    Args:
      config: the experiment's config.
      workdir: the folder of the run.
      defaults: the settings as the config's file has them, see `settings.check_same_run`.

    Raises:
      InputError: see `fitting.train`, `open_sides` and `make_rounds`.
    """
    rounds = functools.partial(make_rounds, workdir=Path(workdir).expanduser())
    fitting.train(config, workdir, defaults, rounds, open_sides)
