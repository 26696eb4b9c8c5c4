"""Convolutions in int8: near the network, smaller, and still for any number of images."""

import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.export import checking, onnx, quantize
from market_jax.models.backbones import resnet
from tests.export import networks

SIZE = (64, 32)


def test_a_quantised_network_is_near_the_network(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(resnet._DEPTHS, 18, ((1, 1, 1, 1), False))
    model = resnet.Model(18)
    function = networks.function(model, networks.prepare(model, SIZE))
    path = tmp_path / "x.onnx"
    quantize.write(path, function, SIZE, networks.images(9, SIZE), {"name": "x"})
    exact = onnx.make(function, SIZE)
    assert len(path.read_bytes()) < 0.3 * len(exact)
    given = networks.images(4, SIZE, seed=1)
    found, expected = (
        checking.run(run, given)["embedding"]
        for run in (onnx.load(path), onnx.run_content(exact, "exact"))
    )
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = np.sum(found * expected, axis=1) / lengths
    assert cosines.min() > 0.99
    assert not np.array_equal(found, expected)


def test_without_an_image_nothing_is_quantised():
    with pytest.raises(InputError, match="no image is given to the quantiser"):
        quantize.make(b"", networks.images(0, SIZE))
