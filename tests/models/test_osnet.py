"""OSNet against torchreid's on the same weights, which go through files and their reader."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.models import norms
from market_jax.models.backbones import osnet
from market_jax.weights import namings, pretrained
from tests.models.golden import FIRST, WEIGHTS, checksum, fill, small_images
from tests.models.test_backbones import shapes_in_torch
from tests.weights.test_pretrained import safetensors

# of torchreid 0.2.5 under PyTorch 2.13, by golden.py: parameters without the classifier, and the
# checksum of all names and shapes
SIZES = {
    "osnet_x1_0": (2_169_508, 3884975663),
    "osnet_x0_75": (1_285_754, 591285342),
    "osnet_x0_5": (630_034, 1230749303),
    "osnet_x0_25": (201_864, 1511869144),
    "osnet_ibn_x1_0": (2_170_532, 2353527593),
    "osnet_ain_x1_0": (2_169_508, 3113480758),
    "osnet_ain_x0_75": (1_285_754, 3264261855),
    "osnet_ain_x0_5": (630_034, 1509253735),
    "osnet_ain_x0_25": (201_864, 3432599117),
}
# of the same: the first values and the deviation of the embedding of two images, and of the
# gradients of their sum by WEIGHTS, with respect to the images and to the first kernel
GOLDEN = {
    "osnet_x0_25": (
        ([25.3722, 9.25565, 0, 14.2115, 5.07796, 6.67365], 13.3532),
        ([-0.180842, -0.219412, 0.455789, -0.158186, -0.0255042, -1.07952], 1.27928),
        ([-3.58764, -5.0732, -15.3401, 5.14065, 9.29911, -0.958228], 9.94268),
    ),
    "osnet_ibn_x1_0": (
        ([3.96069, 0, 0, 0.256156, 1.03514, 0], 1.8869),
        ([-0.0427917, -0.214884, 0.104047, -0.221489, 0.30404, -0.108184], 0.371589),
        ([1.15228, -0.396688, 1.5341, 0.069293, 0.616077, 0.102293], 1.30196),
    ),
    "osnet_ain_x0_25": (
        ([0.418995, 2.50908, 4.03031, 0, 0, 0], 1.71516),
        ([0.115669, 0.111652, -0.105688, 0.0391737, -0.14775, 0.0655659], 0.764065),
        ([-3.21149, -0.402932, 0.148483, 3.00847, -6.12131, -1.15498], 5.18513),
    ),
}


def make(name):
    """(model, the naming of its files)."""
    words = name.split("_", 1)[1].replace("_x", "x").partition("x")
    norm, width = words[0] or "none", float(words[2].replace("_", "."))
    return osnet.Model(width, norm), "torchreid" + ", OSNet-AIN" * (norm == "ain")


@functools.cache
def describe(model):
    return jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 64, 32, 3), np.float32))


@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_names_are_torchreids(name):
    model, naming = make(name)
    variables = describe(model)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    shapes = shapes_in_torch(variables, osnet.TORCH_NAMES[naming])
    classifier = {"classifier.weight": (1000, 512), "classifier.bias": (1000,)}
    assert (parameters, checksum(shapes | classifier)) == SIZES[name], "not torchreid's network"


@pytest.mark.parametrize("naming", osnet.TORCH_NAMES)
def test_the_head_of_published_weights_is_the_classifier(naming):
    path = ["head_imagenet", "kernel"]
    assert namings.name_of(path, osnet.TORCH_NAMES[naming]) == "classifier.weight"


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_embedding_and_gradients(name, tmp_path):
    model, naming = make(name)
    template = describe(model)
    tensors = fill(shapes_in_torch(template, osnet.TORCH_NAMES[naming]))
    tensors["classifier.weight"] = np.zeros((751, 512), np.float32)
    path = safetensors(tmp_path / "w.safetensors", {f"module.{k}": v for k, v in tensors.items()})
    variables, unused = pretrained.load(path, template, osnet.TORCH_NAMES)
    assert unused == ["module.classifier.weight"]

    (first,) = (x for x in jax.tree.leaves(variables["params"]["conv1"]) if x.ndim == 4)

    def weigh(image, kernel, variables):
        given = jax.tree.map(lambda x: kernel if x.shape == kernel.shape else x, variables)
        found = model.apply(given, image)["embedding"]
        return jnp.sum(found * WEIGHTS), found

    run = jax.jit(jax.grad(weigh, argnums=(0, 1), has_aux=True))
    grads, embedding = run(small_images(), first, variables)
    for found, (values, deviation) in zip((embedding, *grads), GOLDEN[name], strict=True):
        said = "not what torchreid's network has with these weights"
        near = {"rtol": 1e-4, "atol": 1e-4 * deviation, "err_msg": said}
        np.testing.assert_allclose(np.ravel(found)[:FIRST], values, **near)
        assert np.std(found) == pytest.approx(deviation, rel=1e-4), said


def test_without_the_dense_layer_the_pooled_map_is_the_feature():
    """As in fast-reid, whose files have no dense layer; torchreid's may then be read too."""
    model = osnet.Model(0.25, dense=False, classes={"pid": 5})
    x = np.zeros((2, 64, 32, 3), np.float32)
    outputs, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    assert {name: value.shape for name, value in outputs.items()} == {
        "stage1": (2, 16, 8, 64),
        "stage2": (2, 8, 4, 96),
        "stage3": (2, 4, 2, 128),
        "map": (2, 4, 2, 128),
        "feature": (2, 128),
        "embedding": (2, 128),
        "pid": (2, 5),
    }
    with_it = describe(model.clone(dense=True, classes=None))["params"]
    assert with_it.keys() - variables["params"].keys() == {"fc", "fc_bn"}


