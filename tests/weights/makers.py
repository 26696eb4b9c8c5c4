"""Weight files in PyTorch's formats, made without PyTorch."""

import json
import struct
import sys
import zipfile

import numpy as np

from market_jax.weights import files

TENSORS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a.bias": np.array([1.5, -2.0], np.float32),
    "n": np.array(7, np.int64),
}


class Storage:
    """The memory of a tensor."""

    def __init__(self, array):
        self.array = array


class Tensor:
    """Pickled as PyTorch pickles its tensors."""

    def __init__(self, array, shape=None, strides=None, offset=0):
        array = np.asarray(array)
        self.storage = Storage(np.ascontiguousarray(array).ravel())
        shape = array.shape if shape is None else shape
        steps = tuple(np.cumprod((1, *array.shape[:0:-1]))[::-1].tolist()) if array.ndim else ()
        self.arguments = (offset, shape, steps if strides is None else strides, False, {})

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (self.storage, *self.arguments)


def safetensors(path, tensors, length=0, **changes):
    """Writes a .safetensors file; its header is filled up to a length."""
    header, at, parts = {"__metadata__": {"format": "pt"}}, 0, []
    for name, array in tensors.items():
        kind = {"f": "F32", "i": "I64"}.get(array.dtype.kind)
        entry = {"dtype": kind, "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        header[name] = entry | changes
        parts.append(array.tobytes())
        at += array.nbytes
    text = json.dumps(header).encode().ljust(length)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))
    return path


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


class Code(bytes):
    """Instructions of a pickle."""


def code(value) -> Code:
    """The instructions that make a value; `Code` within it stands for itself."""
    match value:
        case Code():
            return value
        case bool() | None:
            return Code({True: b"\x88", False: b"\x89", None: b"N"}[value])
        case int():
            number = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return Code(b"\x8a" + bytes([len(number)]) + number)
        case str():
            return Code(b"X" + struct.pack("<I", len(value.encode())) + value.encode())
        case tuple():
            return Code(b"(" + b"".join(map(code, value)) + b"t")
        case list():
            return Code(b"](" + b"".join(map(code, value)) + b"e")
        case dict():
            items = (code(part) for item in value.items() for part in item)
            return Code(b"}(" + b"".join(items) + b"u")
    raise TypeError(value)


def storage(key="0", count=4, kind="FloatStorage", view=()) -> Code:
    """The instructions that name a storage."""
    kind = Code(b"ctorch\n" + kind.encode() + b"\n")
    return Code(code(("storage", kind, key, "cpu", count, *view)) + b"Q")


def tensor(where=None, offset=0, shape=(4,), strides=(1,)) -> Code:
    """The instructions that make a tensor."""
    arguments = code((where or storage(), offset, shape, strides, False, {}))
    return Code(b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R")


NUMBERS = np.arange(4, dtype=np.float32)


def zipped(path, value, storages=None, **entries):
    """Writes a file as torch.save does since 1.6, around the instructions for a value."""
    storages = {"0": NUMBERS.tobytes()} if storages is None else storages
    with zipfile.ZipFile(path, "w", **entries) as archive:
        archive.writestr("weights/data.pkl", b"\x80\x02" + code(value) + b".")
        for key, content in storages.items():
            archive.writestr(f"weights/data/{key}", content)
    return path


def legacy(path, value, storages=None, keys=None):
    """The same as torch.save did before; a storage's content begins with its count."""
    content = struct.pack("<q", NUMBERS.size) + NUMBERS.tobytes()
    storages = {"0": content} if storages is None else storages
    head = [files._LEGACY_MAGIC, 1001, {"little_endian": True}]
    parts = [*head, value, list(storages) if keys is None else keys]
    pickled = b"".join(b"\x80\x02" + code(part) + b"." for part in parts)
    path.write_bytes(pickled + b"".join(storages.values()))
    return path


FORMS = {"zip": zipped, "legacy": legacy}
