"""A training that runs: restored, evaluated, logged and saved, whatever its recipe.

A recipe brings its rounds; `train` does the rest.
"""

import contextlib
import dataclasses
import functools
import json
import signal
from collections.abc import Callable
from pathlib import Path

import jax
from absl import logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from market_jax import build, devices, experiment, history, scripts, settings
from market_jax.data import pipeline
from market_jax.data.datasets import Dataset
from market_jax.errors import InputError
from market_jax.experiment import Sides, Training
from market_jax.files import locked, write_atomically
from market_jax.held_out import HeldOut
from market_jax.metrics.attributes import count_labels
from market_jax.training import checkpoints, loop, optimizer, profile, step, trackers, writers
from market_jax.training.loop import Round
from market_jax.training.plan import NotFiniteError, Progress
from market_jax.training.state import TrainState


def restore(directory: Path, state: TrainState) -> tuple[TrainState, TrainState, Progress]:
    """The latest checkpoint: its state, the state at its round's beginning, and the progress.

    Args:
      directory: the folder of the checkpoints.
      state: of step 0, which is returned where there is no checkpoint.

    Raises:
      InputError: the checkpoint is damaged; the message names others, if there are any.
    """
    latest = checkpoints.find(directory)
    if latest is None:
        return state, state, Progress()
    logging.info("going on from the checkpoint of step %d", latest)
    with checkpoints.offering_others(directory, latest):
        progress = Progress(**checkpoints.read_extra(directory, latest)["progress"])
        found = checkpoints.read_state(directory, latest, state)
        if progress.round_start in (0, latest):
            return found, state if progress.round_start == 0 else found, progress
        return found, checkpoints.read_state(directory, progress.round_start, state), progress


def lower_on_plateau(config: ConfigDict, state: TrainState, progress: Progress) -> TrainState:
    """`config.optimizer.plateau_*`: a lower learning rate where the metric stands still.

    Args:
      config: of the experiment.
      state: of the training.
      progress: of the training.
    """
    fields = config.optimizer
    if fields.plateau_factor < 1 and progress.stale and progress.stale % fields.plateau_every == 0:
        return state.replace(opt_state=optimizer.lower(state.opt_state, fields.plateau_factor))
    return state


def plain_step(training: Training, module_apply: Callable | None = None) -> Callable:
    """The jitted training step, not traced.

    Args:
      training: what is trained.
      module_apply: the model's apply; None is the training's.
    """
    config = training.config
    return step.make_train_step(
        module_apply or training.apply,
        objective=training.objective,
        augment=build.augment(config),
        optimizer=training.optimizer,
        hooks=training.hooks,
        grad_accum_steps=config.grad_accum_steps,
        remat=config.remat,
    )


def make_step(training: Training, workdir: Path, stack, leader: bool) -> Callable:
    """The training step, traced into the run's folder with `config.profile`.

    Args:
      training: what is trained.
      workdir: the folder of the run.
      stack: closes the trace at the end.
      leader: whether this process writes.
    """
    config = training.config
    train_step = plain_step(training)
    if not (config.profile and leader):
        return train_step
    by_xla = plain_step(training, dataclasses.replace(training.apply, implementation="lax"))
    return stack.enter_context(
        profile.traced(
            train_step,
            workdir / "profile",
            count=functools.partial(profile.count_flops, by_xla),
            batch_size=config.batch_size,
            dtype=config.dtype,
        )
    )


def settle(train_step: Callable) -> Callable:
    """A step that gives back what the first one, and its compilation, have left free.

    The buffers of later steps do not always fit into that: the process would have both.

    Args:
      train_step: (state, batch) -> (state, metrics).
    """
    settled = False

    def run(state, batch):
        nonlocal settled
        result = train_step(state, batch)
        if not settled:
            settled = True
            jax.block_until_ready(result)
            devices.release_memory()
        return result

    return run


def explain(error: NotFiniteError, directory: Path) -> InputError:
    """What a user needs to look into a value that is not finite.

    Args:
      error: of the loop.
      directory: the folder of the checkpoints.
    """
    good = checkpoints.find(directory)
    checkpoint = "none" if good is None else directory / str(good)
    batch = f"; its batch: {', '.join(error.batch)}" if error.batch else ""
    return InputError(f"{error}{batch}; the last good checkpoint: {checkpoint}")


