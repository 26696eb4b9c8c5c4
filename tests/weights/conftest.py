"""Pickles as PyTorch writes them; and a tiny run with its published file."""

import pickle
import struct
import sys
import types
import zipfile

import numpy as np
import pytest
from absl import logging

from market_jax import build
from market_jax.tasks import export
from market_jax.weights import files
from tests.weights.makers import Storage
from tests.weights.networks import as_run, tiny


@pytest.fixture
def logged(monkeypatch):
    """What is logged."""
    lines = []
    monkeypatch.setattr(logging, "info", lambda text, *args: lines.append(text % args))
    return lines


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


@pytest.fixture(scope="package")
def trained(synthetic, tmp_path_factory):
    """A run that was trained on some of the synthetic people."""
    config = tiny()
    config.data.dir = str(synthetic)
    pids = np.unique(build.dataset(config).open("train")["pid"])[:3]
    return as_run(tiny(), tmp_path_factory.mktemp("runs") / "tiny", pids.tolist())


@pytest.fixture(scope="package")
def file(trained, tmp_path_factory):
    """It, exported."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    text = export.run(trained, output=str(path))
    assert f"MB in {path}, its card in {path.with_suffix('.md')}; kernels in float16" in text
    return path
