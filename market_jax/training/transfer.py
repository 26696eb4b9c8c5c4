"""Beginning a training with the variables of another run, and copies of a backbone's last stage."""

from collections.abc import Collection, Mapping
from pathlib import Path

import jax
import numpy as np
from absl import logging

from market_jax.errors import InputError
from market_jax.training import checkpoints
from market_jax.typing import PyTree

_PART = "backbone"
_CAMERAS = "/camera_embed"  # ends the names of embeddings of cameras
_COPY = "branch_"  # begins the names of the copies of its last stage, see `models.parts`


def begin(variables: PyTree, workdir: Path) -> PyTree:
    """Replaces variables by those that a run's best checkpoint has under the same names.

    The backbone must be there whole; but embeddings of its cameras begin anew, for a number may be
    another camera's here. Of the rest, what has the same name and shape is taken, such
    as the heads of the same labels. A copy of the backbone's last stage that the run lacks begins
    as in `copy_layers`; all else stays as it is.

    Args:
      variables: freshly initialised variables of a network.
      workdir: the folder of the run.

    Raises:
      InputError: there is no checkpoint, it is damaged, or its backbone is another one.
    """
    directory = Path(workdir).expanduser() / "checkpoints"
    step = checkpoints.find(directory, "best")
    if step is None:
        raise InputError(f"{workdir}: holds no checkpoint to begin with")
    with checkpoints.offering_others(directory, step):
        saved = checkpoints.paths_of(checkpoints.read_all_variables(directory, step))
    taken, values = 0, []
    leaves, structure = jax.tree_util.tree_flatten_with_path(variables)
    for where, leaf in leaves:
        name = "/".join(key.key for key in where)
        found = saved.get(name)
        anew = name.endswith(_CAMERAS)
        fits = found is not None and found.shape == leaf.shape and not anew
        if name.split("/")[1] == _PART and not fits and not anew:
            shape = "absent" if found is None else found.shape
            raise InputError(
                f"{directory / str(step)}: another backbone: {name} is {shape} there and "
                f"{leaf.shape} here"
            )
        taken += fits
        values.append(found if fits else leaf)
    logging.info("%s: %d of %d variables taken", directory / str(step), taken, len(leaves))
    kept = {name.split("/")[1] for name in saved}
    return copy_layers(jax.tree_util.tree_unflatten(structure, values), leave=kept)


def copy_layers(variables: PyTree, leave: Collection[str] = ()) -> PyTree:
    """Begins the copies of a backbone's last stage with the backbone's variables.

    A copy is a module named "branch_..."; its layers have the same names as the backbone's. Layers
    that the backbone does not have, or has in another shape, stay as they are.

    Args:
      variables: the variables of a network with a submodule "backbone".
      leave: the copies that stay as they are.
    """
    copied = {}
    for kind, tree in variables.items():
        names = [name for name in tree if name.startswith(_COPY) and name not in leave]
        copied[kind] = tree | {name: _fill(tree[name], tree.get(_PART, {})) for name in names}
    return copied


def _fill(copy: Mapping, backbone: Mapping) -> PyTree:
    """The layers of a copy, with the values of the backbone's of the same names and shapes."""

    def shapes(tree):
        return jax.tree.map(np.shape, tree)

    same = [name for name in copy if shapes(copy[name]) == shapes(backbone.get(name))]
    # arrays of their own, since a step gives the memory of each away
    return copy | {name: jax.tree.map(np.array, backbone[name]) for name in same}