def train(
    config: ConfigDict,
    workdir: Path,
    defaults: ConfigDict | None,
    make_rounds: Callable[[Training], Callable[[TrainState, int], Round]],
    sides: Callable[[ConfigDict, Dataset], Sides] = experiment.open_sides,
) -> None:
    """Trains the experiment in a folder, or goes on with the run that is there.

    Writes config.json, checkpoints/, metrics.jsonl, what `config.writers` keep in the folder
    (tensorboard/, trackers/), curves.png and what the evaluators draw.

    Args:
      config: of the experiment.
      workdir: the folder.
      defaults: the settings as the config's file has them, see `settings.check_same_run`.
      make_rounds: training -> (state at a round's beginning, its number) -> the round.
      sides: opens the images that are trained on and held out.

    Raises:
      InputError: what the config, the data or the folder has wrong; or a value became not finite
        (with the step, the batch's file names and the last good checkpoint).
    """
    workdir = Path(workdir).expanduser()
    if set("[]") & set(str(workdir.absolute())):
        raise InputError(
            f"{workdir}: brackets in the name of a folder hinder Orbax; choose another"
        )
    taken = f"{workdir}: another training is running in this folder; give another --workdir"
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(locked(workdir / ".lock", taken))
            if not checkpoints.steps(workdir / "checkpoints"):
                settings.check_folder(workdir)
            checkpoints.clean(workdir / "checkpoints")
        training = experiment.prepare(config, workdir, defaults, sides)
        devices.release_memory()  # what reading the data has left
        several = devices.share()[1] > 1  # JAX has a handler of its own for them
        asked = scripts.Asked() if several else stack.enter_context(scripts.asked_to_stop())
        progress = _run(training, workdir, stack, asked, make_rounds)
    if progress.best is not None:
        logging.info(
            "best %s %s at step %d; results in %s",
            *(training.plan.select.metric, progress.best, progress.best_step, workdir),
        )


def _run(
    training: Training, workdir: Path, stack, asked: scripts.Asked, make_rounds: Callable
) -> Progress:
    """Goes on from the latest checkpoint, or begins, and trains to the end."""
    directory = workdir / "checkpoints"
    state, border, progress = restore(directory, experiment.first_state(training))
    _log_sizes(training, state)
    held_out = HeldOut(training, workdir, jax.process_index() == 0)
    actions = _actions(training, workdir, stack, asked, held_out, first=int(state.step))
    try:
        state = loop.run(
            state, border, progress, training.plan, actions,
            rounds=make_rounds(training), feed=functools.partial(_feed, training),
        )  # fmt: skip
        held_out.finish(state)
    except NotFiniteError as error:
        raise explain(error, directory) from None
    except loop.StoppedError as error:
        logging.warning("%s: saved in %s", error, directory / str(error.step))
        raise scripts.Stopped(asked.number or signal.SIGTERM) from None
    return progress


def _log_sizes(training: Training, state: TrainState) -> None:
    logging.info(
        "%d training and %d validation images, %d parameters, %d steps of %d images",
        *(len(training.train["pid"]), len(training.val["pid"])),
        *(sum(p.size for p in jax.tree.leaves(state.params)), training.plan.total_steps),
        training.config.batch_size,
    )


def _feed(training: Training, this: Round, first: int):
    """Batches of a round, on the devices."""
    place = functools.partial(devices.place_batch, training.mesh)
    return map(
        place, pipeline.batches(this.columns, this.sampler, first=first, share=devices.share())
    )


def _make_stop(asked: scripts.Asked) -> Callable[[int], bool]:
    """Whether training is asked to stop; several processes stop after the same step."""
    if devices.share()[1] > 1:
        return multihost_utils.reached_preemption_sync_point
    return lambda step: asked.number is not None


def _actions(
    training: Training,
    workdir: Path,
    stack,
    asked: scripts.Asked,
    held_out: HeldOut,
    *,
    first: int,
) -> loop.Actions:
    """What the loop calls; of several processes one writes the logs."""
    config, leader = training.config, jax.process_index() == 0
    labels = training.dataset.schema.labels
    saved = {
        "format": settings.FORMAT,
        "config": settings.to_json(config),
        "labels": {name: list(classes) for name, classes in labels.items()},
        "label_counts": count_labels(training.train, labels),
        "divisions": [division._asdict() for division in training.dataset.divisions()],
        "clustered": training.clustered,
        "beginnings": history.as_json(training.beginnings),
    }
    write = writers.ignore
    if leader:
        text = json.dumps({"format": settings.FORMAT, "config": saved["config"]}, indent=2)
        write_atomically(workdir / settings.FILE, text + "\n")
        total = training.plan.total_steps
        writer = writers.Writer(
            workdir,
            first,
            total,
            config.batch_size,
            trackers=trackers.make(config.writers.to_dict()),
            settings=saved["config"],
        )
        write = stack.enter_context(writer).write

    def evaluate_or_stop(state: TrainState) -> dict[str, float]:
        with asked.at_once():
            return held_out(state)

    def save(done: int, state: TrainState, progress: Progress, score: float | None) -> None:
        extra = saved | {"progress": vars(progress) | {}}
        start = progress.round_start
        directory = workdir / "checkpoints"
        checkpoints.save(directory, done, state, score=score, round_start=start, extra=extra)
        held_out.draw_curves(done)

    return loop.Actions(
        step=settle(make_step(training, workdir, stack, leader)),
        evaluate=evaluate_or_stop,
        adjust=functools.partial(lower_on_plateau, config),
        save=save,
        write=write,
        stop=_make_stop(asked),
    )
