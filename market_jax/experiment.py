"""The composition root: the only reader of a config, where names become functions."""

import contextlib
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

import data_prep
from market_jax import devices, losses, networks, settings
from market_jax.data import columns, pipeline, samplers, transforms
from market_jax.errors import InputError
from market_jax.evaluators import reconstructions
from market_jax.files import write_atomically
from market_jax.kernels import convolution
from market_jax.metrics.attributes import count_labels
from market_jax.registry import choose
from market_jax.report import curves
from market_jax.retrieval import stages
from market_jax.training import checkpoints, loop, optimizer, profile, step, writers
from market_jax.training.state import TrainState, create
from market_jax.typing import Columns

CACHE_DIR = Path("data")  # where raw folders are prepared


def make_model(config: ConfigDict):
    """`config.model`, see `networks.build`."""
    return networks.build(config.model.to_dict(), config.dtype)


def make_apply(config: ConfigDict, model) -> Callable:
    """`model.apply`, its convolutions computed as `config.convolution` says."""
    return convolution.applying(config.convolution, model.apply)


def make_loss(config: ConfigDict, total_steps: int = 1) -> Callable:
    """`config.losses` -> (outputs, batch) -> (scalar, metrics)."""
    known = {name: getattr(losses, name) for name in losses.__all__}
    terms = {}
    for name, spec in config.losses.to_dict().items():
        term, weight, annealing = spec.pop("term"), spec.pop("weight"), spec.pop("anneal", None)
        factor = losses.anneal(**annealing, total_steps=total_steps) if annealing else None
        terms[name] = (functools.partial(choose(term, known, "loss term"), **spec), weight, factor)
    return functools.partial(losses.weighted_sum, terms)


def make_augment(config: ConfigDict) -> Callable:
    """`config.augmentation` -> (key, uint8 images) -> float32 images."""
    fields = config.augmentation.to_dict()

    def augment(key, images):
        return transforms.augment(key, transforms.to_float(images), fields)

    return augment


def prepared_directory(config: ConfigDict) -> Path:
    """The prepared dataset of `config.data`; a raw folder is prepared once, under `data/`."""
    name, directory = config.data.name, config.data.dir
    choose(name, data_prep.BUILDERS, "data set (data.name)")
    if not directory and name != "synthetic":
        raise InputError(f"data.dir is empty; it must name the folder of {name}")
    source = Path(directory or CACHE_DIR / "synthetic-raw")
    if not directory and not source.exists():
        data_prep.draw(source, progress=data_prep.progress_bar)
    if not source.is_dir():
        raise InputError(f"data.dir is {directory}: there is no such folder")
    if found := columns.find_dataset(source):
        if found.parent.name != name:
            raise InputError(f"data.name is {name}, but {found} is {found.parent.name}")
        return found
    logging.info("data: %s is a raw folder; its prepared form is under %s/", source, CACHE_DIR)
    return data_prep.prepare_once(name, source, CACHE_DIR)


def open_stored(config: ConfigDict, split: str) -> Columns:
    """The columns of a split as it was prepared: "train", "test" or "query"."""
    return columns.open_split(
        prepared_directory(config),
        split,
        image_size=config.data.image_size,
        in_memory=config.data.in_memory,
    )


def open_training(config: ConfigDict) -> tuple[Columns, Columns]:
    """The prepared training split, split by identity: (train, val), with "identity"."""
    fields = config.data
    rows = open_stored(config, "train")
    sides = columns.split_by_identity(rows, fraction=fields.val_fraction, seed=fields.split_seed)
    train, val = map(columns.number_identities, sides)
    return train, val | {"identity": np.full_like(val["identity"], -1)}  # unknown to the network


def open_split(config: ConfigDict, split: str) -> Columns:
    """The columns of "train" or "val" (see `open_training`), or of "test" or "query"."""
    if split in ("train", "val"):
        return open_training(config)[("train", "val").index(split)]
    return open_stored(config, split)


def make_stage(config: ConfigDict, text: str, features: Callable[[], Columns]) -> Callable:
    """A stage in words, see `retrieval.stages`; it may learn from the training split.

    Args:
      config: whose metric and data it takes.
      text: the stage.
      features: () -> the training split's columns with its features.
    """

    def training() -> Columns:
        return {k: v for k, v in open_split(config, "train").items() if k != "image"}

    metric = config.retrieval.metric
    return stages.make(text, metric=metric, training=training, training_features=features)


