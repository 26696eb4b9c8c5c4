"""Trained runs: finding one, restoring it, running its model over images."""

import contextlib
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from market_jax import devices, experiment, networks, settings
from market_jax import inference as features
from market_jax.data import descriptors, samplers, transforms
from market_jax.errors import InputError
from market_jax.registry import choose
from market_jax.training import checkpoints
from market_jax.typing import Columns, Outputs, PyTree

# --features -> the model's output
_OUTPUTS = {"model": "embedding", "imagenet": "embedding", "predictions": "predictions"}


class Run(NamedTuple):
    """A trained run.

    Attributes:
      workdir: where it lies.
      step: of the checkpoint.
      config: as it was trained.
      model: the Flax module.
      variables: of the model.
      extra: what was saved beside: "progress", "config", "label_counts".
    """

    workdir: Path
    step: int
    config: ConfigDict
    model: Any
    variables: PyTree
    extra: dict


def find_run(task: str, root: Path = Path("runs")) -> Path:
    """The newest run under `root` that has a checkpoint and can do the task."""
    able = []
    for path in root.glob(f"*/{settings.FILE}"):
        steps = list((path.parent / "checkpoints").glob("[0-9]*"))
        if steps and task in json.loads(path.read_text()).get("tasks", ()):
            able.append((max(step.stat().st_mtime for step in steps), path.parent))
    if not able:
        raise InputError(f"{root}/ holds no run that can do {task!r}; train one, or name --workdir")
    return max(able)[1]


def without_model(config: ConfigDict, workdir: str | None) -> Run:
    """What stands in for a run where nothing is trained: data and settings alone."""
    return Run(Path(workdir or "runs/baseline"), 0, config, None, None, {})


def restore(
    task: str,
    workdir: str | None,
    which: str,
    data_dir: str | None,
    defaults: ConfigDict | None = None,
) -> Run:
    """Reads a checkpoint and the config saved in it.

    Args:
      task: that the run must be able to do, where it is looked for.
      workdir: of the run; None takes the newest able one under runs/.
      which: "best" or "latest".
      data_dir: replaces the config's `data.dir`.
      defaults: for settings that an older version did not save.

    Raises:
      InputError: there is no such run or checkpoint.
    """
    directory = Path(workdir) if workdir else find_run(task)
    if not (directory / "checkpoints").is_dir():
        raise InputError(f"{directory}: holds no checkpoint")
    with contextlib.closing(checkpoints.open_manager(directory / "checkpoints")) as manager:
        found = checkpoints.find(manager, which)
        if found is None:
            raise InputError(f"{directory}: holds no checkpoint yet")
        extra = checkpoints.read_extra(manager, found)
        config = settings.from_json(extra["config"], defaults)
        if data_dir:
            config.data.dir = data_dir
        model = experiment.make_model(config)
        tx = experiment.make_optimizer(config, experiment.Plan(samplers.Sampler(1, None), 1, 1))
        template = jax.eval_shape(functools.partial(experiment.fresh_state, config, model, tx))
        mesh = devices.make_mesh()
        state = checkpoints.read_state(manager, found, devices.replicated(mesh, template))
    return Run(directory, found, config, model, state.variables, extra)


def only(*names: str) -> Callable[[Outputs], Outputs]:
    """What keeps the named outputs."""
    return lambda outputs: {name: outputs[name] for name in names}


def extract(
    run: Run,
    rows: Columns,
    keep: Callable[[Outputs], Outputs] = lambda outputs: outputs,
    *,
    mirrored: bool = False,
) -> dict[str, np.ndarray]:
    """Outputs of the run's model for every image: name -> [M, ...].

    Args:
      run: with a model.
      rows: the images.
      keep: the model's outputs -> what is kept of them, or made of them.
      mirrored: of the images, left and right exchanged.

    Raises:
      InputError: the model has no such output.
    """
    mesh = devices.make_mesh()

    def prepare(images):
        images = transforms.to_float(images)
        return images[:, :, ::-1] if mirrored else images

    try:
        return features.extract(
            experiment.make_apply(run.config, run.model),
            run.variables,
            rows,
            prepare=prepare,
            mesh=mesh,
            batch_size=-(-run.config.batch_size // mesh.size) * mesh.size,  # of fewer devices?
            keep=keep,
        )
    except KeyError as error:
        raise InputError(f"{run.workdir}: the model has no output {error}") from None


def embed(run: Run, source: str, rows: Columns, *, flip: bool) -> np.ndarray:
    """Features of every image: float32 [M, D].

    Args:
      run: whose model is used; for a descriptor it needs none.
      source: "model", its output "embedding"; "predictions", its output of that name; both side by
        side, "model+predictions"; "imagenet", EfficientNet-Lite0's embedding with published
        weights; or a descriptor of `market_jax.data.descriptors`.
      rows: the images.
      flip: the mean with the mirrored image's.

    Raises:
      InputError: the source is unknown, or the run has no such model.
    """
    names = [_OUTPUTS.get(part) for part in source.split("+")]
    if all(names) and (source == "imagenet" or "imagenet" not in source):
        if source == "imagenet":
            model, variables = networks.make_pretrained()
            run = run._replace(model=model, variables=variables)
        if run.model is None:
            raise InputError("--features=model needs a trained run: --workdir, not --config")

        def describe(mirrored):
            found = extract(run, rows, only(*names), mirrored=mirrored)
            return np.concatenate([found[name] for name in names], axis=1)

    else:
        known = {name: getattr(descriptors, name) for name in descriptors.__all__}
        descriptor = choose(source, known | dict.fromkeys(_OUTPUTS), "features")

        def describe(mirrored):
            parts = np.array_split(np.arange(len(rows["image"])), -(-len(rows["image"]) // 1024))
            images = (rows["image"][part] for part in parts)
            return np.concatenate([descriptor(i[:, :, ::-1] if mirrored else i) for i in images])

    values = describe(False)
    return ((values + describe(True)) / 2 if flip else values).astype(np.float32)
