"""Networks of fast-reid, BoT, IBN-Net, torchreid and timm against those, on the same weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from jax import lax

from market_jax.errors import InputError
from market_jax.kernels import convolution, windows
from market_jax.models import classifier
from market_jax.models.backbones import efficientnet_lite, mobilenet_v2, resnet
from market_jax.weights import namings, pretrained
from tests.models.golden import SMALL, TOP, fill, images
from tests.models.test_backbones import shape_in_torch
from tests.weights.makers import safetensors

# of torchvision 0.29, timm 1.0.31, torchreid 0.2.5 and fastreid 1.4.0 in float64, by golden.py: the
# first features of two images, the deviation of all; mean and deviation of the gradients of their
# root mean square, to images and first kernel; how many numbers a file holds
GOLDEN = {
    "fastreid_ibn18": (
        [24.7793, 10.7651, 14.339, 4.91141, 26.9873, 12.309, 13.558, 4.54291],
        5.43529,
        [4.15713e-06, 0.00639383, 0.00944469, 0.0349836],
        11190848,
    ),
    "fastreid_sbs50": (
        [58.836, 35.9329, 47.2309, 19.3743, 56.599, 31.2825, 44.567, 17.2869],
        38.9747,
        [0.000463935, 0.0356521, 0.0789524, 0.237616],
        23618320,
    ),
    "bot18": (
        [11.8898, 5.17491, 6.52508, 21.3988, 9.96725, 4.23233, 6.07013, 17.433],
        16.608,
        [0.00107709, 0.0129036, 0.0301604, 0.103948],
        11191744,
    ),
    "ibn_b50": (
        [4.05634, 4.18661, 2.58713, 2.27589, 3.14579, 4.34814, 1.53225, 2.93475],
        3.75119,
        [-1.84671e-05, 0.0133913, -0.000467921, 0.0559536],
        23562560,
    ),
    "mobilenet_torchvision_1.0": (
        [0.406167, 0.483921, 3.50944, 0.629483, 0.603174, 0.328811, 3.72271, 0.16111],
        1.07716,
        [-4.80075e-05, 0.00896428, -0.00235092, 0.0608447],
        2257984,
    ),
    "mobilenet_torchreid_1.0": (
        [1.41918, 0.411956, 1.39711, 0.298049, 1.18149, 0.619776, 1.26753, 0.240793],
        0.967959,
        [2.21715e-06, 0.00749798, 0.000151697, 0.046504],
        2259136,
    ),
    "mobilenet_torchvision_1.4": (
        [0.00157825, 0.38346, 0, 0, 0, 0.232712, 0, 0],
        1.03955,
        [7.1693e-06, 0.00687544, 9.61192e-05, 0.035917],
        4363712,
    ),
    "mobilenet_torchreid_1.4": (
        [0.355728, 0.0340155, 1.26603, 0.343044, 0.145753, 0.221808, 1.35269, 0],
        0.981804,
        [4.95906e-05, 0.00634605, 0.00051494, 0.0326971],
        4339248,
    ),
    "mobilenetv2_140": (
        [0.0214537, 0, 0.0265355, 3.09698, 0.0309946, 0, 0, 4.31561],
        1.00101,
        [-3.67483e-05, 0.0062531, 0.000615672, 0.0314066],
        4363712,
    ),
    "tf_efficientnet_lite3": (
        [0, 0.186416, 1.51496, 0.913445, 0, 0.341587, 1.26654, 0.664881],
        1.18542,
        [7.0835e-05, 0.00719073, -0.00131066, 0.043754],
        6992768,
    ),
    "tf_efficientnet_lite4": (
        [0, 1.38325, 1.46313, 0.638177, 0.0582557, 2.26551, 1.12849, 0.840387],
        1.18314,
        [-0.000141117, 0.0133036, 0.000161796, 0.07573],
        11837936,
    ),
}
NECKS = {  # network -> the tensors of its files that are not read, which have values
    "fast-reid": ("heads.weight", "heads.bottleneck.0.bias"),
    "BoT": ("classifier.weight", "bottleneck.bias"),
}
SBS = {"last_stride": 1, "ibn": "a", "stem": "fast-reid"}
POWER = {"non_local": (0, 2, 3, 0), "non_local_width": 1, "pooling": "gem"}
NETWORKS = {  # name -> (backbone, naming, whose file)
    "fastreid_ibn18": (resnet.Model(18, **SBS), "torchvision", "fast-reid"),
    "fastreid_sbs50": (
        resnet.Model(50, **SBS, **POWER),
        "non-local blocks, ResNet-50",
        "fast-reid",
    ),
    "bot18": (resnet.Model(18, last_stride=1, stem="bot"), "torchvision", "BoT"),
    "ibn_b50": (resnet.Model(50, ibn="b"), "torchvision", "backbone"),
    "mobilenet_torchvision_1.0": (mobilenet_v2.Model(), "torchvision", "backbone"),
    "mobilenet_torchvision_1.4": (mobilenet_v2.Model(1.4), "torchvision", "backbone"),
    "mobilenet_torchreid_1.0": (mobilenet_v2.Model(1.0, "torchreid"), "torchreid", "backbone"),
    "mobilenet_torchreid_1.4": (mobilenet_v2.Model(1.4, "torchreid"), "torchreid", "backbone"),
    "mobilenetv2_140": (mobilenet_v2.Model(1.4), "timm", "backbone"),
    "tf_efficientnet_lite3": (efficientnet_lite.Model(3, same_padding=True), "timm", "backbone"),
    "tf_efficientnet_lite4": (efficientnet_lite.Model(4, same_padding=True), "timm", "backbone"),
}
OTHER = "not what the reference's network says with these weights"
MODULES = {m.Model: m for m in (efficientnet_lite, mobilenet_v2, resnet)}


@functools.lru_cache(1)
def network(name):
    """The network, with a BNNeck where its file has one; its shapes, its rules, and the file."""
    backbone, naming, file = NETWORKS[name]
    model = classifier.Model({}, backbone, identities=7 if file in NECKS else 0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *SMALL[1:])))
    rules, sizes = MODULES[type(backbone)].TORCH_NAMES, {}
    for where, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        path = [key.key for key in where][1:]
        path = path[1:] if path[0] == "backbone" else path
        tensor = namings.name_of(path, rules[naming], namings.NETWORKS[file])
        if path[0] == "head_identity":
            tensor = NECKS[file][0]
        assert tensor not in sizes, "two variables have one name"
        sizes[tensor] = shape_in_torch(path, leaf)
    if file in NECKS:
        sizes[NECKS[file][1]] = shapes["params"]["bnneck"]["scale"].shape
    return model, shapes, rules, fill(sizes)


@pytest.mark.parametrize("name", NETWORKS)
def test_features_and_gradients_are_the_references(name, tmp_path, monkeypatch):
    model, shapes, rules, tensors = network(name)
    values, deviation, moments, count = GOLDEN[name]
    assert sum(tensor.size for tensor in tensors.values()) == count
    path = safetensors(tmp_path / "w.safetensors", tensors)
    fresh = jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, np.float32), shapes)
    read = pretrained.begin(fresh, str(path), "a backbone", rules)
    first = [leaf for where, leaf in jax.tree_util.tree_leaves_with_path(read) if is_first(where)]

    def root_mean_square(picture, kernel, read):
        variables = jax.tree_util.tree_map_with_path(
            lambda where, leaf: kernel if is_first(where) else leaf, read
        )
        found = model.apply(variables, picture)["embedding"]
        return jnp.sqrt(jnp.mean(found**2)), found

    near = functools.partial(np.testing.assert_allclose, rtol=1e-4, err_msg=OTHER)
    _, found = jax.jit(root_mean_square)(images(SMALL), *first, read)
    near(found[:, :TOP].ravel(), values, atol=1e-4 * deviation)
    near(np.std(found), deviation)
    model = model.clone(backbone=model.backbone.clone(dtype=np.float64))
    monkeypatch.setattr(lax, "conv_general_dilated", products)
    with jax.enable_x64(True):  # rounding decides some ReLUs, and changes gradients by 1e-3
        given = jax.tree.map(np.float64, (images(SMALL), *first, read))
        gradients, _ = jax.jit(jax.grad(root_mean_square, (0, 1), has_aux=True))(*given)
        gradients = [np.asarray(gradient) for gradient in gradients]
    for gradient, (mean, spread) in zip(gradients, np.reshape(moments, (-1, 2)), strict=True):
        near(gradient.mean(), mean, rtol=1e-5, atol=1e-5 * spread)
        near(gradient.std(), spread, rtol=1e-5)


def products(x, w, window_strides, padding, feature_group_count, **_):
    """A convolution by products of matrices; XLA's own takes minutes in float64."""
    geometry, _ = convolution.describe(
        x.shape[1:3], w.shape[:2], window_strides, padding, groups=feature_group_count
    )
    x = windows.pad(x, geometry.padding, 0)
    parts = windows.cells(x, geometry.window, geometry.strides)
    weights = w.reshape(-1, *w.shape[2:])
    assert feature_group_count in (1, x.shape[-1]), "neither dense nor depthwise"
    times = jnp.matmul if feature_group_count == 1 else jnp.multiply
    return sum(times(part, weight) for part, weight in zip(parts, weights, strict=True))


