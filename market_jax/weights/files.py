"""Reads tensors from PyTorch's files and .safetensors, without PyTorch.

Nothing in a file is ever run: a pickle may only say where tensors lie, see `pickles.py`. Nothing in
a file is believed before it was held against the file's size: what is read takes at most a few
times that much memory, and time in proportion.
"""

import io
import json
import math
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np
import safetensors
from absl import logging

from market_jax.errors import InputError
from market_jax.weights import pickles
from market_jax.weights.pickles import Storage, Tensor

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # opens files of PyTorch before 1.6
AVERAGED = ("state_dict_ema", "model_ema", "ema")  # what a training calls averaged weights
_NESTS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network")
_MOST_BYTES = 4 << 30  # of a file
_MOST_HEADER = 16 << 20  # bytes of a list of entries; one entry takes around 100
_COPIES = 2  # tensors may share storages, but not take more than this many times the file's size
_SAFETENSORS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read(path: Path | str) -> dict[str, np.ndarray]:
    """Reads the tensors of a file: name -> array.

    Args:
      path: a .safetensors file, or a file that any version of `torch.save` has written: a state
        dict, or a dict that has one under "state_dict", "model_state_dict", "model_state", "model",
        "net" or "network". Averaged weights, under "state_dict_ema", "model_ema" or "ema", are
        taken rather than those beside them. The content tells which format it is, not the name.

    Raises:
      InputError: the file is missing, cannot be read or is broken, or holds something else than
        tensors.
    """
    path = Path(path)
    try:
        return _read(path)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except InputError as error:
        raise InputError(f"{path}: {_short(error)}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise InputError(f"{path}: takes more memory than there is") from None
    except Exception as error:  # whatever a broken file makes of a parser
        raise InputError(
            f"{path}: is no file of tensors, or is broken ({_short(error)})"
        ) from error


def _short(error: Exception) -> str:
    """What an error says, for names in a broken file may be long."""
    text = str(error) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:150]} ... {text[-150:]}"


