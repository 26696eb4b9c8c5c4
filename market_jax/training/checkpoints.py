"""Checkpoints by Orbax: each is a folder named by its step, with the config beside the state.

A checkpoint has four items, each of which can be read alone: "variables" (parameters and the other
collections), "ema" (the averaged parameters, if there are any), "training" (step, optimizer
state and key, which only a restart needs) and "extra" (JSON). Last of all a file with the digests
of all others is written: a folder without it is no checkpoint, and what differs from it is damaged.
"""

import contextlib
import hashlib
import json
import logging as python_logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from market_jax import files
from market_jax.errors import InputError
from market_jax.training.state import TrainState
from market_jax.typing import PyTree

LATEST = 2  # checkpoints that are kept beside the best one: where one is damaged, the other is not
_SPARE = 1 << 20  # bytes for what is written beside the arrays
_DELETED = ".deleted-"  # how the names of folders begin that are being deleted
_EXTRA = "extra"
DIGESTS = "digests.json"  # file of a checkpoint -> its digest; others for other parameters


def _items(state: TrainState) -> dict[str, PyTree]:
    """Item name -> its part of the state."""
    training = {"step": state.step, "opt_state": state.opt_state, "key_data": state.key_data}
    items = {"variables": state.variables, "training": training}
    return items if state.ema is None else items | {"ema": state.ema}


