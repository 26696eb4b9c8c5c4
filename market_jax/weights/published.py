"""Published networks: one .safetensors file each, from which a network is built without its run.

The tensors are the network's variables, named by their paths: "params/backbone/stem/conv/kernel".
The file's metadata has an entry "market_jax", which is JSON; see `FIELDS`. Those of the package
`market_jax_weights` are known by name. Nothing in a file is ever run.
"""

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from market_jax import kinds
from market_jax.errors import InputError
from market_jax.files import read_bytes, write_atomically
from market_jax.registry import choose
from market_jax.typing import Fraction, NonNegative, PyTree
from market_jax.weights import files, hub

PACKAGE = "market_jax_weights"
SUFFIX = ".safetensors"
FORMAT = 1  # of the metadata, and of the config in it
MOST_BYTES = 25_000_000  # of a file in the package
DTYPES = {"float16": np.float16, "float32": np.float32}
FIELDS = {  # of the metadata
    "name": str,
    "config": dict[str, Any],  # that it was trained with
    "labels": dict[str, tuple[str, ...]],  # label -> class names
    "label_counts": dict[str, tuple[int, ...]],  # label -> training images of each class
    "trained_on": tuple[dict[str, Any], ...],  # an entry for each data set
    "clustered": tuple[tuple[str, ...], ...],  # (data sets, split) learned from without labels
    "same_person": dict[str, Any],  # see `SAME_PERSON`; {} where nothing has calibrated it
    "commit": str,  # of market_jax that wrote the file
}
TRAINED_ON = {  # of an entry of "trained_on"
    "name": str,  # of the data set
    "identities": int,  # that were trained on
    "pids": dict[str, tuple[int, ...]],  # side of the division -> its pids; "train" is one
}
SAME_PERSON = {  # of "same_person", see calibration.py
    **{"threshold": NonNegative, "precision": Fraction, "recall": Fraction},
    **{"false_positive_rate": Fraction, "metric": str, "flip": bool, "judged": str},
}
_ENTRY = "market_jax"


class Network(NamedTuple):
    """What the file of a published network holds.

    Attributes:
      path: the file.
      digest: of its bytes.
      tensors: path of a variable -> its value.
      about: the metadata, see `FIELDS`.
    """

    path: Path
    digest: str
    tensors: dict[str, np.ndarray]
    about: dict[str, Any]


def names() -> dict[str, Path]:
    """Name -> file, for the networks of the package `market_jax_weights`; {} without it."""
    found = importlib.util.find_spec(PACKAGE)
    folders = (found.submodule_search_locations or []) if found else []
    paths = sorted(path for folder in folders for path in Path(folder).glob(f"*{SUFFIX}"))
    return {path.stem: path for path in paths}


def is_file(source: str | Path) -> bool:
    """Whether a source is a file, here or on the Hugging Face Hub, rather than a name."""
    return str(source).endswith(SUFFIX) or str(source).startswith(hub.PREFIX)


def find(source: str | Path) -> Path:
    """Finds the file of a published network.

    Args:
      source: its name, the path of a .safetensors file, or "hf:OWNER/NAME/FILE.safetensors" for one
        on the Hugging Face Hub, which is downloaded once.

    Raises:
      InputError: there is no network of that name, with a list of those that there are; or the file
        cannot be downloaded.
    """
    if is_file(source):
        on_hub = str(source).startswith(hub.PREFIX)
        return hub.download(str(source)) if on_hub else Path(source).expanduser()
    known = names()
    if str(source) in known:
        return known[str(source)]
    raise InputError(
        f"there is no published network {str(source)!r}; known: {', '.join(known) or 'none'}. They "
        "come with: pip install ./weights (in the folder of market_jax)"
    )


def is_network(path: Path | str) -> bool:
    """Whether a file is of a published network of this package, and not of another program.

    Args:
      path: the file.
    """
    try:
        return Path(path).is_file() and _ENTRY in _metadata(Path(path))
    except InputError:
        return False


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: is no good .safetensors ({error})") from None


def read(path: Path | str) -> Network:
    """Reads the file of a published network.

    Args:
      path: the file.

    Raises:
      InputError: it is missing, broken, or of another format, or its metadata is missing or wrong.
    """
    path = Path(path)
    tensors, entries = files.read(path), _metadata(path)
    if _ENTRY not in entries:
        raise InputError(
            f"{path}: is no published network of market_jax: its metadata has no entry {_ENTRY!r}"
        )
    about = _check_about(path, entries[_ENTRY])
    digest = hashlib.sha256(read_bytes(path)).hexdigest()
    return Network(path, digest, tensors, about)


