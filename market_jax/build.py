"""One sub-config -> one object: where names become functions.

Only the recipes and this module read a config; the modules below take plain arguments.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from market_jax import evaluators, kinds, limits, losses, models, registry
from market_jax.data import datasets, samplers, transforms
from market_jax.data.datasets import Dataset
from market_jax.data.samplers import Sampler
from market_jax.errors import InputError
from market_jax.kernels import convolution
from market_jax.losses import Term, annealing
from market_jax.models import backbones, heads, inputs
from market_jax.registry import choose
from market_jax.training import hooks as hooks_
from market_jax.training import optimizer as optimizer_
from market_jax.training import schedules, transfer
from market_jax.training.plan import Plan, Select
from market_jax.training.step import Objective
from market_jax.typing import Columns, PyTree, Range
from market_jax.weights import pretrained

CACHE_DIR = Path("data")  # where raw folders are prepared
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def _defining(attribute: str, *packages) -> dict[str, Callable]:
    """File name -> the attribute, of the files of packages that define it."""
    files = {
        name: path for package in packages for name, path in registry.files_of(package).items()
    }
    found = {
        name: getattr(importlib.import_module(p), attribute, None) for name, p in files.items()
    }
    return {name: value for name, value in found.items() if value is not None}


def _plain(fields) -> dict:
    """A config, or a part of it, as a dict."""
    return fields.to_dict() if isinstance(fields, ConfigDict) else dict(fields)


def _bind_term(spec: Mapping, known: Mapping, what: str, **given) -> Callable:
    """A function of a context, its other arguments bound."""
    return registry.complete(registry.bind(spec, known, what, **given), what, None)


def model(fields: Mapping, dtype: str = "float32"):
    """Makes the network that `config.model` describes.

    Args:
      fields: a spec, see `market_jax.registry`; "name" is a file of `market_jax.models` or of its
        backbones. The fields "backbone" and "head" are specs too; "pretrained" is not read here
        but by `pretrained_variables`.
      dtype: dtype of the computation, "float32" or "bfloat16".

    Raises:
      InputError: a name or a field does not exist, or a value is of another kind.
    """
    fields = {key: value for key, value in _plain(fields).items() if key != "pretrained"}
    given = {"dtype": choose(dtype, _DTYPES, "dtype")}
    if "backbone" in fields:
        known = _defining("Model", backbones)
        given["backbone"] = registry.make(fields.pop("backbone"), known, "backbone", **given)
    if "head" in fields:
        later = dict.fromkeys(("classes", "dropout", "dtype"), registry.LATER)
        given["head"] = registry.bind(fields.pop("head"), heads.HEADS, "head", **later)
    return registry.make(fields, _defining("Model", models, backbones), "model", **given)


def apply(config: ConfigDict, module) -> Callable:
    """Wraps `module.apply` so that convolutions are computed as `config.convolution` says.

    Args:
      config: the experiment's config.
      module: the Flax module.
    """
    return convolution.applying(config.convolution, module.apply, inputs.names(module))


def pretrained_variables(config: ConfigDict, variables: PyTree) -> PyTree:
    """Puts the weights that `config.model.pretrained` names into the backbone's variables.

    Copies of its last stage begin with the same. A run or a published network of this package
    brings what it has under the same names, see `transfer.begin`.

    Args:
      config: the experiment's config.
      variables: freshly initialised variables of its model; returned as they are where no weights
        are named.

    Raises:
      InputError: there are no such weights, or they do not fit the backbone.
    """
    source = config.model.get("pretrained", "")
    if not source:
        return variables
    if transfer.find(source):
        return transfer.begin(variables, source)
    file, backbone = backbone_file(config), config.model.backbone
    namings, values = (getattr(file, key, None) for key in ("TORCH_NAMES", "TORCH_VALUES"))
    variant = backbone.get("variant", 0)
    return pretrained.begin(variables, source, backbone.name, namings, variant, values)


def backbone_file(config: ConfigDict) -> ModuleType:
    """The Python module that defines a config's backbone, and how published weights name it."""
    make = registry.find(config.model.backbone.name, _defining("Model", backbones), "backbone")
    return importlib.import_module(make.__module__)


