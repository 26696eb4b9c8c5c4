"""StableHLO: what is written is what is read, for any number of images and all platforms."""

import re

import jax
import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.export import checking, stablehlo
from market_jax.models import apr
from market_jax.models.backbones import resnet
from tests.export import networks

SIZE = (64, 32)
# XLA's own, which check and carry the number of images
KNOWN = {"shape_assertion", "stablehlo.dynamic_reduce_window"}


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setitem(resnet._DEPTHS, 18, ((1, 1, 1, 1), False))
    return apr.Model(networks.CLASSES, resnet.Model(18), identities=3)


def test_a_network_is_the_same_as_stablehlo(model, tmp_path):
    variables, given = networks.prepare(model, SIZE), networks.images(4, SIZE)
    path = tmp_path / "x.stablehlo"
    function = networks.function(model, variables, flip=True)
    stablehlo.write(path, function, SIZE)
    expected = networks.expected(model, variables, given, flip=True)
    checking.check("x", stablehlo.load(path), given, expected)
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    calls = set(re.findall(r"custom_call @([\w.]+)", exported.mlir_module()))
    assert calls <= KNOWN, "what only this package has would be missing elsewhere"


def test_a_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "x.stablehlo"
    with pytest.raises(InputError, match="there is no such file"):
        stablehlo.load(path)
    for content in (b"", b"nothing", np.arange(99).tobytes()):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.stablehlo: is no function that this JAX has"):
            stablehlo.load(path)