def _read(path: Path) -> dict[str, np.ndarray]:
    """Tells the formats apart by the first bytes."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # to open a pipe could wait for ever
        raise InputError("is no regular file")
    if found.st_size > _MOST_BYTES:
        raise InputError(f"has {found.st_size} bytes; files up to {_MOST_BYTES} are read")
    with path.open("rb") as file:
        start = file.read(9)
        file.seek(0)
        if start.startswith(b"PK\x03\x04"):
            return _read_zip(file, found.st_size)
        if start.startswith(b"\x80") and not start.endswith(b"{"):  # { opens .safetensors' header
            return _read_legacy(file, found.st_size)
        return _read_safetensors(file, found.st_size)


def _read_safetensors(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
    if length > min(size - 8, _MOST_HEADER):
        raise InputError(
            "is neither .safetensors nor a file of torch.save, or was cut: as .safetensors, its "
            f"header has {length} bytes of {size}, and at most {_MOST_HEADER} are read"
        )
    file.seek(0)
    content = file.read()
    try:
        entries = dict(safetensors.deserialize(content))
    except safetensors.SafetensorError as error:
        raise InputError(f"is no good .safetensors ({error})") from None
    tensors = {}
    for name in json.loads(content[8 : 8 + length]):  # in the file's order
        if name == "__metadata__":
            continue
        entry = entries[name]
        if entry["dtype"] not in _SAFETENSORS:
            raise InputError(f"tensor {name} is {entry['dtype']}, which is not read")
        values = np.frombuffer(entry["data"], _SAFETENSORS[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    if not tensors:
        raise InputError("holds no tensors")
    return tensors


def _read_zip(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    _check_end(file, size)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        _check_entries(entries, size)
        infos = {entry.filename: entry for entry in entries}
        roots = [name[:-8] for name in infos if name.split("/", 1)[-1] == "data.pkl"]
        if len(roots) != 1:
            raise InputError(f"is a zip with {len(roots)} files data.pkl; torch.save writes one")
        root, order = roots[0], infos.get(f"{roots[0]}byteorder")
        if order and (order.file_size > 6 or archive.read(order) != b"little"):
            raise InputError("its numbers are big-endian, which is not read")
        pickled = infos[f"{root}data.pkl"]
        if pickled.file_size > pickles.MOST_BYTES:
            raise InputError(f"its pickle has more than {pickles.MOST_BYTES} bytes")
        value, _ = pickles.load(io.BytesIO(archive.read(pickled)))
        contents = {}

        def content(storage: Storage) -> np.ndarray:
            entry = infos.get(f"{root}data/{storage.key}")
            if entry is None or storage.count * storage.dtype.itemsize > entry.file_size:
                raise InputError(f"storage {storage.key} is missing or has fewer numbers than told")
            if storage.key not in contents:
                contents[storage.key] = archive.read(entry)
            return np.frombuffer(contents[storage.key], storage.dtype, storage.count)

        return _take(_flatten(value, file.name), content, size)


def _check_end(file: BinaryIO, size: int) -> None:
    """Refuses a zip whose list of entries is cut off or too long for memory."""
    file.seek(-min(size, 98), io.SEEK_END)
    tail = file.read(98).rjust(98, b"\0")
    wide, locator, end = tail[:56], tail[56:76], tail[76:]
    if not end.startswith(b"PK\x05\x06") or not end.endswith(b"\0\0"):
        raise InputError("is no file of tensors, or is broken: it does not end as a zip does")
    length = int.from_bytes(end[12:16], "little")
    if locator.startswith(b"PK\x06\x07"):  # of a zip that may be larger than 4 GiB
        if not wide.startswith(b"PK\x06\x06") or locator[8:16] != struct.pack("<Q", size - 98):
            raise InputError("is broken: it does not end as a zip does")
        length = max(length, int.from_bytes(wide[40:48], "little"))
    if length > min(size, _MOST_HEADER):
        raise InputError(f"its list of entries has {length} bytes; at most {_MOST_HEADER} are read")


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    """Refuses a zip that torch.save does not write, and one larger inside than outside."""
    names = set()
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise InputError(f"its entry {entry.filename} is compressed or encrypted")
        if entry.compress_size != entry.file_size:
            raise InputError(f"its entry {entry.filename} has two sizes")
        if entry.filename in names:
            raise InputError(f"its entry {entry.filename} is there twice")
        names.add(entry.filename)
    if sum(entry.file_size for entry in entries) > size:
        raise InputError("its entries are larger together than the file")


def _read_legacy(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    head = io.BytesIO(file.read(pickles.MOST_BYTES))
    if pickles.load(head)[0] != _LEGACY_MAGIC:
        raise InputError("is neither .safetensors nor a file of torch.save")
    pickles.load(head)  # the version of the format
    system, _ = pickles.load(head)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise InputError("its numbers are big-endian, which is not read")
    value, named = pickles.load(head)
    keys, _ = pickles.load(head)
    if not isinstance(keys, list) or not all(type(key) in (str, int) for key in keys):
        raise InputError("is broken: it has no list of its storages")
    file.seek(head.tell())
    contents = {}
    for key in map(str, keys):
        if key in contents or key not in named:
            raise InputError(f"storage {key} is there twice, or belongs to no tensor")
        contents[key] = _read_storage(file, size, named[key])
    if contents.keys() != named.keys():
        raise InputError(f"lacks {len(named) - len(contents)} storages of its tensors")
    return _take(_flatten(value, file.name), lambda storage: contents[storage.key], size)


def _read_storage(file: BinaryIO, size: int, storage: Storage) -> np.ndarray:
    """Reads the number of elements, then the elements."""
    (count,) = struct.unpack("<q", file.read(8))
    length = count * storage.dtype.itemsize
    if count != storage.count or length > size - file.tell():
        raise InputError(f"storage {storage.key} has {count} numbers: more or fewer than told")
    return np.frombuffer(file.read(length), storage.dtype)


def _flatten(value: object, path: str) -> dict[str, Tensor]:
    """The state dict in what was unpickled; it must hold tensors alone."""
    while isinstance(value, dict):
        averaged = [key for key in AVERAGED if _has_tensors(value.get(key))]
        inner = averaged or [key for key in _NESTS if isinstance(value.get(key), dict)]
        if not inner:
            break
        if averaged:
            logging.info("%s: the averaged weights are read, %r", path, inner[0])
        value = value[inner[0]]
    if not isinstance(value, dict) or not value:
        raise InputError("holds no state dict: a dict from names to tensors")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise InputError(f"entry {name!r} is no tensor, or has no text as its name")
    return value


def _has_tensors(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(each, Tensor) for each in value.values())


def _take(tensors: dict[str, Tensor], content: Callable, size: int) -> dict[str, np.ndarray]:
    """Cuts every tensor out of its storage."""
    arrays, room = {}, _COPIES * size
    for name, tensor in tensors.items():
        values = content(tensor.storage)
        if 0 in tensor.shape:
            arrays[name] = np.zeros(tensor.shape, values.dtype)
            continue
        _check_inside(name, tensor)
        room -= math.prod(tensor.shape) * values.dtype.itemsize
        if room < 0:
            raise InputError(f"its tensors take more than {_COPIES} times the file's size")
        steps = [stride * values.dtype.itemsize for stride in tensor.strides]
        view = np.lib.stride_tricks.as_strided(
            values[tensor.offset :], tensor.shape, steps, writeable=False
        )
        arrays[name] = view.copy()
    return arrays


def _check_inside(name: str, tensor: Tensor) -> None:
    """Refuses a tensor with elements that leaves its storage, or takes an element twice."""
    reach, twice = 0, False  # of the axes so far
    for stride, count in sorted(zip(tensor.strides, tensor.shape, strict=True)):
        twice |= count > 1 and stride <= reach
        reach += (count - 1) * stride
    beyond = tensor.offset + reach >= max(tensor.storage.count, 1)
    if beyond or min(tensor.strides, default=0) < 0:
        raise InputError(f"tensor {name} lies beyond the end of its storage")
    if twice or math.prod(tensor.shape) > tensor.storage.count:
        raise InputError(f"tensor {name} takes elements of its storage twice")
