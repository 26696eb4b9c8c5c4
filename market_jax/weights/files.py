"""Reads tensors from PyTorch's files and .safetensors, without PyTorch.

Nothing in a file is ever run: a pickle may only say where tensors lie, with the few functions that
PyTorch itself uses for that. Everything else is refused.
"""

import collections
import functools
import io
import json
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from market_jax.errors import InputError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # opens files of PyTorch before 1.6
_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_SAFETENSORS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


class _Tensor(NamedTuple):
    """Where a tensor lies: in a storage, from an offset, with strides, in elements."""

    storage: tuple
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage, offset, shape, strides, *_):
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


_CALLS = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
}


class _Unpickler(pickle.Unpickler):
    """Knows tensors and containers, and nothing else."""

    def find_class(self, module, name):
        if module == "torch" and name in _STORAGES:
            return name
        if (module, name) in _CALLS:
            return _CALLS[module, name]
        raise InputError(f"it asks for {module}.{name}; only tensors are read from a pickle")

    def persistent_load(self, pid):
        kind, storage, key, _, count = pid[:5]
        if kind != "storage":
            raise InputError(f"it holds a {kind!r}, not only tensors")
        if len(pid) > 5 and pid[5] is not None:
            raise InputError("it holds a view of a storage, which is not read")
        return np.dtype(_STORAGES[storage]), str(key), count


def read(path: Path | str) -> dict[str, np.ndarray]:
    """Reads the tensors of a file: name -> array.

    Args:
      path: a .safetensors file, or a file that any version of `torch.save` has written: a state
        dict, or a dict that has one under "state_dict", "model" or "model_state_dict".

    Raises:
      InputError: the file is missing or broken, or holds something else than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        return _read_legacy(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (  # whatever a broken file makes of a parser
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        AttributeError,
        EOFError,
        IndexError,
        KeyError,
        OSError,
        OverflowError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        raise InputError(f"{path}: is no file of tensors, or is broken ({error})") from None


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    data, tensors = content[8 + length :], {}
    for name, entry in header.items():
        if entry["dtype"] not in _SAFETENSORS:
            raise InputError(f"tensor {name} is {entry['dtype']}, which is not read")
        start, end = entry["data_offsets"]
        if not 0 <= start <= end <= len(data):
            raise InputError(f"tensor {name} lies beyond the end of the file")
        values = np.frombuffer(data[start:end], _SAFETENSORS[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def _read_zip(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        (pickled,) = [n for n in archive.namelist() if n.split("/", 1)[-1] == "data.pkl"]
        root = pickled.removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise InputError("its numbers are big-endian, which is not read")
        value = _Unpickler(io.BytesIO(archive.read(pickled))).load()

        @functools.cache
        def storage(dtype: np.dtype, key: str, count: int) -> np.ndarray:
            return np.frombuffer(archive.read(f"{root}data/{key}"), dtype, count)

        return _take(value, storage)


def _read_legacy(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        if _Unpickler(file).load() != _LEGACY_MAGIC:
            raise InputError("is neither .safetensors nor a file of torch.save")
        _Unpickler(file).load()  # the version of the format
        if not _Unpickler(file).load().get("little_endian"):
            raise InputError("its numbers are big-endian, which is not read")
        value = _Unpickler(file).load()
        keys = [str(key) for key in _Unpickler(file).load()]
        content = file.read()
    widths = {}
    for tensor in _flatten(value).values():
        dtype, key, _ = tensor.storage
        widths[key] = dtype
    storages, at = {}, 0
    for key in keys:  # each: the number of elements, then the elements
        (count,) = struct.unpack_from("<q", content, at)
        dtype = widths.get(key)
        if dtype is None:
            raise InputError(f"storage {key} belongs to no tensor")
        storages[key] = np.frombuffer(content, dtype, count, at + 8)
        at += 8 + count * dtype.itemsize
    return _take(value, lambda dtype, key, count: storages[key])


def _flatten(value) -> dict[str, _Tensor]:
    """The state dict in what was unpickled; it must hold tensors alone."""
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
            break
    if not isinstance(value, dict) or not value:
        raise InputError("holds no state dict: a dict from names to tensors")
    wrong = [name for name, tensor in value.items() if not isinstance(tensor, _Tensor)]
    if wrong:
        raise InputError(f"entry {wrong[0]!r} is no tensor")
    return {str(name): tensor for name, tensor in value.items()}


def _take(value, storage: Callable) -> dict[str, np.ndarray]:
    """Cuts every tensor out of its storage."""
    arrays = {}
    for name, (where, offset, shape, strides) in _flatten(value).items():
        values = storage(*where)
        last = offset + sum(max(n - 1, 0) * s for n, s in zip(shape, strides, strict=True))
        if offset < 0 or min((*shape, *strides), default=0) < 0 or last >= max(len(values), 1):
            raise InputError(f"tensor {name} lies beyond the end of its storage")
        if math.prod(shape) > len(values):
            raise InputError(f"tensor {name} takes elements of its storage twice")
        if math.prod(shape) == 0:
            arrays[name] = np.zeros(shape, values.dtype)
            continue
        steps = [s * values.dtype.itemsize for s in strides]
        view = np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False)
        arrays[name] = view.copy()
    return arrays
