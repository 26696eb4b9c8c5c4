"""From a config to all that a training needs: what is built before the first step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from market_jax import build, devices, settings
from market_jax.data import columns as columns_
from market_jax.data.datasets import Dataset
from market_jax.training import hooks, loop, step
from market_jax.training.state import TrainState, init_state, init_variables
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
    plan: loop.Plan
    mesh: Any


def fill_in(config: ConfigDict, dataset: Dataset, train: Columns) -> ConfigDict:
    """The config with what the data say: `model.identities` of -1 becomes their number.

    Args:
      config: of the experiment.
      dataset: that it is trained on.
      train: columns of its training split, "identity" among them.

    Raises:
      InputError: `model.classes` are not those of the data set.
    """
    build.check_classes(config, dataset.schema.labels)
    if config.model.get("identities", 0) != -1:
        return config
    counted = config.copy_and_resolve_references()
    counted.model.identities = int(train["identity"].max()) + 1
    return counted


def prepare(config: ConfigDict, workdir: Path, defaults: ConfigDict | None) -> Training:
    """Builds everything but the state, and checks the config; see `fitting.train`.

    Args:
      config: of the experiment.
      workdir: the folder of the run.
      defaults: the settings as the config's file has them.
    """
    dataset = build.dataset(config)
    train, val = dataset.open("train"), dataset.open("val")
    config = fill_in(config, dataset, train)
    settings.check_same_run(workdir, config, defaults)
    build.check_counts(config)
    mesh = devices.make_mesh()
    devices.check_batch_size(config.batch_size, mesh, config.grad_accum_steps)
    steps_per_epoch = build.sampler(config, train).steps
    plan = build.plan(config, steps_per_epoch)
    model = build.model(config.model, config.dtype)
    made = Training(
        config=config,
        dataset=dataset,
        train=train,
        val=val,
        model=model,
        apply=build.apply(config, model),
        objective=build.objective(config, plan.total_steps),
        optimizer=build.optimizer(config, model, steps_per_epoch),
        hooks=build.hooks(config),
        plan=plan,
        mesh=mesh,
    )
    return _load(made) if config.data.in_memory else made  # once all else is found to be right


def _load(training: Training) -> Training:
    """The same with its pictures in memory, for evaluators too."""
    sides = {name: columns_.in_memory(getattr(training, name)) for name in ("train", "val")}

    def open_split(split: str) -> Columns:
        return sides[split] if split in sides else training.dataset.open(split)

    return training._replace(**sides, dataset=Dataset(training.dataset.schema, open_split))


def first_state(training: Training) -> TrainState:
    """The state of step 0, on every device."""
    config = training.config
    variables = init_variables(training.model, config.data.image_size, seed=config.seed)
    variables = build.pretrained_variables(config, variables)
    state = init_state(variables, training.optimizer, seed=config.seed)
    return devices.replicate(training.mesh, hooks.init_all(state, training.hooks))
