"""Files made to run code, to hang, to crash or to take all memory: refused, and soon."""

import os
import struct
import time
import warnings
import zipfile
from pathlib import Path

import pytest

from market_jax.errors import InputError
from market_jax.weights import files, pickles
from tests.weights.makers import (
    FORMS,
    NUMBERS,
    TENSORS,
    Code,
    code,
    legacy,
    safetensors,
    storage,
    tensor,
    zipped,
)

SECONDS = 10  # of the processor; the longest, a million instructions, takes around two


def refuse(path, message="."):
    """Reads a file, which must be refused under its name, in bounded time."""
    start = time.process_time()
    with pytest.raises(InputError, match=message) as caught:
        files.read(path)
    assert time.process_time() - start < SECONDS
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 1000


def twins(times):
    """Tuples of twice the one before: 2 ** times values in a few bytes."""
    return Code(b")q\0" + b"0h\0h\0\x86q\0" * times)


MANY = Code(b"](" + b"(X\x01\x00\x00\x00aNt" * 100 + b"e\x85q\x01")  # arguments: a hundred pairs
PICKLES = {
    "deep tuples": (Code(b")" + b"\x85" * 200_000), "nests containers"),
    "deep lists": (Code(b"]" * 200_000 + b"a" * 199_999), "nests containers"),
    "deep dicts": (Code(b"}X\x01\0\0\0a" * 9999 + b"N" + b"s" * 9999), "nests containers"),
    "deep by the memo": (Code(b")q\0" + b"0h\0\x85q\0" * 9999), "nests containers"),
    "twins as a value": ({"a": twins(40), "b": tensor()}, "entry 'a' is no tensor"),
    "twins, too deep": (twins(100), "nests containers"),
    "twins as a key": (Code(b"}" + twins(40) + b"Ns"), "a key of a dict"),
    "twins as a storage's key": (tensor(storage(twins(40))), "no name or no size"),
    "twins as a storage's count": (tensor(storage("0", twins(40))), "no name or no size"),
    "twins as a storage": (Code(twins(40) + b"Q"), "describes a storage"),
    "twins as a shape": (tensor(shape=twins(40)), "no sizes|not a stride"),
    "twins as a size": (tensor(shape=(twins(40),)), "no sizes"),
    "a list in itself": (Code(b"]q\0h\0a"), "another one, or itself"),
    "a dict in itself": (Code(b"}q\0X\x01\0\0\0ah\0s"), "another one, or itself"),
    "a list in its own tuple": (Code(b"]q\0h\0\x85a"), "another one, or itself"),
    "a list that grows in another": (Code(b"]q\0\x850h\0Na"), "another one, or itself"),
    "a huge memo": (Code(b"}r" + struct.pack("<I", 2**31)), "keeps a value under"),
    "a memo without a value": (Code(b"j" + struct.pack("<I", 2**31)), "has not kept"),
    "4 GiB of text": (Code(b"X\xff\xff\xff\xff"), "broken"),
    "2**62 bytes of text": (Code(b"\x8d" + struct.pack("<Q", 2**62)), "broken|BINUNICODE8"),
    "2**62 bytes": (Code(b"\x8e" + struct.pack("<Q", 2**62)), "broken|BINBYTES8"),
    "a byte array": (Code(b"\x96" + struct.pack("<Q", 2**62)), "broken|BYTEARRAY8"),
    "a long number": (Code(b"\x8b" + struct.pack("<i", 2**31 - 1)), "broken|LONG4"),
    "a number without its end": (Code(b"\x8a\xff"), "broken"),
    "many instructions": (Code(b"N0" * 600_000), "more than 1000000 instructions"),
    "many values": (Code(b"}" * 1_100_000), "more than 1000000 instructions"),
    "many copies": (
        Code(b"ccollections\nOrderedDict\nq\0" + MANY + b"h\0h\x01R0" * 20_000),
        "dicts of more than",
    ),
    "many arguments": (
        Code(b"ccollections\nOrderedDict\n(" + b"N" * 100_000 + b"tR"),
        "other arguments",
    ),
    "a list as a key": (Code(b"}]Ns"), "a key of a dict"),
    "a tuple as a key": (Code(b"})Ns"), "a key of a dict"),
    "none as a key": (Code(b"}NNs"), "a key of a dict"),
    "keys of one hash": ({k * (2**61 - 1): None for k in range(50_000)}, "a key of a dict"),
    "a number as a name": ({1: tensor()}, "no text as its name"),
    "an object": (Code(b"ccollections\nOrderedDict\n)\x81"), "NEWOBJ"),
    "an old object": (Code(b"(ios\nsystem\n"), "INST"),
    "an extension": (Code(b"\x82\x01"), "EXT1"),
    "a buffer": (Code(b"\x97"), "NEXT_BUFFER"),
    "a function": (Code(b"cos\nsystem\nX\x04\0\0\0true\x85R"), "asks for os.system"),
    "a long function": (Code(b"c" + b"a" * 99_999 + b"\nb\n"), "asks for aaa"),
    "a function of the stack": (Code(b"X\x02\0\0\0osX\x06\0\0\0system\x93"), "asks for os.system"),
    "a function of numbers": (Code(b"NN\x93"), "is no text"),
    "a call of a text": (Code(b"X\x02\0\0\0os)R"), "is no function"),
    "a call of a storage": (Code(b"ctorch\nFloatStorage\n)R"), "is no function"),
    "a call without a tuple": (Code(b"ccollections\nOrderedDict\nNR"), "other arguments"),
    "pairs that are none": (Code(b"ccollections\nOrderedDict\n" + code(([1],)) + b"R"), "no pairs"),
    "no values": (Code(b"R"), "more values than there are"),
    "values of another group": (Code(b"NN(\x86"), "more values than there are"),
    "two values": (Code(b"NN"), "one value"),
    "an open group": (Code(b"N("), "one value"),
    "a parameter of nothing": (
        Code(b"ctorch._utils\n_rebuild_parameter\n(Ntq\0R"),
        "a parameter is no tensor",
    ),
    "a tensor of nothing": ({"a": tensor(code(None))}, "no storage"),
    "a view of a storage": ({"a": tensor(storage(view=(("1", 0, 4),)))}, "a view of a storage"),
    "a negative count": ({"a": tensor(storage("0", -1))}, "no name or no size"),
    "a huge count": ({"a": tensor(storage("0", 2**61))}, "numbers"),
    "a larger count": ({"a": tensor(storage("0", 5))}, "numbers"),
    "a missing storage": ({"a": tensor(storage("1"))}, "storage"),
    "a long name": ({"a" * 10**6: tensor(offset=1)}, "tensor aaa"),
    "a storage of two kinds": (
        {"a": tensor(), "b": tensor(storage(kind="IntStorage"))},
        "two sizes or kinds",
    ),
    "a storage of two sizes": ({"a": tensor(), "b": tensor(storage("0", 2))}, "two sizes or kinds"),
    "another folder's storage": ({"a": tensor(storage("../data.pkl"))}, "storage"),
    "a negative offset": ({"a": tensor(offset=-1)}, "no sizes"),
    "an offset beyond": ({"a": tensor(offset=1)}, "tensor a lies beyond"),
    "a huge offset": ({"a": tensor(offset=2**70)}, "no sizes"),
    "a negative size": ({"a": tensor(shape=(-4,))}, "no sizes"),
    "a true size": ({"a": tensor(shape=(True,))}, "no sizes"),
    "a size beyond": ({"a": tensor(shape=(5,))}, "tensor a lies beyond"),
    "a huge size": ({"a": tensor(shape=(2**50, 2**50), strides=(0, 0))}, "elements .* twice"),
    "a huge empty size": ({"a": tensor(shape=(0, 2**61), strides=(1, 1))}, "broken"),
    "many axes": ({"a": tensor(shape=(1,) * 99, strides=(1,) * 99)}, "no shape"),
    "a negative stride": ({"a": tensor(offset=3, strides=(-1,))}, "lies beyond"),
    "rows that overlap": ({"a": tensor(shape=(2, 2), strides=(1, 1))}, "elements .* twice"),
    "diagonals that overlap": ({"a": tensor(shape=(2, 2), strides=(2, 2))}, "lies beyond|twice"),
    "more strides than sizes": ({"a": tensor(strides=(4, 1))}, "not a stride per axis"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", PICKLES)
def test_a_hostile_pickle(form, kind, tmp_path):
    value, message = PICKLES[kind]
    refuse(FORMS[form](tmp_path / "w.pth", value), message)


@pytest.mark.parametrize("form", FORMS)
def test_tensors_that_take_a_storage_often(form, tmp_path):
    content = (struct.pack("<q", 1000) if form == "legacy" else b"") + bytes(4000)
    for times in (2, 5000):
        tensors = {str(i): tensor(storage("0", 1000), shape=(1000,)) for i in range(times)}
        path = FORMS[form](tmp_path / "w.pth", tensors, {"0": content})
        if times == 2:
            assert [array.size for array in files.read(path).values()] == [1000, 1000]
        else:
            refuse(path, "more than 2 times the file's size")


def test_a_pickle_too_large(tmp_path):
    text = Code(b"X" + struct.pack("<I", pickles.MOST_BYTES) + bytes(pickles.MOST_BYTES))
    refuse(zipped(tmp_path / "w.pth", {"a": text}), "its pickle has more than")
    refuse(legacy(tmp_path / "w.pth", {"a": text}), "broken")


def rewrite(path, at, value):
    """Overwrites bytes; `at` may name what to look for from the end."""
    content = bytearray(path.read_bytes())
    at = content.rindex(at) if isinstance(at, bytes) else at
    content[at : at + len(value)] = value
    path.write_bytes(content)
    return path


GOOD = {"a": tensor()}
LISTED, END = b"PK\x01\x02", b"PK\x05\x06"


def test_a_zip_that_torch_does_not_write(tmp_path):
    path = tmp_path / "w.pth"
    assert files.read(zipped(path, GOOD))["a"].tolist() == NUMBERS.tolist()
    refuse(zipped(path, GOOD, {"0": bytes(10**6)}, compression=zipfile.ZIP_DEFLATED), "compressed")
    refuse(zipped(path, GOOD, {}), "storage 0 is missing")
    refuse(zipped(path, GOOD, {"0": b"1"}), "storage 0 is missing or has fewer")
    refuse(rewrite(zipped(path, GOOD), LISTED, LISTED + b"\0" * 4 + b"\1"), "encrypted")
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", b"")
        archive.writestr("weights/data.pkl", b"")
    refuse(path, "there twice")
    for names in (("a/data.pkl", "b/data.pkl"), ("a/b/data.pkl",), ()):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("other", bytes(99))
            for name in names:
                archive.writestr(name, b"N.")
        refuse(path, "files data.pkl")


def test_a_zip_with_false_sizes(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    sizes = zipped(path, GOOD).read_bytes().rindex(LISTED) + 20
    refuse(rewrite(path, sizes, struct.pack("<I", 2**32 - 2)), "two sizes")
    refuse(rewrite(path, sizes + 4, struct.pack("<I", 2**32 - 2)), "larger together than the file")
    zipped(path, GOOD)
    refuse(rewrite(path, path.stat().st_size - 10, struct.pack("<I", 2**31)), "list of entries")
    path.write_bytes(zipped(path, GOOD).read_bytes() + bytes(9))
    refuse(path, "does not end as a zip")
    content = zipped(path, GOOD).read_bytes()
    wide = b"PK\x06\x06" + bytes(36) + struct.pack("<QQ", 2**40, 0)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, len(content) - 22, 1)
    path.write_bytes(content[:-22] + wide + locator + content[-22:])
    refuse(path, "list of entries")
    monkeypatch.setattr(files, "_MOST_HEADER", 100)
    refuse(zipped(path, GOOD), "list of entries")


def test_a_legacy_file_with_false_storages(tmp_path):
    path = tmp_path / "w.pth"
    content = NUMBERS.tobytes()
    for count in (-1, -(2**63), 3, 5, 2**62, 2**63 - 1):
        refuse(legacy(path, GOOD, {"0": struct.pack("<q", count) + content}), "more or fewer")
    good = {"0": struct.pack("<q", 4) + content}
    assert files.read(legacy(path, GOOD, good))["a"].tolist() == NUMBERS.tolist()
    refuse(legacy(path, GOOD, {"0": good["0"][:-1]}), "more or fewer")
    refuse(legacy(path, GOOD, good, ["0", "0"]), "there twice")
    refuse(legacy(path, GOOD, good, ["0", 0]), "there twice")
    refuse(legacy(path, GOOD, good, ["1"]), "belongs to no tensor")
    refuse(legacy(path, GOOD, good, []), "lacks 1 storages")
    refuse(legacy(path, GOOD, good, [twins(40)]), "no list of its storages")
    refuse(legacy(path, GOOD, good, {"0": 1}), "no list of its storages")


def entry(shape, start, end, dtype="F32"):
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}'


HEADERS = {
    "no tensor": ("{}", b""),
    "no dict": ("[1]", b""),
    "nested": ('{"a":' * 200_000 + "1" + "}" * 200_000, b""),
    "nested lists": ("[" * 1_000_000, b""),
    "overlap": (f'{{"a":{entry([2], 0, 8)},"b":{entry([1], 4, 8)}}}', bytes(8)),
    "one place twice": (f'{{"a":{entry([1], 0, 4)},"b":{entry([1], 0, 4)}}}', bytes(4)),
    "a gap": (f'{{"a":{entry([1], 0, 4)},"b":{entry([1], 8, 12)}}}', bytes(12)),
    "more at the end": (f'{{"a":{entry([1], 0, 4)}}}', bytes(5)),
    "beyond the end": (f'{{"a":{entry([1], 4, 8)}}}', bytes(4)),
    "backwards": (f'{{"a":{entry([1], 4, 0)}}}', bytes(4)),
    "another size": (f'{{"a":{entry([2], 0, 4)}}}', bytes(4)),
    "a negative size": (f'{{"a":{entry([-1], 0, 4)}}}', bytes(4)),
    "a negative offset": (f'{{"a":{entry([1], -4, 0)}}}', bytes(4)),
    "a huge size": (f'{{"a":{entry([2**62, 8], 0, 4)}}}', bytes(4)),
    "a huge empty size": (f'{{"a":{entry([0, 2**62, 2**62], 0, 0)}}}', b""),
    "many axes": (f'{{"a":{entry([1] * 99, 0, 4)}}}', bytes(4)),
    "a fraction": (f'{{"a":{entry([1.5], 0, 4)}}}', bytes(4)),
    "another kind": (f'{{"a":{entry([1], 0, 4, "F99")}}}', bytes(4)),
    "no text": (b"\xff\xfe{}", b""),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_hostile_safetensors(kind, tmp_path):
    header, content = HEADERS[kind]
    header = header if isinstance(header, bytes) else header.encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + content)
    refuse(path)


def test_a_safetensors_header_of_false_length(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    for length in (0, 1, 3, 2**24 + 1, 2**32, 2**63, 2**64 - 1):
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        refuse(path)
    monkeypatch.setattr(files, "_MOST_HEADER", 100)
    refuse(safetensors(path, TENSORS), "at most 100 are read")


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "w.pth")
    for path in (tmp_path / "w.pth", tmp_path, Path("/dev/zero")):
        refuse(path, "no regular file")
    refuse(tmp_path / "w\0.pth", "no file of tensors")
    refuse(tmp_path / ("w" * 300), "cannot be read")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refuse(tmp_path / "loop", "cannot be read|no file of tensors")


def test_a_file_larger_than_memory(tmp_path):
    path = zipped(tmp_path / "w.pth", GOOD)
    os.truncate(path, 2**40)  # takes no room on the disk
    refuse(path, "files up to 4294967296 are read")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied"), r"cannot be read \(Permission denied\)"),
        (MemoryError(), "takes more memory than there is"),
        (RecursionError("too deep"), "too deep"),
    ],
)
def test_what_the_system_refuses(tmp_path, monkeypatch, error, message):
    def fail(*_):
        raise error

    path = zipped(tmp_path / "w.pth", GOOD)
    monkeypatch.setattr(files, "_read_zip", fail)
    refuse(path, message)
