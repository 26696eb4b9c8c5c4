"""From a config to all that a training needs: what is built before the first step."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from market_jax import build, devices, history, limits, losses, settings
from market_jax.data import columns as columns_
from market_jax.data.datasets import Dataset
from market_jax.data.schema import merge
from market_jax.errors import InputError
from market_jax.history import Beginning
from market_jax.losses import Context
from market_jax.metrics.attributes import count_labels
from market_jax.models import inputs
from market_jax.training import hooks, step, trackers, transfer
from market_jax.training.plan import Plan
from market_jax.training.state import TrainState, draw_variables, init_state, init_variables
from market_jax.typing import Columns


class Training(NamedTuple):
    """What a recipe has built.

    Attributes:
      config: of the experiment, counted settings filled in.
      dataset: whose "train" split is trained on and whose "val" split is held out.
      train: columns of "train".
      val: columns of "val".
      model: the Flax module.
      apply: `model.apply`.
      objective: what is minimised and reported.
      optimizer: of the parameters.
      hooks: what happens after each update.
      plan: when what happens.
      mesh: the devices.
      clustered: the pictures that it learns from without labels, and the run that it began with
        has: (names of the data sets, split) each.
      beginnings: what it began with, then what that began with, and so on.
    """

    config: ConfigDict
    dataset: Dataset
    train: Columns
    val: Columns
    model: Any
    apply: Callable
    objective: step.Objective
    optimizer: Any
    hooks: list[hooks.Hook]
    plan: Plan
    mesh: Any
    clustered: list[tuple[str, str]]
    beginnings: list[Beginning]


def check_classes(config: ConfigDict, labels: Mapping[str, tuple[str, ...]]) -> None:
    """Checks that `config.model.classes` has as many classes for each label as the data set.

    Args:
      config: of the experiment.
      labels: label -> class names, from the data set's schema.

    Raises:
      InputError: the numbers differ; the message names the label and both.
    """
    for name, count in (config.model.get("classes") or {}).items():
        if name in labels and count != len(labels[name]):
            raise InputError(
                f"model.classes.{name} is {count}; the data set has {len(labels[name])} classes: "
                f"{', '.join(labels[name])}"
            )


class Sides(NamedTuple):
    """The images of a training.

    Attributes:
      config: of the experiment, with what the data say.
      train: columns of the images to train on.
      val: columns of the held-out images.
    """

    config: ConfigDict
    train: Columns
    val: Columns


def open_sides(config: ConfigDict, dataset: Dataset) -> Sides:
    """The images of a supervised training, and what its config counts of them.

    Args:
      config: of the experiment; `model.identities` of -1 becomes the number of persons, and
        `model.backbone.cameras` of (-1,) the numbers of the cameras.
      dataset: that it is trained on.
    """
    train = dataset.open("train")
    return Sides(settings.count(config, counted(train)), train, dataset.open("val"))


def counted(columns: Columns) -> dict[str, Any]:
    """Settings of `settings.COUNTED` that follow from the images that are trained on.

    Args:
      columns: columns of these images.
    """
    persons, cameras = int(columns["identity"].max(initial=-1)) + 1, np.unique(columns["camid"])
    known = tuple(cameras[cameras >= 0].tolist())
    return {"model.identities": persons, "model.backbone.cameras": known}


def class_ratios(
    columns: Columns, labels: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[float, ...]]:
    """The share of each class among the known labels of images, for losses that answer rarity.

    Args:
      columns: columns of the images.
      labels: label -> class names.

    Returns:
      Label -> K ratios, which add up to 1; they are all the same where no label is known.
    """
    ratios = {}
    for name, counts in count_labels(columns, labels).items():
        counts = np.array(counts if any(counts) else [1] * len(counts))
        ratios[name] = tuple((counts / counts.sum()).tolist())
    return ratios


class _AnyColumn(dict):
    """A made batch, which has every column that a loss may ask for."""

    def __or__(self, other: dict) -> "_AnyColumn":
        return _AnyColumn({**self, **other})

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str):
        return jnp.zeros(len(self["mask"]), jnp.int32)


def check(config: ConfigDict) -> None:
    """Builds all that needs no data and traces a step on a made batch.

    Args:
      config: of the experiment.

    Raises:
      InputError: a name, a kind, a value or a shape is wrong; the message names it.
    """
    limits.check(config.to_dict())
    weighted = any(spec.get("uncertainty") for spec in config.losses.values())
    if config.model.get("uncertainty") and not weighted:
        raise InputError(
            "model.uncertainty is True, but no loss takes a learned weight (its field "
            "'uncertainty'), so that nothing would be learned: "
            "--config=configs/source_b.py:uncertain sets both"
        )
    filled = settings.count(config, settings.COUNTED)
    model = build.model(filled.model, filled.dtype)
    objective = build.objective(config)
    optimizer, after = build.optimizer(config, model, 1), build.hooks(filled)
    build.evaluators_of(config)
    trackers.make(config.writers.to_dict())

    def trace(key, stage):
        augment = build.augment(stage)
        apply = build.apply(stage, build.model(stage.model, stage.dtype))
        images = jnp.zeros((2, *config.data.image_size, 3), jnp.uint8)
        batch = _AnyColumn(mask=jnp.ones(2, bool), image=augment(key, images))
        variables = draw_variables(model, config.data.image_size, key)
        state = hooks.init_all(init_state(variables, optimizer, seed=0), after)
        keys = {"dropout": key, "sample": key}
        collections = list(state.collections)
        see = functools.partial(apply, **inputs.of(apply, batch))
        outputs, _ = see(
            state.variables, batch["image"], train=True, rngs=keys, mutable=collections
        )
        for at, found in ((state.step, outputs), (None, see(variables, batch["image"]))):
            context = Context(found, batch, at, state.collections)
            losses.evaluate_terms(objective.terms, objective.metrics, context)

    try:
        for _, stage in build.stages(filled):
            jax.eval_shape(functools.partial(trace, stage=stage), jax.random.key(0))
    except InputError:
        raise
    except Exception as error:  # of Flax and JAX, about shapes
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(
            f"model {config.model.name!r}, the losses and data.image_size "
            f"{tuple(stage.data.image_size)} do not fit together: {reason}"
        ) from error


def prepare(
    config: ConfigDict,
    workdir: Path,
    defaults: ConfigDict | None,
    sides: Callable[[ConfigDict, Dataset], Sides] = open_sides,
) -> Training:
    """Checks the config and builds everything but the state; see `fitting.train`.

    Args:
      config: of the experiment.
      workdir: the folder of the run.
      defaults: the settings as the config's file has them.
      sides: opens the images that are trained on and held out.
    """
    check(config)
    mesh = devices.make_mesh()
    devices.check_batch_size(config.batch_size, mesh, config.grad_accum_steps)
    saved = history.read(workdir)
    if saved:
        settings.check_same_run(workdir, saved.config, config, defaults)
    dataset = build.dataset(config, saved.kept if saved else None)
    if saved:
        merge([saved.schema, dataset.schema])
        clustered, beginnings = saved.clustered, saved.beginnings
    else:
        clustered, beginnings = history.begin(config)
        known = [division for before in beginnings for division in before.divisions]
        transfer.check_held_out(config.model.get("pretrained", ""), known, dataset)
    check_classes(config, dataset.schema.labels)
    config, train, val = sides(config, dataset)
    steps_per_epoch = config.steps_per_epoch or build.sampler(config, train).steps
    plan = build.plan(config, steps_per_epoch)
    model = build.model(config.model, config.dtype)
    made = Training(
        config=config,
        dataset=dataset,
        train=train,
        val=val,
        model=model,
        apply=build.apply(config, model),
        objective=build.objective(
            config, plan.total_steps, class_ratios(train, dataset.schema.labels)
        ),
        optimizer=build.optimizer(config, model, steps_per_epoch),
        hooks=build.hooks(config),
        plan=plan,
        mesh=mesh,
        clustered=clustered,
        beginnings=beginnings,
    )
    return _load(made) if config.data.in_memory else made  # once all else is found to be right


def _load(training: Training) -> Training:
    """The same with its pictures in memory, for evaluators too where they are those of a split."""
    sides = {name: columns_.in_memory(getattr(training, name)) for name in ("train", "val")}
    own = {
        name: side
        for name, side in sides.items()
        if getattr(training, name)["image"] is training.dataset.open(name)["image"]
    }

    def open_split(split: str) -> Columns:
        return own[split] if split in own else training.dataset.open(split)

    return training._replace(**sides, dataset=training.dataset._replace(open=open_split))


def first_state(training: Training) -> TrainState:
    """The state of step 0, on every device."""
    config = training.config
    variables = init_variables(training.model, config.data.image_size, seed=config.seed)
    variables = build.pretrained_variables(config, variables)
    state = init_state(variables, training.optimizer, seed=config.seed)
    return devices.replicate(training.mesh, hooks.init_all(state, training.hooks))