def is_first(where):
    """Whether a variable is the kernel of a backbone's first convolution."""
    _, module, *layers, name = [key.key for key in where]
    return module == "backbone" and layers[0] in ("conv1", "stem") and name == "kernel"


def read(tmp_path, tensors, shapes, rules):
    path = safetensors(tmp_path / "w.safetensors", tensors)
    return pretrained.begin(shapes, str(path), "a backbone", rules)


def test_older_files_of_fast_reid_have_another_bnneck(tmp_path):
    _, shapes, rules, tensors = network("fastreid_ibn18")
    older = {name.replace("bottleneck.0", "bnneck"): value for name, value in tensors.items()}
    assert older.keys() != tensors.keys()
    a, b = (read(tmp_path, t, shapes, rules)["params"] for t in (tensors, older))
    np.testing.assert_array_equal(a["bnneck"]["scale"], b["bnneck"]["scale"])
    np.testing.assert_array_equal(a["bnneck"]["scale"], tensors["heads.bottleneck.0.weight"])


def test_what_a_file_lacks_stays_and_what_is_left_out_is_named(tmp_path, monkeypatch):
    """A backbone's file has no BNNeck, and a network's file has the classifier of others."""
    _, shapes, rules, tensors = network("fastreid_ibn18")
    lines = []
    monkeypatch.setattr(logging, "info", lambda text, *args: lines.append(text % args))
    whole = read(tmp_path, tensors, shapes, rules)
    assert whole["params"]["head_identity"] == shapes["params"]["head_identity"]
    assert lines[-1].endswith("tensors read; not used: heads.weight")
    alone = {name: value for name, value in tensors.items() if name.startswith("backbone.")}
    found = read(tmp_path, alone, shapes, rules)
    assert lines[-1].endswith("tensors read; not used: none")
    assert lines[-2].endswith("has nothing, or another size, of: bnneck")
    for kind in ("params", "batch_stats"):
        assert found[kind]["bnneck"] == shapes[kind]["bnneck"]
        jax.tree.map(
            np.testing.assert_array_equal, found[kind]["backbone"], whole[kind]["backbone"]
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads.bottleneck.0.running_var": None}, r"no tensor heads\.bottleneck\.0\.running_var"),
        (
            {"heads.bottleneck.0.bias": np.ones(512)},
            "bias is not 0; the model's BNNeck has no shift",
        ),
        (
            {"heads.bottleneck.0.weight": np.ones(256)},
            r"weight is \(256,\).*the model has \(512,\)",
        ),
        ({"backbone.layer1.0.bn1.IN.bias": None}, r"no tensor backbone\.layer1\.0\.bn1\.IN\.bias"),
        ({"backbone.layer1.0.bn1.BN.weight": np.ones(64)}, r"\(64,\).*the model has \(32,\)"),
        ({"backbone.layer1.2.conv1.weight": np.ones((64, 64, 3, 3))}, "of a deeper network"),
        ({"backbone.layer1.0.se.fc.0.weight": np.ones((4, 64))}, "of another network: .*se.fc.0"),
    ],
)
def test_files_that_do_not_fit_are_refused(change, message, tmp_path):
    _, shapes, rules, tensors = network("fastreid_ibn18")
    changed = {k: v for k, v in (tensors | change).items() if v is not None}
    tensors = {k: v.astype(np.float32) for k, v in changed.items()}
    with pytest.raises(InputError, match=message):
        read(tmp_path, tensors, shapes, rules)


@pytest.mark.parametrize(
    ("model", "file", "message"),
    [
        ("fastreid_ibn18", "bot18", r"has no tensor base\.layer1\.0\.bn1\.BN\."),
        ("bot18", "fastreid_ibn18", r"has no tensor backbone\.layer1\.0\.bn1\.running_mean"),
        ("mobilenet_torchvision_1.0", "mobilenet_torchreid_1.0", "no tensor conv2.0.conv1"),
        ("mobilenetv2_140", "tf_efficientnet_lite3", "the model has"),
    ],
)
def test_files_of_another_network_are_refused(model, file, message, tmp_path):
    _, shapes, rules, _ = network(model)
    *_, tensors = network(file)
    with pytest.raises(InputError, match=message):
        read(tmp_path, tensors, shapes, rules)


def test_non_local_blocks_are_counted_in_each_stage():
    names = resnet.TORCH_NAMES
    for naming, blocks in (
        ("non-local blocks, ResNet-50", 6),
        ("non-local blocks, ResNet-101", 23),
    ):
        path = [f"non_local3_{blocks - 1}", "out", "kernel"]
        last = {6: 2, 23: 8}[blocks]
        assert namings.name_of(path, names[naming]) == f"NL_3.{last}.W.0.weight"
