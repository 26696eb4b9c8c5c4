"""Beginning a training with another network of this package, and copies of a last stage.

Such a network is a run or a published one. Whom it was trained on must not be held out here.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from market_jax.data import columns as columns_
from market_jax.data.datasets import SIDES, Dataset, Division
from market_jax.errors import InputError
from market_jax.training import checkpoints
from market_jax.typing import Columns, PyTree
from market_jax.weights import published

_PART = "backbone"
_CAMERAS = "/camera_embed"  # ends the names of embeddings of cameras
_POWER = "/gem/power"  # ends the name of the power of GeM
_COPY = "branch_"  # begins the names of the copies of its last stage, see `models.parts`
_SAME_PEOPLE = {"unitn": "market1501"}  # divided anew, and under other numbers


class Source(NamedTuple):
    """A network of this package that a training may begin with.

    Attributes:
      path: the folder of a run, or the file of a published network.
      which: the checkpoint of the run, "best", "latest" or its step; "" of a published network.
    """

    path: Path
    which: str = ""


def find(name: str | Path) -> Source | None:
    """The network of this package that `model.pretrained` names; None where it is another's.

    Args:
      name: the folder of a run, whose best checkpoint is meant, or "FOLDER@latest" or
        "FOLDER@STEP"; the name of a published network; or its .safetensors file, a path or
        "hf:OWNER/NAME/FILE". A folder goes first.

    Raises:
      InputError: a file cannot be downloaded.
    """
    name = str(name)
    folder, _, which = name.rpartition("@")
    for path, checkpoint in ((name, "best"), (folder, which)):
        if path and checkpoint and Path(path).expanduser().is_dir():
            return Source(Path(path).expanduser(), checkpoint)
    if name.endswith(published.SUFFIX) or name in published.names():
        file = published.find(name)
        return Source(file) if published.is_network(file) else None
    return None


def begin(variables: PyTree, name: str | Path) -> PyTree:
    """Replaces variables by those that another network has under the same names.

    The backbone must be there whole; but embeddings of its cameras begin anew, for a number may be
    another camera's here, and so does the power of GeM where the other one pools otherwise. Of the
    rest, what has the same name and shape is taken, such as the heads of the same labels. A copy of
    the backbone's last stage that the other one lacks begins as in `copy_layers`; all else stays as
    it is.

    Args:
      variables: freshly initialised variables of a network.
      name: the other network, see `find`.

    Raises:
      InputError: there is no such network or checkpoint, it is damaged, or its backbone is another
        one.
    """
    origin, saved = _read(name)
    taken, values = 0, []
    leaves, structure = jax.tree_util.tree_flatten_with_path(variables)
    for where, leaf in leaves:
        key = "/".join(part.key for part in where)
        found = saved.get(key)
        anew = key.endswith(_CAMERAS) or (found is None and key.endswith(_POWER))
        fits = found is not None and found.shape == leaf.shape and not anew
        if key.split("/")[1] == _PART and not fits and not anew:
            shape = "absent" if found is None else found.shape
            raise InputError(
                f"{origin}: another backbone: {key} is {shape} there and {leaf.shape} here"
            )
        if anew:
            logging.info("%s: %s begins anew", origin, key)
        taken += fits
        values.append(_checked(f"{origin}: {key}", found, leaf.dtype) if fits else leaf)
    logging.info("%s: %d of %d variables taken", origin, taken, len(leaves))
    kept = {key.split("/")[1] for key in saved}
    return copy_layers(jax.tree_util.tree_unflatten(structure, values), leave=kept)


def _read(name: str | Path) -> tuple[Path, Mapping[str, np.ndarray]]:
    """Where a network's variables lie, and path of a variable -> value."""
    source = find(name)
    if source and not source.which:
        return source.path, published.read(source.path).tensors
    directory = source.path / "checkpoints" if source else Path(name)
    step = checkpoints.find(directory, source.which) if source else None
    if step is None:
        raise InputError(f"{name}: holds no checkpoint to begin with")
    with checkpoints.offering_others(directory, step):
        variables = checkpoints.read_all_variables(directory, step)
    return directory / str(step), checkpoints.paths_of(variables)


def _checked(what: str, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A value of its own in that dtype: a published network has its kernels in float16."""
    value = np.array(value, dtype)
    if not np.isfinite(value).all():
        raise InputError(f"{what} holds values that are not finite")
    return value


def check_held_out(name: str, known: Sequence[Division], dataset: Dataset) -> None:
    """Refuses to begin with a network that was trained on people whom the training holds out.

    A person is the same where a data set has the same name and the person the same number. If a run
    has noted digests of whom it knows, and their pictures or labels are all others now, that is
    taken for other people under the same numbers, and a warning says so.

    Args:
      name: `model.pretrained`, for the message.
      known: whom the network was trained on, and whom those that it began with.
      dataset: that the training divides.

    Raises:
      InputError: somebody held out was trained on, or may have been: another data set shows the
        same people under other numbers.
    """
    for other in known:
        for own, rows in divided(dataset):
            held = {pid for side, pids in own.pids.items() if side != "train" for pid in pids}
            if held and other.name != own.name and are_related({other.name}, {own.name}):
                raise InputError(
                    f"model.pretrained is {name!r}, which was trained on {other.name}; it shows "
                    f"people of {own.name} under other numbers, so that the {len(held)} who are "
                    "held out here may be among them: hold nobody out (data.val_fraction and "
                    "data.holdout_fraction 0), or begin with another network"
                )
            both = held & set(other.pids["train"]) if other.name == own.name else set()
            if both and are_others(other, rows):
                text = "%s was trained on other pictures of %s; its people are taken for others"
                logging.warning(text, name, own.name)
            elif both:
                raise InputError(
                    f"model.pretrained is {name!r}, which was trained on {len(both)} of the "
                    f"{len(held)} people of {own.name} who are held out here: hold out whom that "
                    "network has not seen (data.val_fraction, data.holdout_fraction and "
                    "data.split_seed of its run) or nobody, or begin with another network"
                )


def divided(dataset: Dataset) -> Iterator[tuple[Division, Columns]]:
    """Each data set's division, and the persons and digests of its pictures as they are there.

    Args:
      dataset: one data set, or several that are joined.
    """
    sides = [dataset.open(side) for side in SIDES]
    rows = {key: np.concatenate([side[key] for side in sides]) for key in ("pid", "digest")}
    nothing = np.zeros(len(rows["pid"]), int)
    several = "dataset" in sides[0]
    numbers = np.concatenate([side["dataset"] for side in sides]) if several else nothing
    for part, division in zip(dataset.parts, dataset.divisions(), strict=True):
        own = columns_.select(rows, numbers == part.number)
        yield division, own | {"pid": own["pid"] - part.pid_offset}


def are_others(known: Division, rows: Columns) -> bool:
    """Whether on no side of a division the pictures and labels are those that it has noted.

    Args:
      known: the division, which a run has kept; one without digests has noted nothing.
      rows: of the data set of that name, see `divided`.
    """
    noted = [side for side in known.digests if known.pids[side]]
    return bool(noted) and not any(
        columns_.fingerprint(columns_.select(rows, np.isin(rows["pid"], known.pids[side])))
        == known.digests[side]
        for side in noted
    )


def are_related(names: set[str], others: set[str]) -> bool:
    """Whether data sets show the same people, be it under other numbers.

    Args:
      names: names of data sets.
      others: names of other data sets.
    """
    first, second = ({_SAME_PEOPLE.get(n, n) for n in group} for group in (names, others))
    return bool(first & second)


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