def objective(
    config: ConfigDict, total_steps: int = 1, ratios: Mapping[str, tuple[float, ...]] | None = None
) -> Objective:
    """Makes what is minimised and reported, from `config.losses` and `config.metrics`.

    A loss is a spec with "weight" and, where the weight grows in training, "schedule", a spec of
    `market_jax.losses.annealing`; "uncertainty" and "dataset" are for `losses.qualify`.

    Args:
      config: the experiment's config.
      total_steps: steps in the whole training, for the schedules of weights.
      ratios: label -> share of each class among the training images, for terms that answer rarity
        and have none in the config.

    Raises:
      InputError: a name or an argument is unknown, or a value is of another kind.
    """
    terms, count = {}, len(config.data.name.split(","))
    for key, spec in config.losses.to_dict().items():
        weight, schedule = spec.pop("weight", 1.0), spec.pop("schedule", None)
        conditions = {k: spec.pop(k) for k in ("uncertainty", "dataset") if k in spec}
        counted = {} if "ratios" in spec else {"ratios": ratios}
        function = _bind_term(spec, losses.TERMS, f"loss (losses.{key})", **counted)
        function = losses.qualify(function, f"losses.{key}", datasets=count, **conditions)
        if schedule:
            what, known = f"schedule (losses.{key})", annealing.SCHEDULES
            schedule = registry.make(schedule, known, what, total_steps=total_steps)
        terms[key] = Term(function, kinds.check(f"losses.{key}.weight", weight, float), schedule)
    metrics = {
        key: _bind_term(spec, losses.METRICS | losses.TERMS, f"metric (metrics.{key})")
        for key, spec in config.metrics.to_dict().items()
    }
    return Objective(terms, metrics)


def augment(config: ConfigDict) -> Callable:
    """Makes the augmentation of `config.augmentation`: (key, uint8 images) -> float32 images.

    The images are first brought to `config.data.image_size`, where they have another one.

    Args:
      config: the experiment's config, or that of a stage.
    """
    known = registry.names_of(transforms)
    bound = {
        name: registry.bind({"name": name} | fields, known, f"transform (augmentation.{name})")
        for name, fields in config.augmentation.to_dict().items()
    }

    def run(key, images):
        images = transforms.resize(transforms.to_float(images), config.data.image_size)
        return transforms.augment(key, images, bound)

    return run


def stages(config: ConfigDict) -> list[tuple[float, ConfigDict]]:
    """The stages of a training, in order: (share of the training where it ends, its config).

    Args:
      config: the experiment's config; the last stage's, which ends at 1.

    Raises:
      InputError: two stages end at the same place.
    """
    found = []
    for name, fields in sorted(config.stages.items(), key=lambda item: item[1].until):
        stage = config.copy_and_resolve_references()
        if "image_size" in fields:
            stage.data.image_size = fields.image_size
        if "last_stride" in fields:
            if "backbone" not in stage.model:
                raise InputError(f"stages.{name}.last_stride: the model has no backbone")
            stage.model.backbone.last_stride = fields.last_stride
        if found and found[-1][0] == fields.until:
            raise InputError(f"stages.{name}.until is {fields.until}; another stage ends there")
        found.append((fields.until, stage))
    return [*found, (1.0, config)]


def dataset(config: ConfigDict, kept: datasets.Kept = None) -> Dataset:
    """Opens the data set of `config.data`, or several: names and folders separated by commas.

    Args:
      config: the experiment's config.
      kept: who was trained on and who was held out, of a run; None draws it, of all or of one.

    Raises:
      InputError: a name is unknown, there are more names than folders or fewer, or a folder is
        missing or holds another data set.
    """
    import data_prep  # which imports TensorFlow

    fields = config.data
    names, folders = fields.name.split(","), fields.dir.split(",")
    if len(names) != len(folders):
        raise InputError(
            f"data.name is {fields.name!r} and data.dir is {fields.dir!r}; "
            "they must name as many data sets as folders, with commas between them"
        )
    directories = [
        data_prep.find_or_prepare(name, folder, CACHE_DIR)
        for name, folder in zip(names, folders, strict=True)
    ]
    if len(set(directories)) < len(directories):
        raise InputError(f"data.dir is {fields.dir!r}; it names a data set twice")
    return datasets.open_dataset(
        directories,
        image_size=limits.image_size(_plain(config)),
        kept=kept,
        val_fraction=fields.val_fraction,
        holdout_fraction=fields.holdout_fraction,
        split_seed=fields.split_seed,
    )


