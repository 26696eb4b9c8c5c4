"""Beginning a training with the variables of another run."""

from pathlib import Path

import jax
from absl import logging

from market_jax.errors import InputError
from market_jax.training import checkpoints
from market_jax.typing import PyTree

_PART = "backbone"


def begin(variables: PyTree, workdir: Path) -> PyTree:
    """Replaces variables by those that a run's best checkpoint has under the same names.

    The backbone must be there whole. Of the rest, what has the same name and shape is taken, such
    as the heads of the same labels; all else stays as it is.

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
        fits = found is not None and found.shape == leaf.shape
        if name.split("/")[1] == _PART and not fits:
            shape = "absent" if found is None else found.shape
            raise InputError(
                f"{directory / str(step)}: another backbone: {name} is {shape} there and "
                f"{leaf.shape} here"
            )
        taken += fits
        values.append(found if fits else leaf)
    logging.info("%s: %d of %d variables taken", directory / str(step), taken, len(leaves))
    return jax.tree_util.tree_unflatten(structure, values)
