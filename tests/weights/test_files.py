"""Files of tensors: those that people have are read, broken and hostile ones refused."""

import collections
import pickle
import struct

import ml_dtypes
import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.weights import files
from tests.weights.makers import (
    FORMS,
    NUMBERS,
    TENSORS,
    Code,
    Tensor,
    assert_same,
    code,
    safetensors,
    storage,
    tensor,
)


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize(
    "key",
    [
        *(None, "state_dict", "model_state_dict", "model_state", "model", "net", "network"),
        *files.AVERAGED,
    ],
)
def test_reads_what_pytorch_saves(save, form, key):
    state = collections.OrderedDict((name, Tensor(value)) for name, value in TENSORS.items())
    state._metadata = {"": {"version": 1}}  # as a module's state dict has it
    assert_same(files.read(save({key: state} if key else state, form)), TENSORS)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_view_of_a_storage(save, form):
    whole = np.arange(12, dtype=np.float32)
    path = save({"t": Tensor(whole, (4, 2), (1, 4), offset=2)}, form)
    expected = np.array([[2, 6], [3, 7], [4, 8], [5, 9]], np.float32)
    np.testing.assert_array_equal(files.read(path)["t"], expected)


def test_reads_safetensors(tmp_path):
    assert_same(files.read(safetensors(tmp_path / "w.safetensors", TENSORS)), TENSORS)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float64, np.uint8, np.bool_])
def test_kinds_of_numbers_of_safetensors(tmp_path, kind):
    tensors = {"a": np.array([[0, 1], [1, 0], [1, 1]], kind), "b": np.array(1, kind)}
    names = {"float16": "F16", "bfloat16": "BF16", "float64": "F64", "uint8": "U8", "bool": "BOOL"}
    path = tmp_path / "w.safetensors"
    assert_same(files.read(safetensors(path, tensors, dtype=names[np.dtype(kind).name])), tensors)


def test_the_content_tells_the_format_not_the_name(save, tmp_path):
    state = {name: Tensor(value) for name, value in TENSORS.items()}
    for form in ("zip", "legacy"):
        assert_same(files.read(save(state, form, f"{form}.safetensors")), TENSORS)
    path = tmp_path / "w.pth"
    assert_same(files.read(safetensors(path, TENSORS)), TENSORS)
    for length in (0x180, 0x280):  # begins as a pickle does
        safetensors(path, TENSORS, length=length)
        assert path.read_bytes()[0] == 0x80
        assert_same(files.read(path), TENSORS)


@pytest.mark.parametrize("form", FORMS)
def test_a_training_checkpoint(form, tmp_path):
    """Its optimizer has storages too, some tensors share theirs, and Python 2 has written it."""
    pairs = [["a", tensor()], ["b", tensor(offset=1, shape=(1, 3), strides=(9, 1))]]
    state = Code(b"ccollections\nOrderedDict\n" + code((pairs,)) + b"R}U\x01vK\x01sb")
    mean = tensor(storage("mean"))
    value = {"epoch": 3, "net": state, "optimizer": {"state": {0: {"mean": mean}}, "lr": [None]}}
    content = (struct.pack("<q", 4) if form == "legacy" else b"") + NUMBERS.tobytes()
    path = FORMS[form](tmp_path / "w.pth", value, {"0": content, "mean": content})
    assert_same(files.read(path), {"a": NUMBERS, "b": NUMBERS[None, 1:]})