def make_stages(config: ConfigDict, features: Callable[[], Columns]) -> list[Callable]:
    """`config.retrieval.stages` -> [(query, gallery, distances) -> distances, ...]."""
    return [make_stage(config, text, features) for text in config.retrieval.stages]


def count_identities(config: ConfigDict, train: Columns) -> ConfigDict:
    """The config; where `model.identities` is -1 it becomes the persons of the training split."""
    if "identities" not in config.model or config.model.identities != -1:
        return config
    counted = config.copy_and_resolve_references()
    counted.model.identities = int(train["identity"].max()) + 1
    return counted


class Plan(NamedTuple):
    """The steps of a training."""

    sampler: samplers.Sampler
    total_steps: int
    evaluate_every: int


def check_counts(config: ConfigDict) -> None:
    """Raises an `InputError` for a count that is below 1."""
    for key in ("epochs", "evaluate_every", "log_every", "accumulate"):
        if config[key] < 1:
            raise InputError(f"{key} is {config[key]}; it must be 1 or more")


def make_plan(config: ConfigDict, pids: np.ndarray) -> Plan:
    """`config.epochs` and `config.evaluate_every`, in steps, for a split of images of `pids`."""
    each, draw = config.images_per_identity, {"seed": config.seed}
    if each and config.accumulate > 1:
        raise InputError("images_per_identity needs whole batches: accumulate must be 1")
    sampler = (
        samplers.by_identity(pids, config.batch_size, each=each, **draw)
        if each
        else samplers.shuffled(len(pids), config.batch_size, **draw)
    )
    return Plan(sampler, config.epochs * sampler.steps, config.evaluate_every * sampler.steps)


def make_optimizer(config: ConfigDict, plan: Plan):
    """`config.optimizer` -> an optax optimiser."""
    fields = config.optimizer.to_dict()
    fields["plateau"] = fields.pop("plateau_factor") < 1
    del fields["plateau_every"]
    schedule = optimizer.make_schedule(
        fields.pop("schedule"),
        learning_rate=fields.pop("learning_rate"),
        warmup_steps=round(fields.pop("warmup_epochs") * plan.sampler.steps),
        total_steps=plan.total_steps,
    )
    return optimizer.make_optimizer(fields.pop("name"), schedule, **fields)


def lower_on_plateau(config: ConfigDict, state: TrainState, progress: loop.Progress) -> TrainState:
    """`config.optimizer.plateau_*`: the state with a lower rate, where the loss stands still."""
    fields = config.optimizer
    if fields.plateau_factor < 1 and progress.stale and progress.stale % fields.plateau_every == 0:
        return state.replace(opt_state=optimizer.lower(state.opt_state, fields.plateau_factor))
    return state


def fresh_state(config: ConfigDict, model, tx) -> TrainState:
    """The state of step 0."""
    example = {"image": np.zeros((1, *config.data.image_size, 3), np.float32)}
    return create(model, example, tx, seed=config.seed)


def first_state(config: ConfigDict, model, tx) -> TrainState:
    """The fresh state, with `config.model.pretrained`'s weights."""
    state = fresh_state(config, model, tx)
    return state.replace(**networks.with_weights(config.model.to_dict(), state.variables))


def restore_latest(manager, state: TrainState) -> tuple[TrainState, loop.Progress]:
    """The latest checkpoint's state and progress, or the first ones where there is none."""
    latest = checkpoints.find(manager)
    if latest is None:
        return state, loop.Progress()
    logging.info("going on from the checkpoint of step %d", latest)
    extra = checkpoints.read_extra(manager, latest)
    return checkpoints.read_state(manager, latest, state), loop.Progress(**extra["progress"])


def make_train_step(config: ConfigDict, apply: Callable, loss: Callable, tx) -> Callable:
    """`config.augmentation`, `config.accumulate` and `config.remat` -> the training step."""
    return step.make_train_step(
        apply,
        loss,
        make_augment(config),
        tx,
        accumulate=config.accumulate,
        remat=config.remat,
    )


def make_evaluation(
    config: ConfigDict, apply: Callable, loss: Callable, val: Columns, place: Callable
):
    """Returns the function from a state to its metrics over the validation images."""
    evaluation = step.make_evaluation_step(apply, loss, transforms.to_float)
    order = samplers.sequential(len(val["pid"]), config.batch_size)

    def evaluate(state: TrainState) -> dict[str, float]:
        batches = pipeline.batches(val, order, last=order.steps, share=devices.share())
        means = step.evaluate(evaluation, state.variables, map(place, batches))
        return {f"val/{name}": value for name, value in means.items()}

    return evaluate