def sampler(config: ConfigDict, columns: Columns) -> Sampler:
    """Makes training batches, in which each data set has its part where a loss names one.

    Args:
      config: the experiment's config; `num_instances` of 0 shuffles the images.
      columns: columns of the training images.

    Raises:
      InputError: `num_instances` with `grad_accum_steps` above 1, or a batch size that fits not.
    """
    pids, each = np.asarray(columns["pid"]), config.num_instances
    if each and config.grad_accum_steps > 1:
        raise InputError("num_instances needs whole batches: grad_accum_steps must be 1")
    named = any(term.get("dataset") is not None for term in config.losses.values())
    groups = columns["dataset"] if named else np.zeros(len(pids), np.int64)
    size, draw = config.batch_size, {"num_instances": each, "seed": config.seed}
    return samplers.in_equal_parts(pids, groups, size, **draw)


def validation_sampler(config: ConfigDict, columns: Columns) -> Sampler:
    """Makes the sampler that visits every held-out image once.

    Args:
      config: the experiment's config; with `num_instances`, images of one person stand together,
        as in training.
      columns: columns of the held-out images.
    """
    pids, each = np.asarray(columns["pid"]), config.num_instances
    if each:
        return samplers.grouped(pids, config.batch_size, num_instances=each, seed=config.seed)
    return samplers.sequential(len(pids), config.batch_size)


def plan(config: ConfigDict, steps_per_epoch: int) -> Plan:
    """When to evaluate, to log and to stop, in steps.

    Args:
      config: the experiment's config.
      steps_per_epoch: batches in an epoch.
    """
    return Plan(
        total_steps=config.epochs * steps_per_epoch,
        evaluate_every=config.evaluate_every * steps_per_epoch,
        log_every=config.log_every,
        report_every=config.report_every,
        patience=config.patience,
        select=Select(**config.select.to_dict()),
    )


def optimizer(config: ConfigDict, module, steps_per_epoch: int):
    """Makes the optax optimizer of `config.optimizer`; frozen parameters are not changed.

    Args:
      config: the experiment's config.
      module: the Flax module, which says what is frozen.
      steps_per_epoch: batches in an epoch.

    Raises:
      InputError: a name is unknown, or a setting is out of range.
    """
    fields, epochs = config.optimizer.to_dict(), Annotated[float, Range(0, config.epochs)]
    warmup_steps, freeze_steps = (
        round(kinds.check(f"optimizer.{key}", fields.pop(key), epochs) * steps_per_epoch)
        for key in ("warmup_epochs", "freeze_epochs")
    )
    after = registry.bind(fields.pop("schedule"), schedules.SCHEDULES, "schedule")
    schedule = schedules.make_schedule(
        registry.complete(after, "schedule", "rate", "steps", "steps of the warm-up"),
        learning_rate=fields.pop("learning_rate"),
        warmup_from=fields.pop("warmup_from"),
        warmup_steps=warmup_steps,
        total_steps=config.epochs * steps_per_epoch,
    )
    factor, _ = fields.pop("plateau_factor"), fields.pop("plateau_every")
    clip_norm, multipliers = fields.pop("clip_norm"), fields.pop("lr_multipliers")
    frozen = optimizer_.frozen_parameters(module)
    made = registry.bind(fields, optimizer_.OPTIMIZERS, "optimizer", schedule=schedule)
    return optimizer_.make_optimizer(
        made(),
        clip_norm=clip_norm,
        plateau=factor < 1,
        lr_multipliers=[(pattern, 0.0) for pattern in frozen] + _pairs(multipliers),
        freeze_steps=freeze_steps,
    )


def _pairs(multipliers) -> list[tuple[str, float]]:
    """`optimizer.lr_multipliers`, checked."""
    try:
        return list(kinds.convert(multipliers, tuple[tuple[str, float], ...]))
    except ValueError:
        raise InputError(
            f"optimizer.lr_multipliers is {multipliers!r}; it must be pairs of a regular "
            "expression and a factor: (('^backbone', 0.1),)"
        ) from None


def hooks(config: ConfigDict) -> list[hooks_.Hook]:
    """Makes the hooks of `config.hooks`, and `ema` where `config.ema_decay` asks for it."""
    average = [hooks_.ema(decay=config.ema_decay)] if config.ema_decay else []
    named = config.hooks.to_dict().values()
    known = registry.names_of(hooks_)
    return average + [registry.make(spec, known, "hook") for spec in named]


def evaluators_of(config: ConfigDict) -> dict[str, Callable]:
    """Makes the evaluators of `config.evaluators`: name -> (predict, dataset) -> Result."""
    known = _defining("evaluate", evaluators)
    return {
        key: registry.bind(spec, known, f"evaluator (evaluators.{key})")
        for key, spec in config.evaluators.to_dict().items()
    }
