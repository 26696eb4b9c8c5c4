"""Vision Transformers against timm's on the same weights, which go through files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.models.backbones import vit
from market_jax.weights import namings, pretrained
from tests.models.golden_vit import SQUARE, TOP, fill, images
from tests.models.test_backbones import shape_in_torch
from tests.weights.makers import safetensors

# of timm 1.0.31 under PyTorch 2.13, by golden_vit.py: the first features of two pictures, the
# gradients of the sum of their sines by a pixel of each and by the kernel of the first block's
# queries, keys and values; and the deviations of all features and of both gradients
GOLDEN = {
    "augreg": (
        [
            [1.37412, 1.86676, 1.22758, 0.0802708, 2.20511, 2.41467, 2.72453, -1.12647],
            [0.340211, -0.231219, 0.392589, 0.0703437, 0.365666, -0.0966681],
            [-0.442372, -0.705819, -0.45592, -0.942763, -0.136614, -0.170649, -0.114227, -0.401001],
        ],
        [1.05257, 0.368925, 0.598693],
    ),
    "deit": (
        [
            [2.39982, 1.6656, -1.22678, 0.310898, 1.28118, 0.641761, 0.421817, -0.701739],
            [-0.0898807, 0.00271536, 0.239923, -0.0821614, 0.0975162, 0.0732093],
            [0.568833, -0.426782, -0.358094, 0.204585, 0.259069, -0.194373, -0.16309, 0.0931761],
        ],
        [1.0431, 0.328358, 0.586268],
    ),
    "overlapping": (
        [
            [1.93193, 2.40591, -0.952545, -0.910442, 0.643311, 0.862316, -1.05121, 0.235687],
            [-0.290753, -0.433395, -0.454598, -0.159202, 0.0357344, -0.057168],
            [0.236763, 0.174755, 0.432804, -0.00134455, -0.356627, 0.189083, 0.633703, 0.897884],
        ],
        [1.00799, 0.322368, 0.475902],
    ),
    "dinov2": (
        [
            [2.38707, 0.8294, 1.58138, -0.459171, 1.87188, 0.756212, 1.69273, -0.565478],
            [-0.249804, 0.848132, -0.199649, 0.0196876, -0.0592262, -0.0378479],
            [
                -0.308618,
                0.0329044,
                0.0091382,
                -0.134737,
                -0.131166,
                0.0108507,
                0.00409033,
                -0.0686088,
            ],
        ],
        [1.0475, 0.183472, 0.217965],
    ),
    "dinov2, registers": (
        [
            [2.49694, -0.965292, -1.53996, -0.287932, -1.06355, 0.0542299, 0.0156885, -0.445118],
            [-0.0566552, 0.370896, 0.635094, 0.0796508, 0.189809, -0.0445733],
            [-0.874399, -0.703269, 0.480688, -0.593945, -0.652168, -0.37971, -0.0725266, -0.455652],
        ],
        [1.05954, 0.454374, 0.5608],
    ),
    "dinov2, Meta's registers": (
        [
            [2.21884, 0.830236, 1.50937, -0.596046, 1.74222, 0.815132, 1.79322, -0.710413],
            [-0.30504, 0.895812, -0.13949, -0.0405665, -0.0188451, -0.0522305],
            [
                -0.324733,
                -0.0640658,
                0.0903343,
                -0.177414,
                -0.142603,
                -0.0087616,
                0.0138101,
                -0.102306,
            ],
        ],
        [1.04719, 0.161389, 0.207191],
    ),
    "clip": (
        [
            [-1.40773, 0.840897, -0.937499, 0.209873, -0.388542, -0.289021, -1.55129, -0.0369537],
            [-0.466697, -0.260219, -0.118151, -0.583722, -0.57889, 0.184727],
            [
                0.0358236,
                -0.0107926,
                0.291777,
                -0.828173,
                0.0209506,
                -0.00631178,
                0.170639,
                -0.484337,
            ],
        ],
        [1.54594, 0.65207, 0.628902],
    ),
    "openclip": (
        [
            [-0.15753, 0.240475, 0.501465, 0.535085, 1.49419, -0.724074, 0.0556505, 0.916965],
            [0.403135, -0.393633, -0.520052, 0.268592, 0.174375, -0.426593],
            [0.486938, -0.23774, 0.660697, -0.204661, 0.121357, -0.0592505, 0.164662, -0.0510064],
        ],
        [1.32806, 0.612956, 0.53599],
    ),
}
KEY = jax.random.key(0)
MODELS = {  # name -> (model, the naming of its file)
    "augreg": (vit.Model("tiny", 3), "timm"),
    "deit": (vit.Model("tiny", 1, "deit"), "timm"),
    "overlapping": (vit.Model("tiny", 2, patch_stride=12), "timm"),
    "dinov2": (vit.Model("small", 2, "dinov2"), "timm"),
    "dinov2, registers": (vit.Model("small", 2, "dinov2", 4), "timm"),
    "dinov2, Meta's registers": (vit.Model("small", 2, "dinov2", 4), "DINOv2"),
    "clip": (vit.Model("base", 1, "clip", projection=512), "CLIP"),
    "openclip": (vit.Model("base", 1, "openclip", projection=512), "timm"),
}
COUNTS = {  # of whole networks without a head, for pictures of 224x224 pixels; timm has as many
    "vit_tiny_patch16_224": (vit.Model("tiny"), 5_524_416),
    "vit_small_patch14_dinov2": (vit.Model("small", family="dinov2"), 21_628_800),
    "vit_small_patch14_reg4_dinov2": (vit.Model("small", 12, "dinov2", 4), 21_629_952),
    "vit_base_patch16_clip_224": (vit.Model("base", family="clip"), 85_799_424),
}


def template(model):
    return jax.eval_shape(model.init, KEY, images())


def sevens(model):
    """The model's variables, each number a 7."""
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 7, np.float32), template(model))


