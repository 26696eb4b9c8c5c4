"""Checkpoints by Orbax: the latest and the best, the config saved beside the state."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from market_jax.errors import InputError
from market_jax.typing import PyTree

METRIC = "val/loss"


def open_manager(directory: Path) -> ocp.CheckpointManager:
    """The checkpoints in `directory`; those with the lowest validation loss and the newest stay.

    Saving is synchronous and atomic: a checkpoint is there whole, or not at all.
    """
    policy = checkpoint_managers.AnyPreservationPolicy(
        [
            checkpoint_managers.LatestN(1),
            checkpoint_managers.BestN(
                get_metric_fn=lambda metrics: metrics[METRIC], reverse=True, n=1
            ),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=lambda metrics: metrics[METRIC],
        best_mode="min",
        enable_async_checkpointing=False,
    )
    return ocp.CheckpointManager(Path(directory).absolute(), options=options)


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: PyTree,
    metrics: dict[str, float],
    extra: dict[str, Any],
) -> None:
    """Keeps `state` and the JSON-able `extra` as the checkpoint of `step`."""
    manager.save(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(extra)),
        metrics=metrics,
    )


def find(manager: ocp.CheckpointManager, which: str = "latest") -> int | None:
    """The step of the "latest" or the "best" checkpoint; None if there is none."""
    return manager.latest_step() if which == "latest" else manager.best_step()


def read_extra(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """The `extra` of a checkpoint."""
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


def _check_shapes(directory: Path, template: PyTree) -> None:
    """Raises an `InputError` that names the first array which the two do not share."""
    with ocp.StandardCheckpointer() as checkpointer:
        saved = _shapes(checkpointer.metadata(directory / "state").item_metadata.tree)
    wanted = _shapes(template)
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise InputError(
                f"{directory}: the checkpoint does not fit this model: {name} is "
                f"{saved.get(name, 'absent')} there and {wanted.get(name, 'absent')} here"
            )


def read_state(manager: ocp.CheckpointManager, step: int, template: PyTree) -> PyTree:
    """The state of a checkpoint, in the structure, shapes and sharding of `template`.

    Raises:
      InputError: the checkpoint is of another structure or is damaged.
    """
    directory = manager.directory / str(step)
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    try:
        _check_shapes(directory, shapes)
        return manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
        )["state"]
    except InputError:
        raise
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise InputError(f"{directory}: the checkpoint is damaged ({error})") from None
