"""Trained runs and published networks: finding one, and restoring its parameters."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from ml_collections import ConfigDict

from market_jax import build, devices, experiment, kinds, limits, settings
from market_jax.data import descriptors
from market_jax.data.datasets import Dataset, Division
from market_jax.data.schema import Schema, merge
from market_jax.errors import InputError
from market_jax.export import onnx
from market_jax.inference import Predictor
from market_jax.kernels import convolution
from market_jax.models.backbones import efficientnet_lite
from market_jax.registry import choose
from market_jax.training import checkpoints
from market_jax.training.state import draw_variables
from market_jax.typing import PositiveInt, PyTree
from market_jax.weights import published as zoo

_MODEL = {  # --features -> outputs
    "model": ("embedding",),
    "before_bnneck": ("feature",),
    "predictions": ("predictions",),
}
PUBLISHED = Path("runs/published")  # where evaluations of published networks are written


class Data(NamedTuple):
    """The data set that a run is judged on; what is empty is the run's own.

    Attributes:
      name: as `data.name` of a config.
      dir: as `data.dir` of a config; the run's own folder is that of its own data set alone.
    """

    name: str = ""
    dir: str = ""


OWN = Data()


class Run(NamedTuple):
    """A trained run; or, for evaluations that need no model, only its data and settings.

    A published network is a run that has only the folder where evaluations are written.

    Attributes:
      workdir: the folder of the run.
      step: the step that the checkpoint was saved at; 0 without a model or checkpoint.
      config: the config that it was trained with; `config.data` is of the data set judged.
      predict: the model with its variables; None without a model.
      extra: the JSON saved with the checkpoint: "progress", "config", "labels", "label_counts" and
        so on; of a published network `weights.published.FIELDS`.
      divisions: who was trained on and who was held out, of each data set that is judged: None of
        one that the run was not trained on, and in all where it was trained on none of them.
    """

    workdir: Path
    step: int
    config: ConfigDict
    predict: Predictor | None
    extra: dict
    divisions: list[Division | None] | None = None

    @property
    def schema(self) -> Schema:
        """The labels of the data set that the run was trained on."""
        labels = {name: tuple(classes) for name, classes in self.extra["labels"].items()}
        return Schema(self.config.data.name, labels)

    @property
    def is_published(self) -> bool:
        """Whether it is a published network."""
        return "trained_on" in self.extra

    def dataset(self) -> Dataset:
        """The data set that is judged; the run's own is divided as it was in training.

        Raises:
          InputError: it is missing, or a label has other classes than the run has learned; or none
            is named for a published network.
        """
        if not self.config.data.name:
            raise InputError(
                f"the published network {self.extra['name']!r} brings no data; give "
                "--images=FOLDER, or the data set: --data_dir=DIR [--data_name=NAME]"
            )
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
        model, template = make_template(config)
        template = devices.replicated(devices.make_mesh(), template)
        variables = checkpoints.read_variables(directory, step, template)
    written = (directory / str(step) / checkpoints.DIGESTS).read_text()
    key = [step, written, extra["config"]]
    other = bool(data.name) and data.name != config.data.name
    predict = _predictor(config, model, variables, workdir if cache else None, key, other)
    divisions = _divisions(extra, data.name if other else "")
    config.data.name = data.name or config.data.name
    config.data.dir = data.dir or ("" if other else config.data.dir)  # another set's is not there
    return Run(workdir, step, config, predict, extra, divisions)


def _divisions(extra: dict, judged: str) -> list[Division | None] | None:
    """The divisions of the data sets that are judged: names with commas; "" are the run's own."""
    trained = [Division(**division) for division in extra["divisions"]]
    if not judged:
        return [*trained]
    known = {division.name: division for division in trained}
    found = [known.get(name) for name in judged.split(",")]
    return found if any(found) else None


def _predictor(
    config: ConfigDict, model: Any, variables: PyTree, workdir: Path | None, key: list, other: bool
) -> Predictor:
    """The predictor of a network, which keeps features in the folder of a run, if there is one.

    On another data set than its own it is told nothing beside the pictures: other cameras are
    meant there.
    """
    apply = build.apply(config, model)
    return Predictor(
        dataclasses.replace(apply, inputs=()) if other else apply,
        variables,
        model=model,
        batch_size=config.batch_size,
        cache=workdir / "evaluation" if workdir else None,
        key=key,
    )


def make_template(config: ConfigDict) -> tuple[Any, PyTree]:
    """The Flax module of a config, and the shapes and dtypes of its variables.

    Args:
      config: of a run, counted settings filled in.

    Raises:
      InputError: a name or a field does not exist, or a value is of another kind.
    """
    model = build.model(config.model, config.dtype)
    size, key = config.data.image_size, jax.random.key(0)
    return model, jax.eval_shape(lambda: draw_variables(model, size, key))