def tensors_of(model, naming):
    """A file's tensors, by golden_vit's fill."""
    meta, clip, shapes = naming == "DINOv2", naming == "CLIP", {}
    for where, leaf in jax.tree_util.tree_leaves_with_path(template(model)):
        path = [key.key for key in where][1:]
        name, width = namings.name_of(path, vit.TORCH_NAMES[naming]), leaf.shape[-1]
        shape = shape_in_torch(path, leaf)
        if path[-1] in ("pos_embed", "class_position"):
            count = SQUARE + (meta or not model.registers)
            shape = (count, width) if clip else (1, count, width)
        elif path[-1] in ("cls_token", "reg_token"):
            shape = (width,) if clip else (1, *leaf.shape)
        elif path[-1] == "projection":
            shape = leaf.shape if clip else leaf.shape[::-1]
        shapes[f"visual.{name}" if clip else name] = shape
    return fill(shapes | ({"mask_token": (1, width)} if meta else {}))


def load(tmp_path, model, tensors):
    path = safetensors(tmp_path / "w.safetensors", tensors)
    return pretrained.load(path, template(model), vit.TORCH_NAMES, vit.TORCH_VALUES)


@functools.partial(jax.jit, static_argnums=0)
def feature_and_gradients(model, variables, x):
    """Features; gradients of the sum of their sines by pictures and by the first block's qkv."""

    def total(x, kernel):
        block = variables["params"]["block0"]
        changed = block | {"qkv": block["qkv"] | {"kernel": kernel}}
        outputs = model.apply({"params": variables["params"] | {"block0": changed}}, x)
        return jnp.sum(jnp.sin(outputs["feature"])), outputs["feature"]

    kernel = variables["params"]["block0"]["qkv"]["kernel"]
    by, feature = jax.grad(total, (0, 1), has_aux=True)(x, kernel)
    return feature, *by


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_features_and_gradients(name, tmp_path):
    model, naming = MODELS[name]
    variables, unused = load(tmp_path, model, tensors_of(model, naming))
    assert unused == (["mask_token"] if naming == "DINOv2" else [])
    feature, by_pixels, by_kernel = feature_and_gradients(model, variables, images())
    tops, deviations = GOLDEN[name]
    found = feature, by_pixels[:, 20, 20], by_kernel[:2]
    said = "not what timm's network gives with these weights"
    for value, top, deviation in zip(found, tops, deviations, strict=True):
        first = value[:, :TOP].ravel()
        np.testing.assert_allclose(first, top, rtol=1e-4, atol=1e-4 * deviation, err_msg=said)
    found = [np.std(value) for value in (feature, by_pixels, by_kernel)]
    np.testing.assert_allclose(found, deviations, rtol=1e-4, err_msg=said)


@pytest.mark.parametrize("name", COUNTS)
def test_golden_parameter_counts(name):
    model, expected = COUNTS[name]
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    params = jax.eval_shape(model.init, KEY, x)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


