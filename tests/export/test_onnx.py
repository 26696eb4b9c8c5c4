"""Functions of JAX as graphs of ONNX: each operation by itself, and what cannot be written."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from market_jax.errors import InputError
from market_jax.export import checking, onnx
from market_jax.export.graph import Graph
from tests.export import networks

SIZE = (6, 4)
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(3, 2, 3, 6)).astype(np.float32)
DENSE = RNG.normal(size=(3, 5)).astype(np.float32)
ROWS = RNG.normal(size=(2, 6)).astype(np.float32)
LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolve(x, weights=WEIGHTS, **settings):
    settings = {"window_strides": (2, 1), "padding": ((1, 0), (0, 1))} | settings
    return lax.conv_general_dilated(x, weights, dimension_numbers=LAYOUT, **settings)


def windows(function, start, x):
    sides = ((0, 0), (1, 1), (1, 0), (0, 0))
    return lax.reduce_window(x, start, function, (1, 3, 2, 1), (1, 2, 1, 1), sides)


FUNCTIONS = {
    "a bias, ReLU6 and what is beside it": lambda x: (
        jax.nn.relu6(convolve(x) + jnp.arange(6.0) - 3) + convolve(x)
    ),
    "depthwise, dilated": lambda x: convolve(
        x,
        WEIGHTS[:, :, :1],
        feature_group_count=3,
        rhs_dilation=(2, 1),
        window_strides=(1, 1),
        padding=((2, 2), (0, 0)),
    ),
    "channels first": lambda x: lax.conv_general_dilated(
        x.transpose(0, 3, 1, 2), WEIGHTS.transpose(3, 2, 0, 1), (1, 1), "SAME"
    ),
    "weights that are no constant": lambda x: convolve(x, WEIGHTS + 0 * jnp.sum(x[:1])),
    "pools": lambda x: windows(lax.max, -jnp.inf, x) - windows(lax.add, 0.0, x),
    "pool of a convolution": lambda x: windows(lax.max, -jnp.inf, convolve(x)),
    "means over windows": lambda x: jnp.mean(convolve(x).reshape(-1, 3, 1, 2, 2, 6), axis=(2, 4)),
    "softmax over places": lambda x: jax.nn.softmax(convolve(x), axis=(1, 2)),
    "log-softmax": lambda x: jax.nn.log_softmax(x.reshape(x.shape[0], -1)),
    "dense": lambda x: jnp.tanh(x @ DENSE + 1),
    "dense on rows": lambda x: jnp.einsum("sh,nhwc->snc", ROWS, x).transpose(1, 0, 2),
    "cells": lambda x: jnp.einsum("nhwc,ph->ncpw", convolve(x), ROWS[:, :3]).reshape(
        x.shape[0], -1
    ),
    "products of places": lambda x: jnp.einsum("nhwi,nhwj->nij", x, x[..., :2]),
    "products of rows": lambda x: jnp.einsum("nhwi,nhvi->nhwv", x, x),
    "sum of everything": lambda x: jnp.einsum("nhwi,nhwi->n", x, x),
    "larger": lambda x: jax.image.resize(convolve(x), (x.shape[0], 5, 8, 6), "linear"),
    "parts": lambda x: jnp.concatenate([x[:, 1], x[:, -1], x[:, 2:4].sum(axis=1)], axis=1),
    "steps": lambda x: lax.slice_in_dim(convolve(x), 0, 4, 2, axis=2),
    "split": lambda x: jnp.split(convolve(x), 3, axis=-1)[1] * jnp.split(x, 2, axis=1)[0][..., :1],
    "picked rows": lambda x: x[:, jnp.array([3, 1])],
    "mirror": lambda x: convolve(x)[:, :, ::-1] + lax.rev(convolve(x), (1, 2)),
    "padded": lambda x: jnp.pad(convolve(x), ((0, 0), (1, 0), (0, 2), (0, 0)), constant_values=3),
    "stacked": lambda x: jnp.stack([jnp.zeros_like(x), x], axis=-1).max(axis=(1, 2)),
    "repeated": lambda x: jnp.broadcast_to(jnp.arange(4.0), (x.shape[0], 4)),
    "repeated and read": lambda x: jnp.concatenate(
        [jnp.broadcast_to(x.mean(axis=1, keepdims=True), x.shape), x], axis=-1
    ),
    "powers": lambda x: jnp.maximum(x, 1e-6) ** jnp.array([3.0]) + x**3 - x**2 + x**-1,
    "roots": lambda x: lax.rsqrt(x + 1) + jnp.sqrt(x) + jnp.log(x + 1) - jnp.exp(-x),
    "gelu": lambda x: jax.nn.gelu(x) + jax.nn.gelu(x - 1, approximate=False) + jax.nn.sigmoid(x),
    "choices": lambda x: (
        jnp.where((x > 0.3) & ~(x >= 0.9) | (x == 0), x, -x)
        + jnp.clip(x, 0.2, 0.5)
        + jax.nn.leaky_relu(x - 0.5)
        + jnp.minimum(x, 0.4)
        + (x != 1)
        + (x < 0.1)
        + (x <= 0.6)
    ),
    "integers": lambda x: (x * 9).astype(jnp.int32).max(axis=(1, 2)).astype(jnp.float32),
    "layer norm": lambda x: (
        (x - x.mean(axis=-1, keepdims=True)) / jnp.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
    ),
    "rounded": lambda x: jnp.floor(4 * x) + jnp.ceil(3 * x) + jnp.sign(x - 0.5) + jnp.abs(x - 1),
    "called": lambda x: jax.checkpoint(jax.jit(lambda y: lax.stop_gradient(2 * y)))(x),
    "nothing": lambda x: x,
}


def embedding(function):
    """uint8 images -> {"embedding": what a function of images in [0, 1] returns}."""
    return lambda images: {"embedding": function((images.astype(jnp.float32) + 1) / 256)}


def write_and_run(function, given, path):
    onnx.write(path, function, SIZE)
    return checking.run(onnx.load(path), given)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_operation_is_the_same_as_onnx(name, tmp_path):
    pytest.importorskip("onnxruntime")
    given, function = networks.images(5, SIZE), embedding(FUNCTIONS[name])
    expected = jax.device_get(function(given))
    assert expected["embedding"].size
    found = write_and_run(function, given, tmp_path / "x.onnx")
    assert checking.largest_difference(expected, found) < 1e-5


def test_only_what_an_output_needs_must_be_possible(tmp_path):
    pytest.importorskip("onnxruntime")

    @jax.jit
    def both(x):
        return x.sum(axis=(1, 2)), jnp.cumsum(x, axis=1)

    given = networks.images(5, SIZE)
    function = embedding(lambda x: both(x)[0])
    found = write_and_run(function, given, tmp_path / "x.onnx")
    assert checking.largest_difference(jax.device_get(function(given)), found) < 1e-5


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: jnp.cumsum(x, axis=1), "computes 'cumsum', an operation of JAX for which"),
        (lambda x: lax.scan(lambda c, _: (c * 2, 0), x, length=3)[0], "computes 'scan'"),
        (lambda x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c * 2, x), "computes 'while'"),
        (lambda x: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x), r"decides by its numbers .*cond"),
        (lambda x: jnp.sin(x), "'sin', an operation .*--to=stablehlo and --to=saved_model"),
        (lambda x: x.max(axis=0)[(x.max() < 2).astype(jnp.int32)[None]], "places that it computes"),
        (lambda x: x + x.shape[0], "computes 'dim_as_value'"),
        (lambda x: convolve(x, lhs_dilation=(2, 2)), "a transposed convolution with strides"),
        (lambda x: convolve(x, padding=((-1, 0), (0, 0))), "a convolution that cuts its map"),
        (lambda x: lax.pad(x, 0.0, ((0, 0, 0), (-1, 0, 0), (0, 0, 0), (0, 0, 0))), "pads an array"),
        (lambda x: (x > 0).astype(jnp.int32) & 1, "'and' of the bits of integers"),
        (lambda x: jnp.broadcast_to(1.0, (2 * x.shape[0],)), r"an array with 2\*batch rows"),
        (lambda x: x[1:], "a part of an array .* depends on the number of images"),
        (lambda x: jnp.zeros((len(x), 2)), "cannot be exported for any number of images"),
    ],
)
def test_what_cannot_be_written_is_named(function, message, tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(InputError, match=message):
        onnx.write(tmp_path / "x.onnx", embedding(function), SIZE)
    assert not list(tmp_path.iterdir())


def test_what_is_there_twice_is_written_once():
    package = pytest.importorskip("onnx")
    weights = RNG.normal(size=(3, 4000)).astype(np.float32)
    function = embedding(lambda x: x @ weights + (1 - x) @ jnp.array(weights))
    content = onnx.make(function, SIZE, {"labels": '{"age": ["young", "old"]}'})
    assert 48_000 < len(content) < 60_000
    model = package.load_from_string(content)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["batch", 6, 4, 3]
    assert {p.key: p.value for p in model.metadata_props} == {"labels": '{"age": ["young", "old"]}'}
    assert [opset.version for opset in model.opset_import] == [onnx.OPSET]


def test_a_node_is_added_once():
    graph = Graph("images", "batch")
    first, second = (graph.add("Transpose", "images", perm=(0, 3, 1, 2)) for _ in range(2))
    assert first == second
    assert graph.constant(np.zeros(3)) == graph.constant(np.zeros(3))
    assert graph.constant(np.zeros(3)) != graph.constant(np.zeros(3, np.float32))
    assert len(graph.nodes) == 1


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = r'needs the package onnx: pip install "market_jax\[onnx\]"'
    with pytest.raises(InputError, match=message):
        onnx.write(tmp_path / "x.onnx", embedding(lambda x: x), SIZE)
    (tmp_path / "x.onnx").write_bytes(b"")
    with pytest.raises(InputError, match="needs the package onnxruntime: pip install"):
        onnx.load(tmp_path / "x.onnx")


def test_a_file_that_is_none_is_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    path = tmp_path / "x.onnx"
    with pytest.raises(InputError, match="there is no such file"):
        onnx.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"x\.onnx: is nothing that ONNX Runtime can run"):
        onnx.load(path)


def test_a_difference_is_told():
    one = {"a": np.array([[1.0, 2.0], [3.0, 4.0]])}
    other = {"a": one["a"] + np.array([[0, 0.1], [0, 0]])}
    assert checking.largest_difference(one, other) == pytest.approx(0.025)
    with pytest.raises(InputError, match=r"x: its outputs differ .* by 2\.5e-02 .* at most 1e-04"):
        checking.check("x", lambda rows: {"a": other["a"][rows]}, np.arange(2), one)
    with pytest.raises(InputError, match=r"the file returns .*'b'"):
        checking.largest_difference(one, {"b": one["a"]})
    broken = {"a": np.full((2, 2), np.nan)}
    with pytest.raises(InputError, match="by nan"):
        checking.check("x", lambda rows: {"a": broken["a"][rows]}, np.arange(2), one)


def test_batches_of_several_sizes_are_tried():
    sizes = []

    def function(images):
        sizes.append(len(images))
        return {"a": images}

    images = np.arange(9)
    np.testing.assert_array_equal(checking.run(function, images)["a"], images)
    assert sizes == [1, 3, 3, 2]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: {"feature": jnp.mean(x, axis=(1, 2))}, "returns {'feature'.*return 'embedding'"),
        (lambda x: {"embedding": jnp.mean(x, axis=1)}, r"it must return 'embedding', \[N, D\]"),
        (lambda x: {"embedding": jnp.mean(x, axis=(1, 2))}, None),
    ],
)
def test_only_what_describes_pictures_is_an_embedder(tmp_path, function, message):
    pytest.importorskip("onnxruntime")
    path = tmp_path / "x.onnx"
    onnx.write(path, lambda x: function(x.astype(jnp.float32)), SIZE)
    if message:
        with pytest.raises(InputError, match=message):
            onnx.embedder(path)
    else:
        images = RNG.integers(0, 256, (3, *SIZE, 3), np.uint8)
        expected = images.mean(axis=(1, 2))
        np.testing.assert_allclose(onnx.embedder(path)(images), expected, rtol=1e-5)


def test_other_programs_files_are_refused_by_what_they_take(tmp_path):
    pytest.importorskip("onnxruntime")
    package, path = onnx.optional("onnx"), tmp_path / "x.onnx"
    make, kind = package.helper.make_tensor_value_info, package.TensorProto.FLOAT
    graph = package.helper.make_graph(
        [package.helper.make_node("Identity", ["input"], ["embedding"])],
        "other",
        [make("input", kind, ["n", 3, 6, 4])],
        [make("embedding", kind, ["n", 3, 6, 4])],
    )
    opset = package.helper.make_opsetid("", onnx.OPSET)
    model = package.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"takes \{'input': .*it must be 'images', uint8 \[N, H"):
        onnx.embedder(path)
