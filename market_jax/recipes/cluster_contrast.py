"""Clusters as a teacher: pictures without labels are clustered, learned from, and clustered anew.

Cluster Contrast (Dai et al. 2022), where every cluster has one slot of the memory and outliers are
left out; and SpCL (Ge et al. 2020), where every picture has one, an outlier is a class of its own,
and persons whose labels are known are learned beside them. A round is an epoch of
`config.steps_per_epoch` steps; at its beginning the network as it is (with averaged parameters, if
there are any) gives the features that are clustered and that the memory is filled with, and at its
end it is evaluated.
"""

import functools
import inspect
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from market_jax import build, devices, fitting, registry, settings
from market_jax.data import columns as columns_
from market_jax.data import samplers
from market_jax.data.datasets import Dataset
from market_jax.data.samplers import Sampler
from market_jax.errors import InputError
from market_jax.evaluators import reid
from market_jax.experiment import Sides, Training, counted
from market_jax.files import read_bytes, write_atomically
from market_jax.inference import Predictor, features
from market_jax.losses import memory
from market_jax.metrics import clusters
from market_jax.retrieval import pseudo_labels
from market_jax.training import checkpoints
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
    parts = {"unlabelled": config, "clusters": config, "memory": config.losses}
    for name, owner in [*parts.items(), ("memory", config.hooks)]:
        if name not in owner:
            raise InputError(
                f"the recipe cluster_contrast needs {name!r}, which the config has not; see "
                "configs/common.py: learn_clusters"
            )
    fields = {"name": "unlabelled"} | config.unlabelled.to_dict()
    unlabelled = registry.bind(fields, {"unlabelled": Unlabelled}, "setting")
    known = registry.names_of(pseudo_labels)
    cluster = registry.bind(config.clusters, known, "clustering (clusters)")
    return registry.complete(unlabelled, "unlabelled")(), cluster


def _output(part: ConfigDict) -> str:
    """The model's output that the memory is made of, by `config.hooks` or `config.losses`."""
    return part.memory.get("features", "embedding")


def _check(config: ConfigDict, unlabelled: Unlabelled) -> None:
    """Refuses settings that do not fit together."""
    if not config.steps_per_epoch:
        raise InputError("steps_per_epoch is 0; this recipe needs it: the steps of a round")
    if config.stages:
        raise InputError(f"this recipe has no stages; the config has {', '.join(config.stages)}")
    if config.grad_accum_steps > 1:
        raise InputError("this recipe needs whole batches: grad_accum_steps must be 1")
    each, rest = config.num_instances, config.batch_size - unlabelled.batch_size
    if not each or unlabelled.batch_size % each or rest % each or rest < 0:
        raise InputError(
            f"num_instances is {each}, unlabelled.batch_size {unlabelled.batch_size} and "
            f"batch_size {config.batch_size}: the first must be 1 or more and divide the others, "
            "and the second be at most the third"
        )
    kept, compared = map(_output, (config.hooks, config.losses))
    if kept != compared:
        raise InputError(
            f"hooks.memory.features is {kept!r} and losses.memory.features {compared!r}; they must "
            "be the same output of the model"
        )
    _check_judged(config, unlabelled.pictures)


