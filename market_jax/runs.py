"""Trained runs: finding one, restoring it, running its model over images."""

import contextlib
import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from market_jax import checkpoints, devices, experiment, features, settings
from market_jax.data import samplers, transforms
from market_jax.typing import Columns, InputError, PyTree


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


def restore(task: str, workdir: str | None, which: str, data_dir: str | None) -> Run:
    """Reads a checkpoint and the config saved in it.

    Args:
      task: that the run must be able to do.
      workdir: of the run; None takes the newest able one under runs/.
      which: "best" or "latest".
      data_dir: replaces the config's `data.dir`.

    Raises:
      InputError: there is no such run or checkpoint, or the run cannot do the task.
    """
    directory = Path(workdir) if workdir else find_run(task)
    if not (directory / "checkpoints").is_dir():
        raise InputError(f"{directory}: holds no checkpoint")
    with contextlib.closing(checkpoints.open_manager(directory / "checkpoints")) as manager:
        found = checkpoints.find(manager, which)
        if found is None:
            raise InputError(f"{directory}: holds no checkpoint yet")
        extra = checkpoints.read_extra(manager, found)
        config = settings.from_json(extra["config"])
        if task not in config.tasks:
            raise InputError(f"{directory}: a run for {', '.join(config.tasks)}, not for {task!r}")
        if data_dir:
            config.data.dir = data_dir
        model = experiment.make_model(config)
        tx = experiment.make_optimizer(config, experiment.Plan(samplers.Sampler(1, None), 1, 1))
        template = jax.eval_shape(functools.partial(experiment.fresh_state, config, model, tx))
        mesh = devices.make_mesh()
        state = checkpoints.read_state(manager, found, devices.replicated(mesh, template))
    return Run(directory, found, config, model, state.variables, extra)


def extract(run: Run, rows: Columns) -> dict[str, np.ndarray]:
    """Every output of the run's model for every image: name -> [M, ...]."""
    mesh = devices.make_mesh()
    return features.extract(
        experiment.make_apply(run.config, run.model),
        run.variables,
        rows,
        prepare=transforms.to_float,
        mesh=mesh,
        batch_size=-(-run.config.batch_size // mesh.size) * mesh.size,  # trained on fewer devices?
    )
