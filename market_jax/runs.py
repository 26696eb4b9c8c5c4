"""Trained runs: finding one, and restoring its parameters."""

import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from market_jax import build, devices, settings
from market_jax.data import descriptors
from market_jax.data.datasets import Dataset
from market_jax.data.schema import Schema
from market_jax.errors import InputError
from market_jax.inference import Descriptor, Predictor
from market_jax.registry import choose
from market_jax.training import checkpoints
from market_jax.training.state import init_variables

_MODEL = {"model": ("embedding",), "predictions": ("predictions",)}  # --features -> outputs


class Run(NamedTuple):
    """A trained run; or, for evaluations that need no model, only its data and settings.

    Attributes:
      workdir: the folder of the run.
      step: the step that the checkpoint was saved at; 0 without a model.
      config: the config that it was trained with.
      predict: the model with its variables; None without a model.
      extra: the JSON saved with the checkpoint: "progress", "config", "labels", "label_counts".
    """

    workdir: Path
    step: int
    config: ConfigDict
    predict: Predictor | None
    extra: dict

    @property
    def schema(self) -> Schema:
        """The labels of the data set that the run was trained on."""
        labels = {name: tuple(classes) for name, classes in self.extra["labels"].items()}
        return Schema(self.config.data.name, labels)

    def dataset(self) -> Dataset:
        """The data set that the run was trained on."""
        return build.dataset(self.config)

    @property
    def evaluation(self) -> Path:
        """The folder where evaluations are written."""
        return self.workdir / "evaluation"


def find_run(task: str, root: Path = Path("runs")) -> Path:
    """The newest run in a folder that has a checkpoint and can do a task.

    Args:
      task: a task of `evaluate.py`, which the run's config must list in `tasks`.
      root: the folder that holds the runs' folders.

    Raises:
      InputError: there is no such run.
    """
    able = []
    for path in root.glob(f"*/{settings.FILE}"):
        steps = list((path.parent / "checkpoints").glob("[0-9]*"))
        saved = json.loads(path.read_text())
        if steps and task in saved.get("config", {}).get("tasks", ()):
            able.append((max(step.stat().st_mtime for step in steps), path.parent))
    if not able:
        raise InputError(f"{root}/ holds no run that can do {task!r}; train one, or name --workdir")
    return max(able)[1]


def without_model(config: ConfigDict, workdir: str | None) -> Run:
    """A `Run` without a model, for evaluations of plain descriptors.

    Args:
      config: a config with the data set.
      workdir: the folder where evaluations are written; None is runs/baseline.
    """
    return Run(Path(workdir or "runs/baseline"), 0, config, None, {})


def restore(
    workdir: str | Path,
    which: str = "best",
    data_dir: str | None = None,
    *,
    cache: bool = True,
) -> Run:
    """Restores a run: the parameters of a checkpoint, and the config saved with it.

    Args:
      workdir: the folder of the run.
      which: the checkpoint, "best" or "latest".
      data_dir: the folder of the data set, instead of the config's `data.dir`.
      cache: keep computed features as files in the run's folder.

    Raises:
      InputError: there is no such run or checkpoint, it is damaged, or an older version has
        written it.
    """
    directory = Path(workdir)
    if not (directory / "checkpoints").is_dir():
        raise InputError(f"{directory}: holds no checkpoint")
    if (path := directory / settings.FILE).is_file():
        settings.check_format(json.loads(path.read_text()), path)
    with contextlib.closing(checkpoints.open_manager(directory / "checkpoints")) as manager:
        step = checkpoints.find(manager, which)
        if step is None:
            raise InputError(f"{directory}: holds no checkpoint yet")
        extra = checkpoints.read_extra(manager, step)
        settings.check_format(extra, directory)
        config = settings.from_json(extra["config"])
        if data_dir:
            config.data.dir = data_dir
        model = build.model(config.model, config.dtype)
        template = jax.eval_shape(
            lambda: init_variables(model, config.data.image_size, seed=config.seed)
        )
        template = devices.replicated(devices.make_mesh(), template)
        variables = checkpoints.read_variables(manager, step, template)
    predict = Predictor(
        build.apply(config, model),
        variables,
        model=model,
        batch_size=config.batch_size,
        cache=directory / "evaluation" if cache else None,
        key=[step, extra["progress"], extra["config"]],
    )
    return Run(directory, step, config, predict, extra)


def feature_source(run: Run, source: str) -> tuple[Any, tuple[str, ...]]:
    """The function that computes features, and the names of its outputs.

    Args:
      run: the run whose model is used; "imagenet" and descriptors need none.
      source: "model" for the output "embedding"; "predictions" for the output of that name;
        "model+predictions" for both side by side; "imagenet" for the embedding of
        EfficientNet-Lite0 with published weights; or the name of a descriptor in
        `market_jax.data.descriptors`.

    Returns:
      A `Predictor` or `Descriptor`, and the names of the outputs to ask it for.

    Raises:
      InputError: the source is unknown, or it needs a model and the run has none.
    """
    parts = source.split("+")
    if all(part in _MODEL for part in parts):
        if run.predict is None:
            raise InputError("--features=model needs a trained run: --workdir, not --config")
        return run.predict, tuple(name for part in parts for name in _MODEL[part])
    if source == "imagenet":
        return build.imagenet_predictor(run.evaluation), ("embedding",)
    known = {name: getattr(descriptors, name) for name in descriptors.__all__}
    describe = choose(source, known | dict.fromkeys((*_MODEL, "imagenet")), "features")
    return Descriptor(describe), (source,)