def trace(config: ConfigDict, model, train_step: Callable, loss: Callable, tx, workdir: Path):
    """`config.profile`: the step, which writes where its time goes into `workdir`/profile."""
    by_xla = make_train_step(config, convolution.applying("lax", model.apply), loss, tx)
    return profile.traced(
        train_step,
        workdir / "profile",
        count=functools.partial(profile.count_flops, by_xla),
        batch_size=config.batch_size,
        dtype=config.dtype,
    )


def explain(error: loop.NotFiniteError, train: Columns, plan: Plan, manager) -> InputError:
    """What a user needs to look into a loss that is not finite."""
    names = ", ".join(train["name"][plan.sampler.indices(error.step)])
    good = checkpoints.find(manager)
    checkpoint = "none" if good is None else manager.directory / str(good)
    return InputError(f"{error}; its batch: {names}; the last good checkpoint: {checkpoint}")


def fit(config: ConfigDict, workdir: Path) -> None:
    """Trains the experiment in `workdir`, or goes on with the run that is there.

    Writes config.json, checkpoints/, metrics.jsonl, tensorboard/ and curves.png.

    Raises:
      InputError: what the config, the data or the workdir has wrong; or the loss became
        not finite (with the step, the batch's file names and the last good checkpoint).
    """
    workdir = Path(workdir)
    train, val = open_training(config)
    config = count_identities(config, train)
    settings.check_same_run(workdir, config)
    check_counts(config)
    mesh = devices.make_mesh()
    devices.check_batch_size(config.batch_size, mesh, config.accumulate)
    place = functools.partial(devices.place_batch, mesh)
    model = make_model(config)
    apply = make_apply(config, model)
    plan = make_plan(config, train["pid"])
    loss = make_loss(config, plan.total_steps)
    tx = make_optimizer(config, plan)
    reconstructs = any(spec.term == "squared_error" for spec in config.losses.values())
    draw = reconstructions.make(apply, model, val) if reconstructs else lambda *_: None
    saved = {"config": settings.to_json(config), "label_counts": count_labels(train)}

    with contextlib.ExitStack() as stack:
        manager = checkpoints.open_manager(workdir / "checkpoints")
        stack.callback(manager.close)
        state = devices.replicate(mesh, first_state(config, model, tx))
        state, progress = restore_latest(manager, state)
        first = int(state.step)

        def save(done: int, state: TrainState, progress: loop.Progress, metrics: dict) -> None:
            checkpoints.save(manager, done, state, metrics, saved | {"progress": vars(progress)})
            if leader:
                curves.draw(writers.read_metrics(workdir), workdir / "curves.png")
                draw(state.variables, workdir)

        logging.info(
            "%d training and %d validation images, %d parameters, %d steps of %d images",
            *(len(train["pid"]), len(val["pid"])),
            *(sum(p.size for p in jax.tree.leaves(state.params)), plan.total_steps),
            config.batch_size,
        )
        leader = jax.process_index() == 0  # of several hosts one writes the logs
        write = writers.ignore
        if leader:
            write_atomically(workdir / settings.FILE, json.dumps(saved["config"], indent=2) + "\n")
            writer = writers.Writer(workdir, first, plan.total_steps, config.batch_size)
            write = stack.enter_context(writer).write
        train_step = make_train_step(config, apply, loss, tx)
        if config.profile and leader:
            train_step = stack.enter_context(trace(config, model, train_step, loss, tx, workdir))
        batches = pipeline.batches(train, plan.sampler, first=first, share=devices.share())
        try:
            loop.run(
                state,
                map(place, batches),
                step_fn=train_step,
                evaluate_fn=make_evaluation(config, apply, loss, val, place),
                save_fn=save,
                write_fn=write,
                progress=progress,
                total_steps=plan.total_steps,
                evaluate_every=plan.evaluate_every,
                log_every=config.log_every,
                patience=config.patience,
                adjust_fn=functools.partial(lower_on_plateau, config),
            )
        except loop.NotFiniteError as error:
            raise explain(error, train, plan, manager) from None
    logging.info(
        "best validation loss %.4f at step %d; results in %s",
        *(progress.best, progress.best_step, workdir),
    )
