"""What published networks call the variables of ours, and how they lay them out.

A backbone with published weights defines `TORCH_NAMES`: naming -> rules, pairs of a regular
expression and its replacement. Applied in order to the dotted path of a module,
"block1_0.expand.conv", the rules give the module's name in files with this naming. A variable of
another kind than those of dense layers, convolutions and norms is named as a whole,
"block1.gamma1"; and a name that ends with _ is joined to "weight" or "bias" without a dot. A copy
of the last stage, "branch_...", has the names of the backbone's own, unless a rule begins with
"^branch_".

Where a tensor and a variable differ in more than their names, the backbone's file defines two
things more. `TORCH_VALUES`: the variable's own name -> a function of the file's tensors, the
tensor's name and the variable's shape, which makes the value; what it cannot fit it returns as it
is. `to_torch`: a function of all variables, path -> value, and the naming, which makes the file's.

Files of whole networks for re-identification have more than the backbone, see `NETWORKS`.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Rules = Sequence[tuple[str, str | Callable]]
Values = Mapping[str, Callable[[Mapping[str, np.ndarray], str, tuple[int, ...]], np.ndarray]]
Variables = Mapping[tuple[str, ...], np.ndarray]

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "power": "p",  # of GeM
}
BACKBONE, NECK, COPY = "backbone", "bnneck", "branch_"
BARE = {BACKBONE: ""}
# files of whole networks: where they have the backbone, and the modules that are not inside it
NETWORKS = {
    "backbone": BARE,
    "fast-reid": {BACKBONE: "backbone.", NECK: "heads.bottleneck.0", "gem": "heads.pool_layer"},
    "fast-reid 0": {BACKBONE: "backbone.", NECK: "heads.bnneck", "gem": "heads.pool_layer"},
    "BoT": {BACKBONE: "base.", NECK: "bottleneck", "gem": "global_pool"},  # and AGW
}


def name_of(path: Sequence[str], rules: Rules, network: Mapping[str, str] = BARE) -> str:
    """A variable's name in a file.

    Args:
      path: of the variable, without its collection and "backbone".
      rules: of the backbone's naming.
      network: of `NETWORKS`, where the file has what.
    """
    kind = path[-1]
    if path[0].startswith(COPY) and not any(rule.startswith(f"^{COPY}") for rule, _ in rules):
        path = path[1:]
    name = ".".join(path[:-1] if kind in _LEAVES else path)
    if name in network:
        name = network[name]
    else:
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        name = network[BACKBONE] + name
    if kind not in _LEAVES:
        return name
    return f"{name}{'' if name.endswith('_') else '.'}{_LEAVES[kind]}"


def from_torch(tensor: np.ndarray, kind: str) -> np.ndarray:
    """A tensor with its axes as a variable of the kind has them: PyTorch has outputs first.

    Args:
      tensor: of a file.
      kind: the last part of the variable's path.
    """
    if kind != "kernel":
        return tensor
    return tensor.transpose((2, 3, 1, 0) if tensor.ndim == 4 else None)


def to_torch(value: np.ndarray, kind: str) -> np.ndarray:
    """The opposite of `from_torch`."""
    if kind != "kernel":
        return value
    return value.transpose((3, 2, 0, 1) if value.ndim == 4 else None)