@pytest.mark.parametrize(
    ("given", "asked", "message"),
    [
        ("osnet_x0_25", "osnet_x0_5", r"tensor conv1.* the model has \("),
        ("osnet_x0_25", "osnet_ibn_x0_25", r"has no tensor conv2\.0\.IN\."),
        ("osnet_ibn_x0_25", "osnet_x0_25", r"has no tensor conv1\.bn\.running_"),
        ("osnet_x0_25", "osnet_ain_x0_25", "has no tensor conv2"),
        ("osnet_ain_x0_25", "osnet_x0_25", "has no tensor conv"),
    ],
)
def test_weights_of_another_osnet_are_refused(given, asked, message, tmp_path):
    model, naming = make(given)
    tensors = fill(shapes_in_torch(describe(model), osnet.TORCH_NAMES[naming]))
    path = safetensors(tmp_path / "w.safetensors", tensors)
    with pytest.raises(InputError, match=rf"w\.safetensors: {message}"):
        pretrained.load(path, describe(make(asked)[0]), osnet.TORCH_NAMES)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_instance_norm_by_hand(dtype):
    x = 5 + np.random.default_rng(0).normal(size=(3, 4, 5, 2)).astype(np.float32)
    module = norms.InstanceNorm(dtype=dtype)
    variables = {"params": {"scale": np.array([2.0, 0.5]), "bias": np.array([1.0, -1.0])}}
    found = module.apply(variables, jnp.asarray(x, dtype))
    assert found.dtype == dtype
    given = np.asarray(jnp.asarray(x, dtype), np.float32)
    mean, variance = given.mean(axis=(1, 2), keepdims=True), given.var(axis=(1, 2), keepdims=True)
    expected = (given - mean) / np.sqrt(variance + 1e-5) * [2, 0.5] + [1, -1]
    error = 1e-5 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, atol=error)


def test_instance_norms_gradients_are_those_of_its_formula():
    x = 3 + np.random.default_rng(0).normal(size=(2, 3, 4, 2)).astype(np.float32)
    params = {"scale": np.float32([2, 0.5]), "bias": np.float32([1, -1])}

    def by_formula(params, x):
        mean, variance = x.mean(axis=(1, 2), keepdims=True), x.var(axis=(1, 2), keepdims=True)
        return (x - mean) / jnp.sqrt(variance + 1e-5) * params["scale"] + params["bias"]

    def gradients(run):
        return jax.grad(lambda *given: jnp.sum(jnp.sin(run(*given))), argnums=(0, 1))(params, x)

    found = gradients(lambda params, x: norms.InstanceNorm().apply({"params": params}, x))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, gradients(by_formula)
    )


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (osnet.Model(0.25), (12, 64), "an image of 12x64 is too small; each side must be 13"),
        (osnet.Model(0.25, "ain"), (16, 16), "a map of 1x1 cannot be normalised"),
    ],
)
def test_a_picture_that_is_too_small_is_refused(model, size, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))