def _check_judged(config: ConfigDict, pictures: str) -> None:
    """Refuses to cluster pictures that the training itself is judged on, and selected by."""
    judged = {"val": "checkpoints are chosen by its people"}
    for key, evaluate in build.evaluators_of(config).items():
        split = inspect.signature(evaluate).parameters.get("split")
        if split:
            judged |= dict.fromkeys(reid.split_names(split.default), f"evaluators.{key} judges it")
    split = pictures.partition("/")[0]
    if split in judged:
        raise InputError(
            f"unlabelled.pictures is {pictures!r}, and {judged[split]}: figures on pictures that "
            "are learned from are transductive; name another split, or judge another one"
        )


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
      config: of the experiment; what is open of `settings.COUNTED` is filled in.
      dataset: that it is trained on.

    Raises:
      InputError: a setting is wrong, or there are no images for a part of the batch.
    """
    unlabelled, _ = _read(config)
    _check(config, unlabelled)
    labelled, rows = _find(config, dataset, unlabelled.pictures)
    rest = config.batch_size - unlabelled.batch_size
    if not rest:  # nobody's labels are learned
        labelled = columns_.select(labelled, np.zeros(len(labelled["pid"]), bool))
    known, unknown = len(labelled["pid"]), len(rows["pid"])
    if (rest and not known) or not unknown:
        raise InputError(
            f"batch_size is {config.batch_size}, unlabelled.batch_size {unlabelled.batch_size}: "
            f"there are {known} images for the rest, and {unknown} without labels"
        )
    nothing = np.full(unknown, -1, np.int32)
    hidden = dict.fromkeys(("pid", "identity", *dataset.schema.labels), nothing)
    train = columns_.stack(labelled, rows | hidden)
    train["true_pid"] = np.concatenate([labelled["pid"], rows["pid"]])
    persons = int(labelled["identity"].max(initial=-1)) + 1
    slots = persons + (unknown if unlabelled.instances else unknown // 2)
    numbers = counted(train) | {"hooks.memory.slots": slots}
    val = dataset.open("val")
    val = val | {"slot": np.full(len(val["pid"]), -1, np.int32)}
    return Sides(settings.count(config, numbers), train, val)


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
    order = np.random.default_rng(seed).permutation(len(alone))
    groups[alone] = len(sizes) + order // config.num_instances
    found, taken = len(np.unique(groups[groups > 0])), batch_size // config.num_instances
    if not found:
        raise InputError(
            f"round {number} has no clusters: begin in another --workdir with other settings of "
            "clusters (eps, min_samples)"
        )
    if found < taken:
        logging.warning("round %d has %d clusters; a batch takes %d", number, found, taken)
    mixed = {"camids": columns["camid"], "again": True}
    second = samplers.by_identity(groups, batch_size, **mixed, **draw)
    if batch_size == config.batch_size:
        return second
    first = samplers.by_identity(columns["pid"], config.batch_size - batch_size, **draw)
    return samplers.side_by_side(first, second)


def _describe(columns: Columns, labels: np.ndarray, threshold: float | None) -> dict[str, float]:
    """What is logged of a clustering; beside its size, how well it agrees with who is who.

    "coverage", "nmi" and "ari" are those of `clusters.agreement`.
    """
    found = {"clusters": float(labels.max(initial=-1) + 1), "outliers": float(np.sum(labels < 0))}
    found |= {} if threshold is None else {"threshold": float(threshold)}
    found |= clusters.agreement(labels, columns["true_pid"][columns["identity"] < 0])
    return {f"round/{name}": value for name, value in found.items()}


def _keep(path: Path, columns: Columns, labels: np.ndarray, number: int) -> None:
    """Adds the clusters of a round to the file of all; a round that is made again, once."""
    kept = {}
    if number and path.exists():
        with np.load(path) as before:
            kept = {key: before[key] for key in before if key.isdigit() and int(key) < number}
    buffer = io.BytesIO()
    pictures = {key: columns[key][columns["identity"] < 0] for key in ("name", "digest")}
    np.savez_compressed(buffer, **pictures, **kept, **{str(number): labels})
    write_atomically(path, buffer.getvalue())


def _read_kept(path: Path, columns: Columns, number: int) -> np.ndarray:
    """The clusters of a round that goes on, which fit its memory; clustered anew they might not."""
    how = f"round {number}, which goes on; remove the checkpoints within it, and it begins again"
    try:
        with np.load(io.BytesIO(read_bytes(path))) as kept:
            digests, labels = kept["digest"], kept[str(number)]
    except Exception as error:  # whatever a broken file makes of a parser
        raise InputError(f"{path}: cannot be read ({error}), or has no {how}") from None
    hidden = columns["digest"][columns["identity"] < 0]
    if labels.shape != hidden.shape or not np.array_equal(digests, hidden):
        raise InputError(f"{path}: is of other pictures than {how}")
    return labels


def _unfinished(workdir: Path) -> int | None:
    """The round within which a run goes on; None where it begins one."""
    directory = workdir / "checkpoints"
    step = checkpoints.find(directory)
    if step is None:
        return None
    progress = checkpoints.read_extra(directory, step)["progress"]
    return progress["round"] if step > progress["round_start"] else None


def outlier_shares(path: Path) -> dict[str, float]:
    """In how many of a training's rounds each picture was in no cluster.

    Args:
      path: the `FILE` of the run.

    Returns:
      The picture's digest -> a share, 0 to 1.
    """
    with np.load(path) as kept:
        rounds = [kept[key] < 0 for key in kept if key.isdigit()]
        return dict(zip(kept["digest"].tolist(), np.mean(rounds, axis=0).tolist(), strict=True))


def make_rounds(training: Training, workdir: Path) -> Callable[[TrainState, int], Round]:
    """Makes the rounds: features, clusters, a memory of them, and the batches.

    A run that goes on within a round takes the round's clusters from `FILE`.

    Args:
      training: what `experiment.prepare` has built, with the images of `open_sides`.
      workdir: the folder of the run, where `FILE` is written: "name" and "digest" [M] of the
        pictures without labels, and for each round, "0" and so on, their clusters int [M].

    Returns:
      A function (state, number) -> round.

    Raises:
      InputError: (when called) there are no clusters, or those of a round that goes on are lost.
    """
    config, columns = training.config, training.train
    unlabelled, cluster = _read(config)
    hidden = np.flatnonzero(columns["identity"] < 0)
    predict = Predictor(training.apply, None, model=training.model, batch_size=config.batch_size)
    batch = {key: value for key, value in columns.items() if key != "true_pid"}
    unfinished = _unfinished(workdir)

    def begin(state: TrainState, number: int) -> tuple[np.ndarray, dict]:
        """The clusters of a round that begins, and what the round then does and logs."""
        now = predict.with_variables(state.averaged_variables)
        vectors = features(now, columns, (_output(config.hooks),))["feature"]
        kept = state.collections["memory"]
        before = float(kept["threshold"])  # below 0 where no round has said it
        labels, threshold = cluster(vectors[hidden], before if before >= 0 else None)
        if jax.process_index() == 0:
            _keep(workdir / FILE, columns, labels, number)
        slots, classes = assign(columns, labels, instances=unlabelled.instances)
        made = memory.fill(vectors, slots, classes, len(kept["labels"]))
        made["threshold"] = jnp.float32(-1 if threshold is None else threshold)

        def reset(state: TrainState) -> TrainState:
            filled = devices.replicate(training.mesh, made)
            return state.replace(collections=state.collections | {"memory": filled})

        devices.release_memory()
        return labels, {"reset": reset, "report": _describe(columns, labels, threshold)}

    def make_round(state: TrainState, number: int) -> Round:
        if number == unfinished:  # its memory is in the checkpoint
            labels, more = _read_kept(workdir / FILE, columns, number), {}
        else:
            labels, more = begin(state, number)
        slots, classes = assign(columns, labels, instances=unlabelled.instances)
        sampler = _make_sampler(config, columns, classes, number, unlabelled.batch_size)
        return Round(batch | {"slot": slots}, sampler, config.steps_per_epoch, **more)

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
