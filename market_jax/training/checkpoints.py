"""Checkpoints by Orbax: the latest and the best, each with the config beside the state.

A checkpoint has four items, each of which can be read alone: "variables" (parameters and the other
collections), "ema" (the averaged parameters, if there are any), "training" (step, optimizer
state and key, which only a restart needs) and "extra" (JSON).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from market_jax.errors import InputError
from market_jax.training.state import TrainState
from market_jax.typing import PyTree

_SCORE, _BORDER = "score", "round_start"  # what Orbax is told of each checkpoint


@dataclasses.dataclass
class _RoundBorder:
    """Keeps the checkpoint at which the latest one's round began: a restart makes it again."""

    def should_preserve(self, checkpoints: Sequence, *, context: Any) -> list[bool]:
        """One answer for each checkpoint, as Orbax asks."""
        border = (checkpoints[-1].metrics or {}).get(_BORDER) if checkpoints else None
        return [info.step == border for info in checkpoints]


def open_manager(directory: Path) -> ocp.CheckpointManager:
    """Opens the checkpoints in a folder; the newest, the best and one at a border are kept.

    Saving is synchronous and atomic: a checkpoint appears whole or not at all. The best one has the
    highest score; the one kept for a border is where the present round began, see `loop`.

    Args:
      directory: the folder of the checkpoints, made if it is missing.
    """
    policy = checkpoint_managers.AnyPreservationPolicy(
        [
            checkpoint_managers.LatestN(1),
            checkpoint_managers.BestN(get_metric_fn=lambda metrics: metrics[_SCORE], n=1),
            _RoundBorder(),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=lambda metrics: metrics[_SCORE],
        best_mode="max",
        enable_async_checkpointing=False,
    )
    return ocp.CheckpointManager(Path(directory).absolute(), options=options)


def _items(state: TrainState) -> dict[str, PyTree]:
    """Item name -> its part of the state."""
    training = {"step": state.step, "opt_state": state.opt_state, "key_data": state.key_data}
    items = {"variables": state.variables, "training": training}
    return items if state.ema is None else items | {"ema": state.ema}


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: TrainState,
    *,
    score: float,
    round_start: int,
    extra: Mapping[str, Any],
) -> None:
    """Saves the state as the checkpoint of a step.

    Args:
      manager: the run's checkpoints, see `open_manager`.
      step: the number of steps done.
      state: the state to save.
      score: how good the state is; the best checkpoint has the highest score.
      round_start: the step at which the present round began.
      extra: values that JSON can hold, saved beside the state.
    """
    items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
    manager.save(
        step,
        args=ocp.args.Composite(**items, extra=ocp.args.JsonSave(dict(extra))),
        metrics={_SCORE: score, _BORDER: round_start},
    )


def find(manager: ocp.CheckpointManager, which: str = "latest") -> int | None:
    """The step of the "latest" or the "best" checkpoint; None if there is none.

    Args:
      manager: the run's checkpoints, see `open_manager`.
      which: "latest" or "best".
    """
    return manager.latest_step() if which == "latest" else manager.best_step()


def read_extra(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """Reads the `extra` that was saved with a checkpoint.

    Args:
      manager: the run's checkpoints, see `open_manager`.
      step: the step that the checkpoint was saved at.
    """
    return manager.restore(step, args=ocp.args.Composite(extra=ocp.args.JsonRestore()))["extra"]


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Path -> shape of each array, whether its parents are objects, tuples or dicts."""
    return {
        "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path): (
            tuple(leaf.shape)
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if hasattr(leaf, "shape")
    }


def _metadata(directory: Path) -> PyTree:
    """The shapes and dtypes of a saved item."""
    return dict(ocp.StandardCheckpointHandler().metadata(directory))


def _check_shapes(directory: Path, item: str, template: PyTree) -> None:
    """Raises an `InputError` that names the first array which the two do not share."""
    saved, wanted = _shapes(_metadata(directory / item)), _shapes(template)
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise InputError(
                f"{directory}: the checkpoint does not fit this model: {name} is "
                f"{saved.get(name, 'absent')} there and {wanted.get(name, 'absent')} here"
            )


def _read(manager: ocp.CheckpointManager, step: int, items: Mapping[str, PyTree]) -> dict:
    """The named items of a checkpoint, in the structure, shapes and sharding of templates."""
    directory = manager.directory / str(step)
    templates = jax.tree.map(ocp.utils.to_shape_dtype_struct, dict(items))
    try:
        for name, template in templates.items():
            _check_shapes(directory, name, template)
        wanted = {name: ocp.args.StandardRestore(tree) for name, tree in templates.items()}
        return dict(manager.restore(step, args=ocp.args.Composite(**wanted)))
    except InputError:
        raise
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise InputError(f"{directory}: the checkpoint is damaged ({error})") from None


def read_state(manager: ocp.CheckpointManager, step: int, template: TrainState) -> TrainState:
    """Reads the whole state of a checkpoint, to continue training.

    Args:
      manager: the run's checkpoints, see `open_manager`.
      step: the step that the checkpoint was saved at.
      template: a state of the same structure, shapes and sharding.

    Raises:
      InputError: the checkpoint is damaged, or its arrays have other names or shapes.
    """
    items = _read(manager, step, _items(template))
    variables = dict(items["variables"])
    return template.replace(
        params=variables.pop("params"), collections=variables, ema=items.get("ema"),
        **items["training"],
    )  # fmt: skip


def read_variables(manager: ocp.CheckpointManager, step: int, template: PyTree) -> PyTree:
    """Reads the variables for evaluation: the averaged parameters, if the checkpoint has them.

    Collections that the model itself does not have, such as memory banks, are left out.

    Args:
      manager: the run's checkpoints, see `open_manager`.
      step: the step that the checkpoint was saved at.
      template: the model's variables, or their shapes with sharding.

    Raises:
      InputError: the checkpoint is damaged, or its arrays have other names or shapes.
    """
    directory = manager.directory / str(step)
    items = {"variables": template}
    if (directory / "ema").is_dir():
        items["ema"] = template["params"]
    saved = _metadata(directory / "variables")
    others = {name: tree for name, tree in saved.items() if name not in template}
    found = _read(manager, step, items | {"variables": template | _as_template(others)})
    variables = {name: tree for name, tree in found["variables"].items() if name in template}
    return variables | ({"params": found["ema"]} if "ema" in found else {})


def _as_template(metadata: PyTree) -> PyTree:
    """Shapes and dtypes of what Orbax tells about a saved tree."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), metadata)