def paths_of(tree: PyTree) -> dict[str, Any]:
    """Path -> leaf, the same whether its parents are objects, tuples or dicts.

    Args:
      tree: a pytree.
    """
    return {
        "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path): x
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def _digests(path: Path, items: Iterable[str]) -> dict[str, str]:
    """File -> digest, for all files of some items of a checkpoint and those beside the items."""
    found = [p for p in sorted(path.iterdir()) if p.is_file() and p.name != DIGESTS]
    found += [p for item in items for p in sorted((path / item).rglob("*")) if p.is_file()]
    return {
        p.relative_to(path).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in found
    }


def _check_digests(path: Path, items: Iterable[str]) -> None:
    """Raises an `InputError` unless the files of some items are what was written."""
    try:
        said = files.read_json(path / DIGESTS)
        now = _digests(path, items)
    except (InputError, OSError) as error:
        raise InputError(f"{path}: the checkpoint is damaged ({error})") from None
    own = [file for file in said if "/" not in file or file.split("/")[0] in items]
    then = {file: said[file] for file in own}
    for file in sorted(then.keys() | now.keys()):
        if then.get(file) != now.get(file):
            raise InputError(f"{path}: the checkpoint is damaged ({file} is not what was written)")
    if not then:
        raise InputError(f"{path}: the checkpoint is damaged ({DIGESTS} names no file)")


def clean(directory: Path) -> None:
    """Removes what killed processes have left: half-written and half-deleted checkpoints.

    Args:
      directory: the folder of the checkpoints; no other process may be writing there.
    """
    whole = {str(step) for step in steps(directory)}
    for path in directory.iterdir() if directory.is_dir() else ():
        if path.is_dir() and path.name not in whole:
            shutil.rmtree(path, ignore_errors=True)


def steps(directory: Path) -> list[int]:
    """The steps of all checkpoints in a folder, ascending.

    Args:
      directory: the folder of the checkpoints.
    """
    found = Path(directory).iterdir() if Path(directory).is_dir() else ()
    named = [path for path in found if path.name.isascii() and path.name.isdigit()]
    return sorted(int(path.name) for path in named if (path / DIGESTS).exists())


def save(
    directory: Path,
    step: int,
    state: TrainState,
    *,
    score: float | None,
    round_start: int,
    extra: Mapping[str, Any],
) -> None:
    """Saves the state as the checkpoint of a step; it appears whole or not at all, by a rename.

    Kept are the newest `LATEST`, the best one, and those at which their rounds began: any of them
    can be gone on from.

    Args:
      directory: the folder of the checkpoints, made if it is missing.
      step: the number of steps done.
      state: the state to save.
      score: how good the state is; the best checkpoint has the highest score. None is not judged.
      round_start: the step at which the present round began.
      extra: values that JSON can hold, saved beside the state.

    Raises:
      InputError: it cannot be written; those before stay.
    """
    path, items = Path(directory).absolute() / str(step), _items(state)
    _check_space(path, items)
    said = {"extra": dict(extra), "score": score, "round_start": round_start}
    args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    args[_EXTRA] = ocp.args.JsonSave(said)
    asyncio = python_logging.getLogger("asyncio")
    asyncio.setLevel(python_logging.CRITICAL)  # tracebacks of Orbax's tasks, after ours has said it
    try:
        with contextlib.closing(ocp.Checkpointer(ocp.CompositeCheckpointHandler())) as orbax:
            orbax.save(path, args=ocp.args.Composite(**args), force=path.exists())
        if jax.process_index() == 0:
            text = json.dumps(_digests(path, args), indent=1)
            files.write_atomically(path / DIGESTS, text + "\n")
    except Exception as error:  # Orbax and its writers raise many kinds: a full disk, above all
        if jax.process_index() == 0:
            clean(path.parent)
        reason = (str(error).strip() or repr(error)).splitlines()[0][:300]
        raise InputError(f"{path}: the checkpoint cannot be written ({reason})") from error
    asyncio.setLevel(python_logging.NOTSET)
    if jax.process_index() == 0:
        _remove_old(path.parent)


def _check_space(path: Path, items: PyTree) -> None:
    """Refuses to begin what would not fit: Orbax leaves messages of its threads behind."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise InputError(f"{path.parent} cannot be written ({error.strerror})") from None
    need = sum(leaf.nbytes for leaf in jax.tree.leaves(items)) + _SPARE
    if need > free:
        raise InputError(
            f"{path}: the checkpoint cannot be written (it takes up to {need} bytes; {free} are "
            "free); those before stay"
        )


def _remove_old(directory: Path) -> None:
    """Removes the checkpoints that are not kept, see `save`."""
    known = steps(directory)
    kept = {*known[-LATEST:], find(directory, "best")}
    for step in sorted(kept):
        with contextlib.suppress(InputError):  # damaged meanwhile
            kept.add(_read_json(directory / str(step))["round_start"])
    for step in known:
        if step not in kept:
            deleted = directory / f"{_DELETED}{step}"
            os.replace(directory / str(step), deleted)  # never half a checkpoint under its name
            shutil.rmtree(deleted, ignore_errors=True)


def _read_json(path: Path) -> dict[str, Any]:
    """What is saved beside the state of a checkpoint, whole; see `save`."""
    _check_digests(path, [_EXTRA])
    try:
        return files.read_json(path / _EXTRA / "metadata")
    except InputError as error:
        raise InputError(f"{path}: the checkpoint is damaged ({error})") from None


def find(directory: Path, which: str = "latest") -> int | None:
    """The step of a checkpoint; None if there is none.

    Args:
      directory: the folder of the checkpoints.
      which: "latest", "best" (the highest score; the latest if none has one) or a step.

    Raises:
      InputError: there is no checkpoint of that step.
    """
    known = steps(directory)
    if which not in ("latest", "best"):
        if which not in map(str, known):
            have = ", ".join(map(str, known)) or "none"
            raise InputError(
                f"{directory}: has no checkpoint {which!r}; best, latest, or of {have}"
            )
        return int(which)
    scores: dict[int, float] = {}
    for step in known if which == "best" else ():
        try:
            score = _read_json(Path(directory) / str(step))["score"]
            scores |= {} if score is None else {step: score}
        except InputError as error:
            logging.warning("%s; it is left out", error)
    return max(scores, key=scores.get) if scores else max(known, default=None)


def read_extra(directory: Path, step: int) -> dict[str, Any]:
    """Reads the `extra` that was saved with a checkpoint.

    Args:
      directory: the folder of the checkpoints.
      step: the step that the checkpoint was saved at.

    Raises:
      InputError: it is damaged.
    """
    return _read_json(Path(directory).absolute() / str(step))["extra"]


def _metadata(directory: Path) -> PyTree:
    """The shapes and dtypes of a saved item."""
    return dict(ocp.StandardCheckpointHandler().metadata(directory))


def _check_shapes(directory: Path, item: str, template: PyTree) -> None:
    """Raises an `InputError` that names the first array which the two do not share."""
    saved, wanted = (
        {name: tuple(x.shape) for name, x in paths_of(tree).items() if hasattr(x, "shape")}
        for tree in (_metadata(directory / item), template)
    )
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise InputError(
                f"{directory}: the checkpoint does not fit this model: {name} is "
                f"{saved.get(name, 'absent')} there and {wanted.get(name, 'absent')} here"
            )


def _read(path: Path, items: Mapping[str, PyTree]) -> dict:
    """The named items of a checkpoint, in the structure, shapes and sharding of templates."""
    templates = jax.tree.map(ocp.utils.to_shape_dtype_struct, dict(items))
    _check_digests(path, list(items))
    try:
        for name, template in templates.items():
            _check_shapes(path, name, template)
        wanted = {name: ocp.args.StandardRestore(tree) for name, tree in templates.items()}
        with contextlib.closing(ocp.Checkpointer(ocp.CompositeCheckpointHandler())) as orbax:
            return dict(orbax.restore(path, args=ocp.args.Composite(**wanted)))
    except InputError:
        raise
    except Exception as error:  # whatever Orbax makes of it
        reason = (str(error).strip() or repr(error)).splitlines()[0][:300]
        raise InputError(f"{path}: the checkpoint is damaged ({reason})") from None


@contextlib.contextmanager
def offering_others(directory: Path, step: int):
    """Adds to the message of a damaged checkpoint which others there are.

    Args:
      directory: the folder of the checkpoints.
      step: the step of the checkpoint that is read.
    """
    try:
        yield
    except InputError as error:
        others = [other for other in steps(directory) if other != step]
        if "is damaged" not in str(error) or not others:
            raise
        raise InputError(
            f"{error}; there are others, of step {', '.join(map(str, others))}: remove the folder "
            f"{Path(directory) / str(step)} to go on from the one before it, or name one: "
            f"evaluate.py --checkpoint={others[-1]}"
        ) from None


def read_state(directory: Path, step: int, template: TrainState) -> TrainState:
    """Reads the whole state of a checkpoint, to continue training.

    Args:
      directory: the folder of the checkpoints.
      step: the step that the checkpoint was saved at.
      template: a state of the same structure, shapes and sharding.

    Raises:
      InputError: the checkpoint is damaged, or its arrays have other names or shapes.
    """
    items = _read(Path(directory).absolute() / str(step), _items(template))
    variables = dict(items["variables"])
    return template.replace(
        params=variables.pop("params"), collections=variables, ema=items.get("ema"),
        **items["training"],
    )  # fmt: skip


def read_variables(directory: Path, step: int, template: PyTree) -> PyTree:
    """Reads the variables for evaluation: the averaged parameters, if the checkpoint has them.

    Collections that the model itself does not have, such as memory banks, are left out.

    Args:
      directory: the folder of the checkpoints.
      step: the step that the checkpoint was saved at.
      template: the model's variables, or their shapes with sharding.

    Raises:
      InputError: the checkpoint is damaged, or its arrays have other names or shapes.
    """
    found = read_all_variables(directory, step, template)
    return {name: tree for name, tree in found.items() if name in template}


def read_all_variables(directory: Path, step: int, template: PyTree | None = None) -> PyTree:
    """Reads all variables of a checkpoint, with the averaged parameters, if it has them.

    Args:
      directory: the folder of the checkpoints.
      step: the step that the checkpoint was saved at.
      template: some of the variables, or their shapes with sharding, which must fit.

    Raises:
      InputError: the checkpoint is damaged, or arrays of the template have other names or shapes.
    """
    path = Path(directory).absolute() / str(step)
    _check_digests(path, ["variables"])
    wanted = _as_template(_metadata(path / "variables")) | (template or {})
    items = {"variables": wanted}
    if (path / "ema").is_dir():
        items["ema"] = wanted["params"]
    found = _read(path, items)
    return found["variables"] | ({"params": found["ema"]} if "ema" in found else {})


def _as_template(metadata: PyTree) -> PyTree:
    """Shapes and dtypes of what Orbax tells about a saved tree."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), metadata)
