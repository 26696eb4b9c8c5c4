"""Networks for other programs: a file of tensors with the names that a reference gives them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy

from market_jax.errors import InputError
from market_jax.files import write_atomically
from market_jax.registry import choose
from market_jax.typing import PyTree
from market_jax.weights.namings import (
    BACKBONE,
    BARE,
    COPY,
    NECK,
    NETWORKS,
    Rules,
    Variables,
    name_of,
    to_torch,
)

# begin the names of modules without which features differ
_INSIDE = ("attention", "camera", "non_local")
Convert = Callable[[Variables, str], Variables]


def write(
    path: Path | str,
    variables: PyTree,
    namings: Mapping[str, Rules],
    naming: str,
    convert: Convert | None = None,
) -> tuple[int, list[str]]:
    """Writes a network as a reference names it; the file appears whole or not at all.

    Args:
      path: the file, .safetensors.
      variables: of a network with a submodule "backbone".
      namings: the backbone's `TORCH_NAMES`.
      naming: one of them, for the backbone alone, or one of `namings.NETWORKS` with what lies
        behind it.
      convert: the backbone's `to_torch`, if it has one.

    Returns:
      How many tensors were written, and the modules that were left out, which the reference does
      not have: heads and what lies behind the backbone.

    Raises:
      InputError: there is no such naming, a module inside the backbone has no name in it, a value
        is not finite, or the file cannot be written.
    """
    flat, left_out = _flatten(variables)
    network, rules = _choose(naming, namings, flat)
    left_out |= {where[0] for where in flat if not _is_named(where, rules, network)}
    inside = sorted(module for module in left_out if module.startswith(_INSIDE))
    if inside:
        raise InputError(
            f"--naming={naming} has no names for the backbone's {inside[0]}, without which its "
            "features would be others"
        )
    flat = {where: value for where, value in flat.items() if where[0] not in left_out}
    tensors = {}
    for where, value in (convert(flat, naming) if convert else flat).items():
        name = name_of(where, rules, network)
        if not np.isfinite(value).all():
            raise InputError(f"{'/'.join(where)} has values that are not finite")
        tensors[name] = np.ascontiguousarray(to_torch(value, where[-1]))
        if where[0].startswith(NECK) and where[-1] == "scale":
            tensors[f"{name.removesuffix('weight')}bias"] = np.zeros_like(value)
    write_atomically(Path(path), safetensors.numpy.save(tensors))
    return len(tensors), sorted(left_out)


def _flatten(variables: PyTree) -> tuple[Variables, set[str]]:
    """What files may have, path -> value, float32, without collections and "backbone"; the rest."""
    flat, others = {}, set()
    for where, leaf in jax.tree_util.tree_leaves_with_path(variables):
        _, *path = (str(key.key) for key in where)
        if path[0] == BACKBONE:
            path = path[1:]
        elif not path[0].startswith((NECK, COPY)):
            others.add(path[0])
            continue
        flat[tuple(path)] = np.asarray(leaf, np.float32)
    return flat, others


def _choose(
    naming: str, namings: Mapping[str, Rules], flat: Variables
) -> tuple[Mapping[str, str], Rules]:
    """What a naming of a backbone or a network says: where files have what, and rules."""
    networks = {name: network for name, network in NETWORKS.items() if network is not BARE}
    choose(naming, networks | dict(namings), "value of --naming")
    if naming in namings:
        return BARE, namings[naming]
    # of the backbone's namings the one that knows most of its modules
    known = {name: sum(_is_named(p, rules) for p in flat) for name, rules in namings.items()}
    return networks[naming], namings[max(known, key=known.get)]


def _is_named(where: tuple[str, ...], rules: Rules, network: Mapping[str, str] = BARE) -> bool:
    """Whether the naming has a name for a variable; those inside a backbone keep their own."""
    module, *_ = where
    if module in network:
        return True
    if module.startswith(COPY):
        return any(rule.startswith(f"^{COPY}") for rule, _ in rules)
    if module.startswith((NECK, "head_", "gem", *_INSIDE)):
        return name_of(where, rules) != name_of(where, ())
    return True