SMALL = MODELS["augreg"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.1.mlp.fc1.weight": None}, r"has no tensor blocks\.1\.mlp\.fc1\.weight"),
        ({"norm.bias": np.zeros(384)}, r"norm\.bias is \(384,\).*the model has \(192,\)"),
        ({"cls_token": np.zeros((1, 1, 384))}, r"cls_token is \(1, 1, 384\).*has \(1, 192\)"),
        ({"pos_embed": np.zeros((1, 36, 192))}, r"pos_embed is \(1, 36, 192\), as \(35, 192\)"),
        ({"pos_embed": np.zeros((1, 37, 384))}, r"pos_embed is \(1, 37, 384\)"),
        ({"pos_embed": np.zeros((1, 1, 192))}, r"pos_embed is \(1, 1, 192\), as \(0, 192\)"),
        ({"pos_embed": np.zeros(())}, r"pos_embed is \(\), as \(\); the model has"),
        ({"pos_embed": np.zeros((1, 0, 192))}, r"pos_embed is \(1, 0, 192\)"),
        ({"pos_embed": np.full((1, 37, 192), np.nan)}, "pos_embed holds values that are not fin"),
        ({"blocks.3.attn.qkv.weight": np.zeros((576, 192))}, "is of a deeper network: the model"),
    ],
)
def test_weights_that_do_not_fit(change, message, tmp_path):
    tensors = tensors_of(SMALL, "timm") | {k: v for k, v in change.items() if v is not None}
    tensors = {k: v for k, v in tensors.items() if change.get(k, v) is not None}
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()}
    with pytest.raises(InputError, match=message):
        load(tmp_path, SMALL, tensors)


def test_another_family_is_refused(tmp_path):
    tensors = tensors_of(SMALL, "timm")
    with pytest.raises(InputError, match=r"has no tensor blocks\.0\.ls1\.gamma"):
        load(tmp_path, vit.Model("tiny", 3, "dinov2"), tensors)
    with pytest.raises(InputError, match="has no tensor reg_token"):
        load(tmp_path, SMALL.clone(registers=4), tensors)


@pytest.mark.parametrize("prefix", ["visual.", "", "module.visual."])
def test_the_visual_tower_is_found_beside_the_texts(prefix, tmp_path):
    model = vit.Model("tiny", 1, "clip", projection=8)
    visual = tensors_of(model, "CLIP")
    tensors = {name.replace("visual.", prefix): value for name, value in visual.items()}
    texts = {}
    if prefix == "visual.":
        texts = {
            name.removeprefix(prefix): value[..., :1] * np.nan
            for name, value in tensors.items()
            if "resblocks" in name or "positional" in name
        }
    params, unused = load(tmp_path, model, tensors | texts)
    assert unused == sorted(texts)
    found = params["params"]
    np.testing.assert_array_equal(found["projection"], visual["visual.proj"])
    name = "visual.transformer.resblocks.0.attn.in_proj_weight"
    np.testing.assert_array_equal(found["block0"]["qkv"]["kernel"], visual[name].T)
    np.testing.assert_array_equal(found["cls_token"][0], visual["visual.class_embedding"])


def test_positions_of_the_models_own_pictures_stay(tmp_path):
    """4x3 patches are no square."""
    tensors = tensors_of(SMALL, "timm")
    tensors["pos_embed"] = np.arange(13 * 192, dtype=np.float32).reshape(1, 13, 192)
    params = load(tmp_path, SMALL, tensors)[0]["params"]
    np.testing.assert_array_equal(params["class_position"], tensors["pos_embed"][0, :1])
    np.testing.assert_array_equal(params["pos_embed"].reshape(12, 192), tensors["pos_embed"][0, 1:])


def test_a_whole_files_head_and_a_prefix(tmp_path):
    model = SMALL.clone(classes={"imagenet": 10, "hat": 2})
    tensors = tensors_of(model, "timm")
    hat = {name for name in tensors if "hat" in name}
    file = {f"module.{k}": v for k, v in tensors.items() if k not in hat}
    variables = sevens(model)
    path = safetensors(tmp_path / "w.safetensors", file)
    found, unused = pretrained.load(path, variables, vit.TORCH_NAMES, vit.TORCH_VALUES)
    assert unused == []
    own, read = variables["params"], found["params"]
    np.testing.assert_array_equal(read["head_hat"]["kernel"], own["head_hat"]["kernel"])
    np.testing.assert_array_equal(read["head_imagenet"]["kernel"], file["module.head.weight"].T)


def test_pictures_of_another_size_are_refused():
    with pytest.raises(InputError, match=r"4x4 patches; these weights .* positions for 4x3"):
        jax.eval_shape(SMALL.apply, template(SMALL), jnp.zeros((1, 64, 64, 3)))
    with pytest.raises(InputError, match="64x15 is too small; each side must be 16"):
        jax.eval_shape(SMALL.init, KEY, jnp.zeros((1, 64, 15, 3)))
