"""Trained runs: finding one, and restoring its parameters."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from ml_collections import ConfigDict

from market_jax import build, devices, settings
from market_jax.data import descriptors
from market_jax.data.datasets import Dataset, Division
from market_jax.data.schema import Schema, merge
from market_jax.errors import InputError
from market_jax.inference import Descriptor, Predictor
from market_jax.registry import choose
from market_jax.training import checkpoints
from market_jax.training.state import init_variables

_MODEL = {"model": ("embedding",), "predictions": ("predictions",)}  # --features -> outputs


class Data(NamedTuple):
    """The data set that a run is judged on; what is empty is the run's own.

    Attributes:
      name: as `data.name` of a config.
      dir: as `data.dir` of a config.
    """

    name: str = ""
    dir: str = ""


OWN = Data()


class Run(NamedTuple):
    """A trained run; or, for evaluations that need no model, only its data and settings.

    Attributes:
      workdir: the folder of the run.
      step: the step that the checkpoint was saved at; 0 without a model.
      config: the config that it was trained with; `config.data` is of the data set judged.
      predict: the model with its variables; None without a model.
      extra: the JSON saved with the checkpoint: "progress", "config", "labels", "label_counts".
      divisions: who was trained on and who was held out; None where the data set is another.
    """

    workdir: Path
    step: int
    config: ConfigDict
    predict: Predictor | None
    extra: dict
    divisions: list[Division] | None = None

    @property
    def schema(self) -> Schema:
        """The labels of the data set that the run was trained on."""
        labels = {name: tuple(classes) for name, classes in self.extra["labels"].items()}
        return Schema(self.config.data.name, labels)

    def dataset(self) -> Dataset:
        """The data set that is judged; the run's own is divided as it was in training.

        Raises:
          InputError: it is missing, or a label has other classes than the run has learned.
        """
        dataset = build.dataset(self.config, self.divisions)
        if self.extra:
            merge([self.schema._replace(name=f"the run {self.workdir}"), dataset.schema])
        return dataset

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
    for path in root.iterdir() if root.is_dir() else ():
        directory = path / "checkpoints"
        saved = checkpoints.steps(directory)
        if not saved:
            continue
        try:
            config = checkpoints.read_extra(directory, saved[-1])["config"]
            if task in config["tasks"]:
                able.append(((directory / str(saved[-1])).stat().st_mtime, path))
        except (InputError, KeyError, TypeError) as error:
            logging.warning("%s is left out: %s", path, error)
    if not able:
        raise InputError(f"{root}/ holds no run that can do {task!r}; train one, or name --workdir")
    return max(able)[1]


def without_model(config: ConfigDict, workdir: str | None) -> Run:
    """A `Run` without a model, for evaluations of plain descriptors.

    Args:
      config: a config with the data set.
      workdir: the folder where evaluations are written; None is runs/baseline.
    """
    return Run(Path(workdir or "runs/baseline").expanduser(), 0, config, None, {})


def restore(
    workdir: str | Path,
    which: str = "best",
    data: Data = OWN,
    *,
    cache: bool = True,
    allow_imports: bool = False,
) -> Run:
    """Restores a run: the parameters of a checkpoint, and the config saved with it.

    Args:
      workdir: the folder of the run.
      which: the checkpoint, "best", "latest" or its step.
      data: the data set that is judged, where it is not the run's own.
      cache: keep computed features as files in the run's folder.
      allow_imports: whether the run's config may name code outside this package, which is imported.

    Raises:
      InputError: there is no such run or checkpoint, it is damaged, an older version has written
        it, or it names code outside this package.
    """
    workdir = Path(workdir).expanduser()
    directory = workdir / "checkpoints"
    step = checkpoints.find(directory, which)
    if step is None:
        settings.check_folder(workdir)
        raise InputError(f"{workdir}: holds no checkpoint")
    with checkpoints.offering_others(directory, step):
        extra = checkpoints.read_extra(directory, step)
        settings.check_format(extra, directory)
        config = settings.from_json(extra["config"])
        if not allow_imports:
            _refuse_imports(workdir, extra["config"])
        model = build.model(config.model, config.dtype)
        template = jax.eval_shape(
            lambda: init_variables(model, config.data.image_size, seed=config.seed)
        )
        template = devices.replicated(devices.make_mesh(), template)
        variables = checkpoints.read_variables(directory, step, template)
    predict = Predictor(
        build.apply(config, model),
        variables,
        model=model,
        batch_size=config.batch_size,
        cache=workdir / "evaluation" if cache else None,
        key=[step, extra["progress"], extra["config"]],
    )
    divisions = [Division(**division) for division in extra["divisions"]]
    if data.name and data.name != config.data.name:
        divisions = None  # none of its persons were trained on
    config.data.name = data.name or config.data.name
    config.data.dir = data.dir or config.data.dir
    return Run(workdir, step, config, predict, extra, divisions)


def _refuse_imports(workdir: Path, config: dict) -> None:
    """Raises an `InputError` where a saved config names code outside this package."""
    for key, name in settings.outside_names(config).items():
        raise InputError(
            f"{workdir}: {key} is {name!r}, code outside market_jax, which would be imported; if "
            "you trust the run and that code, give --allow_imports (market_jax.load: "
            "allow_imports=True)"
        )


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