def published(
    source: str | Path, data: Data = OWN, *, cache: bool = True, allow_imports: bool = False
) -> Run:
    """Builds a published network, as a run whose evaluations are written to runs/published/NAME.

    Args:
      source: its name, or the path of its .safetensors file.
      data: the data set that is judged; a folder alone is one of the data set that it was trained
        on.
      cache: keep computed features as files in that folder.
      allow_imports: whether its config may name code outside this package, which is imported.

    Raises:
      InputError: there is no such network, its file is broken, its config and tensors do not fit
        together, it names code outside this package, or several data sets are to be judged.
    """
    network = zoo.read(zoo.find(source))
    if not allow_imports:
        _refuse_imports(network.path, network.about["config"])
    config, model, template = _rebuild(network)
    other = bool(data.name) and data.name != config.data.name
    variables = devices.replicate(devices.make_mesh(), zoo.fill(network, template))
    config.data.name = data.name or (config.data.name if data.dir else "")
    config.data.dir = data.dir
    if "," in config.data.name:
        raise InputError(
            f"{network.path}: the data sets {config.data.name} are not judged together, so that "
            "it can be told whom the network knows; name one of them: --data_name, --data_dir"
        )
    workdir = PUBLISHED / network.path.stem
    kept = workdir if cache else None
    predict = _predictor(config, model, variables, kept, [network.digest], other)
    return Run(workdir, 0, config, predict, network.about)


def _rebuild(network: zoo.Network) -> tuple[ConfigDict, Any, PyTree]:
    """The config of a published network, its Flax module, and the shapes of its variables.

    Of the config that is checked which a network needs: files are older than later settings.
    """
    try:
        config = settings.from_json(network.about["config"])
        limits.image_size(config)
        kinds.check("batch_size", config.batch_size, PositiveInt)
        kinds.check("data.name", config.data.name, str)
        config.convolution = "auto"
        experiment.check_classes(config, network.about["labels"])
        return config, *make_template(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"{network.path}: no network follows from its config ({reason})") from None


def _refuse_imports(where: Path, config: dict) -> None:
    """Raises an `InputError` where a saved config names code outside this package."""
    for key, name in settings.outside_names(config).items():
        raise InputError(
            f"{where}: {key} is {name!r}, code outside market_jax, which would be imported; if "
            "you trust it and that code, give --allow_imports (market_jax.load: "
            "allow_imports=True)"
        )


def imagenet_predictor(cache: Path | None = None) -> Predictor:
    """A predictor of EfficientNet-Lite0 with ImageNet's weights; its output is "embedding".

    Args:
      cache: the folder where features are kept as files; None keeps none.

    Raises:
      InputError: the package with the weights is not installed.
    """
    network, variables = efficientnet_lite.make_pretrained()
    module_apply = convolution.applying("auto", network.apply)
    return Predictor(module_apply, variables, model=network, cache=cache, key="imagenet")


def is_own(source: str) -> bool:
    """Whether features are of the run's own network.

    Args:
      source: see `feature_source`.
    """
    return all(part in _MODEL for part in source.split("+"))


def feature_source(run: Run, source: str) -> tuple[Any, tuple[str, ...]]:
    """The function that computes features, and the names of its outputs.

    Args:
      run: the run whose model is used; "imagenet" and descriptors need none.
      source: "model" for the output "embedding"; "before_bnneck" for the output "feature", from
        which a BNNeck makes it; "predictions" for the output of that name; "model+predictions" for
        both side by side; "imagenet" for the embedding of EfficientNet-Lite0 with published
        weights; the path of an ONNX file, NAME.onnx, that `--task=export` has written; or the name
        of a descriptor in `market_jax.data.descriptors`.

    Returns:
      A `Predictor` or `descriptors.Descriptor`, and the names of the outputs to ask it for.

    Raises:
      InputError: the source is unknown, it needs a model and the run has none, or it is an ONNX
        file that is missing or something else.
    """
    if is_own(source):
        if run.predict is None:
            raise InputError("--features=model needs a trained run: --workdir, not --config")
        return run.predict, tuple(name for part in source.split("+") for name in _MODEL[part])
    if source == "imagenet":
        return imagenet_predictor(run.evaluation), ("embedding",)
    if source.endswith(onnx.SUFFIX):
        return descriptors.Descriptor(onnx.embedder(Path(source).expanduser())), ("embedding",)
    known = {name: getattr(descriptors, name) for name in descriptors.__all__}
    describe = choose(source, known | dict.fromkeys((*_MODEL, "imagenet")), "features")
    return descriptors.Descriptor(describe), (source,)