def _check_about(path: Path, text: str) -> dict[str, Any]:
    """The metadata, its fields held against `FIELDS`."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its metadata is no JSON ({error})") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        said = found.get("format") if isinstance(found, dict) else None
        raise InputError(
            f"{path}: has format {said}; this version of market_jax reads {FORMAT}. Take the file "
            "that belongs to it, or export the network again"
        )
    about = _check_fields(f"{path}: the metadata", found, FIELDS)
    same = about["same_person"]
    if same:
        about["same_person"] = _check_fields(f"{path}: same_person", same, SAME_PERSON)
    return _check_people(path, about)


def _check_people(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The metadata, whose entries of "trained_on" are held against `TRAINED_ON`."""
    for entry in about["trained_on"]:
        fields = _check_fields(f"{path}: trained_on", entry, TRAINED_ON)
        choose("train", fields["pids"], f"side in {path}: trained_on.pids")
        entry.update(fields)
    return about


def read_people(path: Path, texts: Mapping[str, str]) -> dict[str, Any] | None:
    """Of the metadata, whose values are JSON, what says whom a network has seen.

    Args:
      path: the file that has them, for messages.
      texts: name -> JSON.

    Returns:
      "trained_on" and "clustered", see `FIELDS`; None where the file does not say it.

    Raises:
      InputError: they are something else.
    """
    names = ("trained_on", "clustered")
    if not all(name in texts for name in names):
        return None
    try:
        found = {name: json.loads(texts[name]) for name in names}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its metadata is no JSON ({error})") from None
    fields = {name: FIELDS[name] for name in names}
    return _check_people(path, _check_fields(f"{path}: the metadata", found, fields))


def _check_fields(what: str, found: Mapping[str, Any], fields: Mapping) -> dict[str, Any]:
    missing = [name for name in fields if name not in found]
    if missing:
        raise InputError(f"{what} has no {missing[0]!r}")
    return {name: kinds.check(f"{what}: {name}", found[name], k) for name, k in fields.items()}


def fill(network: Network, template: PyTree) -> PyTree:
    """The variables of a network with the values of its file.

    Args:
      network: what `read` has returned.
      template: the network's variables, or their shapes and dtypes.

    Raises:
      InputError: a tensor is missing, is one too many, has another shape or kind, or holds a value
        that is not finite.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    wanted = {_name(where): leaf for where, leaf in leaves}
    unknown = sorted(network.tensors.keys() - wanted.keys())
    if unknown:
        raise InputError(f"{network.path}: the network of its config has no tensor {unknown[0]}")
    values = [_value(network, name, leaf) for name, leaf in wanted.items()]
    return jax.tree_util.tree_unflatten(structure, values)


def _value(network: Network, name: str, leaf: Any) -> np.ndarray:
    """A variable's value, in the shape and dtype of the network's."""
    if name not in network.tensors:
        raise InputError(
            f"{network.path}: has no tensor {name}, which the network of its config has"
        )
    value, where = network.tensors[name], f"{network.path}: tensor {name}"
    if value.shape != leaf.shape:
        raise InputError(f"{where} is {value.shape}; the network of its config has {leaf.shape}")
    if (value.dtype.kind == "f") != (np.dtype(leaf.dtype).kind == "f"):
        raise InputError(f"{where} is {value.dtype}; the network of its config has {leaf.dtype}")
    value = value.astype(leaf.dtype)
    if not np.isfinite(value).all():
        raise InputError(f"{where} holds values that are not finite")
    return value


def write(
    path: Path | str, variables: PyTree, about: Mapping[str, Any], dtype: str = "float16"
) -> None:
    """Writes the file of a network; it appears whole or not at all.

    Args:
      path: the file.
      variables: of the network.
      about: the metadata, see `FIELDS`.
      dtype: that of kernels, a name in `DTYPES`; vectors, such as BatchNorm's statistics, stay
        float32.

    Raises:
      InputError: a value is not finite in that dtype, or the file cannot be written.
    """
    kind = choose(dtype, DTYPES, "dtype")
    tensors = {}
    for where, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        value = np.ascontiguousarray(leaf)
        if value.dtype.kind == "f":
            with np.errstate(over="ignore"):
                value = value.astype(kind if value.ndim > 1 else np.float32)
        if not np.isfinite(value).all():
            raise InputError(f"{path}: {_name(where)} has values that are not finite in {dtype}")
        tensors[_name(where)] = value.reshape(np.shape(leaf))
    text = json.dumps({"format": FORMAT} | dict(about), sort_keys=True)
    write_atomically(Path(path), safetensors.numpy.save(tensors, {_ENTRY: text}))


def _name(where: tuple) -> str:
    """A variable's path as a name."""
    return "/".join(str(key.key) for key in where)
