"""Swin Transformers against timm's on the same weights, which go through files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.models import parts
from market_jax.models.backbones import swin
from market_jax.weights import namings, positions, pretrained, saving
from tests.models.golden_swin import NETWORKS, TABLE, TOP, fill, images
from tests.models.test_backbones import shape_in_torch
from tests.weights.makers import safetensors

# of timm 1.0.31 under PyTorch 2.13, by golden_swin.py: the first features of two pictures, the
# gradients of the sum of their sines by a pixel of each and by the kernel of queries, keys and
# values of the first block that shifts; and the deviations of all features and of both gradients
GOLDEN = {
    "padded, one side narrower": (
        [
            [0.16757, -0.972693, -1.01783, -0.63251, 0.220548, -1.22331, -1.22058, -0.654242],
            [0.0472792, -0.00643796, 0.0119739, 0.0200179, -0.0323754, 0.00386792],
            [
                *(0.00933135, 0.00635577, -0.00662196, 0.0133767),
                *(0.00720987, 0.0222611, 0.00783297, -0.0077057),
            ],
        ],
        [0.746861, 0.0444974, 0.146064],
    ),
    "an odd map": (
        [
            [-0.167512, -0.215693, -0.796576, -0.110469, -0.1402, 0.126319, -0.64065, -0.0596943],
            [0.0346756, -0.0644304, 0.17157, 0.153416, -0.408378, 0.100871],
            [
                *(0.0954072, 0.0419406, -0.0186254, 0.0749124),
                *(0.00929149, 0.00532449, 0.00534405, 0.0187062),
            ],
        ],
        [0.79428, 0.15155, 0.178782],
    ),
    "as on ImageNet": (
        [
            [0.0735195, -0.752497, -1.12207, -0.804157, -0.0118072, -0.712782, -1.37104, -0.942977],
            [-0.00538228, 0.0216523, 0.0144358, 0.00482476, -0.0047635, -0.00315784],
            [
                *(0.00700302, -0.0159939, -0.0174749, 0.00535545),
                *(-0.00355141, 0.0102175, 0.00618552, -0.00484894),
            ],
        ],
        [0.844327, 0.0164409, 0.160013],
    ),
}
RESIZED = {  # window -> the biases of the first places, and the deviation of all, by golden_swin.py
    (7, 5): ([-0.494466, -0.366849, 2.00713, -1.96185, 3.74137, -3.2286], 1.92907),
    (4, 1): ([-0.576164, -1.1229, 0.652679, -1.42974, -0.588944, 1.89348], 1.55546),
    (9, 6): ([0.534968, -0.768083, 0.954015, -0.613749, -0.449348, 2.57243], 1.75586),
    (12, 14): ([3.53044, -1.89145, 3.99038, 2.77625, -1.59804, 3.13972], 1.56157),
}
COUNTS = {"tiny": 28_288_354, "small": 49_606_258, "base": 87_768_224}  # with 1000 classes
KEY = jax.random.key(0)
NAMINGS = (swin.TORCH_NAMES, swin.TORCH_VALUES)


def network(name):
    size, depths, window = NETWORKS[name]
    return swin.Model(depths=depths, window=window), size


def template(model, size=(32, 32)):
    return jax.eval_shape(model.init, KEY, jnp.zeros((1, *size, 3)))


def tensors_of(model, size=(32, 32), naming="timm"):
    """A file's tensors, by golden_swin's fill."""
    shapes = {}
    for where, leaf in jax.tree_util.tree_leaves_with_path(template(model, size)):
        path = [key.key for key in where][1:]
        shape = shape_in_torch(path, leaf)
        if path[-1] == "position_bias":
            shape = (leaf.shape[0] * leaf.shape[1], leaf.shape[2])
        shapes[namings.name_of(path, swin.TORCH_NAMES[naming])] = shape
    return fill(shapes)


@functools.partial(jax.jit, static_argnums=0)
def feature_and_gradients(model, variables, x):
    """Features; gradients of the sum of their sines by pictures and by the kernel of a block."""
    block = variables["params"]["stage2_block1"]

    def total(x, kernel):
        changed = block | {"qkv": block["qkv"] | {"kernel": kernel}}
        outputs = model.apply({"params": variables["params"] | {"stage2_block1": changed}}, x)
        return jnp.sum(jnp.sin(outputs["feature"])), outputs["feature"]

    by, feature = jax.grad(total, (0, 1), has_aux=True)(x, block["qkv"]["kernel"])
    return feature, *by


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_features_and_gradients(name, tmp_path):
    model, size = network(name)
    path = safetensors(tmp_path / "w.safetensors", tensors_of(model, size))
    variables, unused = pretrained.load(path, template(model, size), *NAMINGS)
    assert unused == []
    found = feature_and_gradients(model, variables, images(size))
    tops, deviations = GOLDEN[name]
    said = "not what timm's network gives with these weights"
    picked = found[0], found[1][:, 20, 20], found[2][:2]
    for value, top, deviation in zip(picked, tops, deviations, strict=True):
        first = value[:, :TOP].ravel()
        np.testing.assert_allclose(first, top, rtol=1e-4, atol=1e-4 * deviation, err_msg=said)
    spread = [np.std(value) for value in found]
    np.testing.assert_allclose(spread, deviations, rtol=1e-4, err_msg=said)


@pytest.mark.parametrize("size", COUNTS)
def test_golden_parameter_counts(size):
    params = template(swin.Model(size, classes={"imagenet": 1000}), (224, 224))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == COUNTS[size]


SMALL = swin.Model(depths=(1, 2), window=3, classes={"imagenet": 1000})


def test_microsofts_files_merge_at_the_end_of_a_stage(tmp_path):
    ours, theirs = (tensors_of(SMALL, naming=naming) for naming in ("timm", "Microsoft"))
    assert "layers.1.downsample.reduction.weight" in ours
    renamed = {name.replace("layers.0.downsample", "layers.1.downsample"): name for name in theirs}
    file = {theirs_: ours[name.replace("head.", "head.fc.")] for name, theirs_ in renamed.items()}
    file["layers.1.blocks.1.attn.relative_position_index"] = np.zeros((9, 9), np.int64)
    file["layers.1.blocks.1.attn_mask"] = np.zeros((4, 9, 9), np.float32)
    read = [
        pretrained.load(safetensors(tmp_path / name, tensors), template(SMALL), *NAMINGS)
        for name, tensors in (("a.safetensors", ours), ("b.safetensors", file))
    ]
    jax.tree.map(np.testing.assert_array_equal, read[0][0], read[1][0])
    assert read[0][1] == read[1][1] == []


@pytest.mark.parametrize("naming", ["timm", "Microsoft"])
def test_a_network_is_written_as_it_was_read(naming, tmp_path):
    tensors = tensors_of(SMALL.clone(classes=None), naming=naming)
    path = safetensors(tmp_path / "a.safetensors", tensors)
    variables, _ = pretrained.load(path, template(SMALL.clone(classes=None)), *NAMINGS)
    inside = {"params": {"backbone": variables["params"]}}
    saving.write(tmp_path / "b.safetensors", inside, swin.TORCH_NAMES, naming, swin.to_torch)
    again, _ = pretrained.load(
        tmp_path / "b.safetensors", template(SMALL.clone(classes=None)), *NAMINGS
    )
    jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.parametrize("window", RESIZED)
def test_golden_biases_of_another_window(window):
    first, deviation = RESIZED[window]
    shape = (2 * window[0] - 1, 2 * window[1] - 1, 3)
    found = positions.offsets(fill({TABLE: (13 * 13, 3)}), TABLE, shape)
    assert found.shape == shape
    np.testing.assert_allclose(found.reshape(-1, 3)[:2].ravel(), first, rtol=1e-4)
    np.testing.assert_allclose(found.std(), deviation, rtol=1e-4)


def test_a_file_of_another_window_is_read(tmp_path):
    tensors = tensors_of(SMALL, (24, 24))
    path = safetensors(tmp_path / "a.safetensors", tensors)
    narrow = template(SMALL, (16, 8))  # maps of 4x2 and 2x1
    params = pretrained.load(path, narrow, *NAMINGS)[0]["params"]
    expected = positions.offsets(tensors, TABLE, (5, 3, 3))
    np.testing.assert_array_equal(params["stage1_block0"]["position_bias"], expected)
    with pytest.raises(InputError, match=r"windows of 3x3 at stage1_block0; these .* of 3x2"):
        jax.eval_shape(SMALL.apply, narrow, jnp.zeros((1, 24, 24, 3)))
    for shape in ((16, 3), (24, 3), (25, 4), (25,), ()):
        broken = np.zeros(shape, np.float32)
        path = safetensors(tmp_path / "b.safetensors", tensors | {TABLE: broken})
        with pytest.raises(InputError, match=r"bias_table is .* the model has"):
            pretrained.load(path, narrow, *NAMINGS)


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(InputError, match="is 30x32 and patches of 'swin' are 4x4"):
        template(SMALL, (30, 32))
    path = safetensors(tmp_path / "a.safetensors", tensors_of(SMALL))
    for depths, message in {
        (1, 3): "has no tensor layers.1.blocks.2",
        (1, 1): "deeper net",
    }.items():
        with pytest.raises(InputError, match=message):
            pretrained.load(path, template(SMALL.clone(depths=depths)), *NAMINGS)


def test_a_part_model_reads_a_copy_of_the_last_stage():
    model = parts.Model({}, SMALL.clone(classes=None), branches=("global", "part"), identities=3)
    params = template(model, (32, 16))["params"]
    copy = params["branch_part"]
    assert set(copy) == {
        "merge2_norm",
        "merge2_reduction",
        "norm",
        "stage2_block0",
        "stage2_block1",
    }


def test_bfloat16_is_near():
    x = images((32, 32))
    variables = jax.jit(SMALL.init)(KEY, x)
    models = (SMALL.clone(dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    exact, near = (jax.jit(model.apply)(variables, x)["feature"] for model in models)
    assert near.dtype == jnp.float32
    assert 0 < np.abs(exact - near).max() < 0.05