@pytest.mark.parametrize("key", files.AVERAGED)
def test_averaged_weights_are_read_rather_than_those_beside_them(key, save, logged):
    state, averaged = {"a": Tensor(NUMBERS)}, {"a": Tensor(NUMBERS + 1), "n": Tensor(NUMBERS)}
    path = save({"state_dict": state, "model": state, key: averaged}, "zip")
    assert_same(files.read(path), {"a": NUMBERS + 1, "n": NUMBERS})
    assert logged == [f"{path}: the averaged weights are read, {key!r}"]
    path = save({"state_dict": state, key: {"decay": 0.999}}, "zip")
    assert_same(files.read(path), {"a": NUMBERS})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_a_checkpoint_of_torchreid(form, module, tmp_path):
    """It keeps the best figure as NumPy's number, and a schedule its milestones as a counter."""
    kind = Code(b"cnumpy\ndtype\n" + code(("f8", 0, 1)) + b"R" + code((3, "<", None)) + b"b")
    content = Code(b"c_codecs\nencode\n" + code(("\x9a", "latin1")) + b"R")
    figure = Code(b"c" + module + b"\nscalar\n" + code((kind, content)) + b"R")
    milestones = Code(b"ccollections\nCounter\n" + code(({"a": 1},)) + b"R")
    rest = {"rank1": figure, "scheduler": {"milestones": milestones}}
    assert_same(
        files.read(FORMS[form](tmp_path / "w.pth", {"state_dict": {"a": tensor()}} | rest)),
        {"a": NUMBERS},
    )
    path = FORMS[form](tmp_path / "w.pth", {"state_dict": {"a": tensor(), "rank1": figure}})
    with pytest.raises(InputError, match=r"w.pth: entry 'rank1' is no tensor"):
        files.read(path)


@pytest.mark.parametrize("form", FORMS)
def test_half_precision(form, tmp_path):
    values = NUMBERS.astype(np.float16)
    count = struct.pack("<q", 4) if form == "legacy" else b""
    value = {"a": tensor(storage(kind="HalfStorage"))}
    path = FORMS[form](tmp_path / "w.pth", value, {"0": count + values.tobytes()})
    assert_same(files.read(path), {"a": values})


class Call:
    """A pickle that writes a file when it is loaded by `pickle.load`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_pickle_that_calls_a_function_is_refused(save, form, tmp_path):
    path = save({"a": Call(tmp_path / "owned")}, form)
    with pytest.raises(InputError, match=r"weights.pth: it asks for (_)?io.open; only tensors"):
        files.read(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 3}, "entry 'a' is no tensor"),
        ({}, "holds no state dict"),
        ([1], "holds no state dict"),
        ({"t": Tensor(TENSORS["a.bias"], (3,), (1,))}, "tensor t (lies beyond|takes elements)"),
        ({"t": Tensor(TENSORS["a.bias"], (1,), (1,), offset=2)}, "tensor t lies beyond the end"),
        ({"t": Tensor(TENSORS["a.bias"], (2**40,), (0,))}, "tensor t takes elements of its"),
        ({"t": Tensor(TENSORS["a.bias"], (2,), (-1,), offset=1)}, "tensor t lies beyond"),
    ],
)
def test_what_is_no_state_dict_is_refused(save, form, value, message):
    with pytest.raises(InputError, match=rf"weights.pth: .*{message}"):
        files.read(save(value, form))


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_file_cut_anywhere_is_named(save, form, tmp_path):
    path = tmp_path / "weights.safetensors"
    if form == "safetensors":
        safetensors(path, TENSORS)
    else:
        path = save({name: Tensor(value) for name, value in TENSORS.items()}, form)
    content = path.read_bytes()
    for end in range(0, len(content), 7):
        path.write_bytes(content[:end])
        with pytest.raises(InputError, match=f"{path.name}: "):
            files.read(path)


def test_files_that_are_something_else(tmp_path):
    with pytest.raises(InputError, match=r"no.pth: there is no such file"):
        files.read(tmp_path / "no.pth")
    path = safetensors(tmp_path / "w.safetensors", {"a": TENSORS["n"]}, dtype="F8_E4M3", shape=[8])
    with pytest.raises(InputError, match=r"w.safetensors: tensor a is F8_E4M3"):
        files.read(path)
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InputError, match=r"neither .safetensors nor a file of torch.save"):
        files.read(tmp_path / "w.pth")
