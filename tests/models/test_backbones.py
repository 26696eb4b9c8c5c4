"""Backbones against torchvision's on the same weights, which go through files and their reader."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.models import heads
from market_jax.models.backbones import (
    alexnet,
    densenet,
    efficientnet_lite,
    mobilenet_v2,
    osnet,
    residual_attention,
    resnet,
    swin,
    vit,
)
from market_jax.weights import namings, pretrained
from tests.models.golden import TOP, fill, images
from tests.weights.test_pretrained import safetensors

# of torchvision 0.28 under PyTorch 2.13, by golden.py: the first features of two images, and the
# deviation of all
GOLDEN = {
    "resnet18": ([2.73319, 2.85716, 11.995, 10.5928, 0.930587, 3.23791, 13.0075, 12.6952], 9.1326),
    "resnet34": (
        [71.0079, 182.926, 393.542, 205.446, 72.1275, 206.592, 401.179, 209.504],
        110.035,
    ),
    "resnet50": (
        [167.988, 129.561, 83.3126, 31.3573, 168.268, 130.93, 84.4818, 27.5735],
        139.001,
    ),
    "resnet101": (
        [38725.1, 58104.7, 12791.5, 2639.3, 38971.8, 58953.1, 12939.3, 2539.68],
        33051.8,
    ),
    "alexnet": (
        [1.51121, 4.15534, 0.77089, 1.20614, 1.08322, 3.79771, 0.921171, 0.112268],
        1.22963,
    ),
    "densenet121": ([0, 0.55071, 0, 1.32935, 0, 0.581594, 0, 1.36685], 0.552967),
}
MODELS = {
    "resnet18": (resnet, resnet.Model(18)),
    "resnet34": (resnet, resnet.Model(34)),
    "resnet50": (resnet, resnet.Model(50)),
    "resnet101": (resnet, resnet.Model(101)),
    "alexnet": (alexnet, alexnet.Model()),
    "densenet121": (densenet, densenet.Model()),
}


def shape_in_torch(path, leaf):
    """PyTorch has outputs first."""
    if path[-1] == "kernel":
        return tuple(leaf.shape[i] for i in ((3, 2, 0, 1) if leaf.ndim == 4 else (1, 0)))
    return leaf.shape


def shapes_in_torch(variables, rules):
    """The names and shapes that a backbone's variables have in a naming."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    paths = [([key.key for key in where][1:], leaf) for where, leaf in leaves]
    shapes = {namings.name_of(path, rules): shape_in_torch(path, leaf) for path, leaf in paths}
    assert len(shapes) == len(paths), "two variables have one name"
    return shapes


def load(name, tmp_path, naming="torchvision"):
    """(model, variables with the golden weights, from a file in the naming)."""
    module, model = MODELS[name]
    template = jax.eval_shape(model.init, jax.random.key(0), images())
    rules = module.TORCH_NAMES
    values = fill(shapes_in_torch(template, rules["torchvision"])).values()
    known = shapes_in_torch(template, rules[naming])
    path = safetensors(tmp_path / "w.safetensors", dict(zip(known, values, strict=True)))
    variables, unused = pretrained.load(path, template, rules)
    assert unused == []
    return model, variables


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_features(name, tmp_path):
    model, variables = load(name, tmp_path)
    outputs = jax.jit(model.apply)(variables, images())
    values, deviation = GOLDEN[name]
    found = outputs["embedding"]
    said = "not the features that torchvision's network has with these weights"
    np.testing.assert_allclose(
        found[:, :TOP].ravel(), values, rtol=1e-4, atol=1e-4 * deviation, err_msg=said
    )
    assert np.std(found) == pytest.approx(deviation, rel=1e-4), said
    if name != "alexnet":  # whose features are those of its dense layers
        np.testing.assert_allclose(found, np.mean(outputs["map"], axis=(1, 2)), rtol=1e-5)


def test_published_densenets_have_older_names(tmp_path):
    older = "torchvision, published files"
    rules = densenet.TORCH_NAMES
    path = ["stage2_layer10", "norm1", "scale"]
    names = {namings.name_of(path, rules[naming]) for naming in rules}
    assert names == {
        "features.denseblock2.denselayer10.norm1.weight",
        "features.denseblock2.denselayer10.norm.1.weight",
    }
    a, b = (load("densenet121", tmp_path, naming)[1] for naming in ("torchvision", older))
    assert jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_poolings_by_hand():
    x = np.arange(1.0, 9.0).reshape(1, 2, 2, 2)

    class Pool(nn.Module):
        pooling: str

        @nn.compact
        def __call__(self, x):
            return heads.pool(x, self.pooling)

    def run(pooling):
        return Pool(pooling).init_with_output(jax.random.key(0), x)[0]

    np.testing.assert_allclose(run("average"), [[4, 5]])
    np.testing.assert_allclose(run("max"), [[7, 8]])
    cubes = np.mean(x**3, axis=(1, 2)) ** (1 / 3)
    np.testing.assert_allclose(run("gem"), cubes, rtol=1e-5)
    with pytest.raises(InputError, match="unknown pooling 'median'; known: average, gem, max"):
        run("median")


@pytest.mark.parametrize(
    "model",
    [
        resnet.Model(18, pooling="max", attention=(1, 3)),
        alexnet.Model(dense=False, pooling="gem", attention=(5,)),
        densenet.Model(pooling="gem", attention=(2,)),
        osnet.Model(0.25, pooling="gem", attention=(1, 3)),
    ],
    ids=["resnet", "alexnet", "densenet", "osnet"],
)
def test_masks_between_stages_add_parameters_and_keep_shapes(model):
    x = jax.ShapeDtypeStruct((2, 128, 64, 3), np.float32)
    plain = model.clone(attention=())

    def describe(model):
        outputs, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
        return {k: v.shape for k, v in outputs.items()}, set(variables["params"])

    (shapes, names), (plain_shapes, plain_names) = describe(model), describe(plain)
    assert shapes == plain_shapes
    assert names - plain_names == {f"attention{stage}" for stage in model.attention}


@pytest.mark.parametrize(
    "model",
    [resnet.Model(18), efficientnet_lite.Model(), mobilenet_v2.Model()],
    ids=["resnet", "efficientnet_lite", "mobilenet_v2"],
)
def test_the_last_stride_changes_the_map_and_no_parameter(model):
    x = jax.ShapeDtypeStruct((1, 128, 64, 3), np.float32)

    def describe(stride):
        return jax.eval_shape(
            model.clone(last_stride=stride).init_with_output, jax.random.key(0), x
        )

    (small, variables), (large, others) = describe(2), describe(1)
    assert small["map"].shape[1:3] == (4, 2)
    assert large["map"].shape[1:3] == (8, 4)
    assert jax.tree.map(lambda a: a.shape, variables) == jax.tree.map(lambda a: a.shape, others)


class Parts(nn.Module):
    """A part model: the last stage three times, its feature maps apart."""

    backbone: nn.Module
    before: str

    @nn.compact
    def __call__(self, image, train=False):
        outputs = self.backbone(image, train)
        parts = [self.backbone.last_stage(f"part{i}") for i in range(2)]
        return {"map": outputs["map"]} | {
            part.name: part(outputs[self.before], train) for part in parts
        }


BACKBONES = {
    "alexnet": (alexnet.Model(dense=False), "stage4"),
    "densenet": (densenet.Model(), "stage3"),
    "efficientnet_lite": (efficientnet_lite.Model(), "stage6"),
    "mobilenet_v2": (mobilenet_v2.Model(), "stage6"),
    "osnet": (osnet.Model(0.25, "ain"), "stage2"),
    "residual_attention": (residual_attention.Model(width=4), "stage3"),
    "resnet": (resnet.Model(18), "stage3"),
    "swin": (swin.Model(depths=(1, 2)), "stage1"),
    "vit": (vit.Model("tiny", 2, lora_rank=2), "stage1"),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_the_last_stage_can_be_had_again(name):
    backbone, before = BACKBONES[name]
    model, x = Parts(backbone, before), np.zeros((2, 96, 64, 3), np.float32)
    outputs, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    params = variables["params"]
    assert outputs["part0"].shape == outputs["part1"].shape == outputs["map"].shape
    for part in ("part0", "part1"):
        for layer, tree in params[part].items():
            own = params["backbone"][layer]
            shapes = [jax.tree.map(lambda leaf: leaf.shape, t) for t in (tree, own)]
            assert shapes[0] == shapes[1], "the backbone's parameters fit its copies"


def made_up_weights(tmp_path, variables, rules):
    """A file of tensors under PyTorch's names, for every variable of a backbone."""
    return safetensors(tmp_path / "w.safetensors", fill(shapes_in_torch(variables, rules)))


@pytest.mark.parametrize(
    ("name", "module", "naming"),
    [("resnet", resnet, "torchvision"), ("efficientnet_lite", efficientnet_lite, "timm")],
    ids=["resnet", "efficientnet_lite"],
)
def test_published_weights_reach_the_copies_of_the_last_stage(name, module, naming, tmp_path):
    model = Parts(*BACKBONES[name])
    x = jax.random.uniform(jax.random.key(1), (2, 64, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    own = {kind: tree["backbone"] for kind, tree in variables.items()}
    path = made_up_weights(tmp_path, own, module.TORCH_NAMES[naming])
    variables = pretrained.begin(variables, str(path), name, module.TORCH_NAMES)

    first, second = (jax.tree.leaves(variables["params"][part]) for part in ("part0", "part1"))
    kernels = [(a, b) for a, b in zip(first, second, strict=True) if a.ndim == 4]
    assert kernels
    assert not any(np.array_equal(a, b) for a, b in kernels), "initialised separately"

    copied = {
        kind: tree | {"part0": {layer: tree["backbone"][layer] for layer in tree["part0"]}}
        for kind, tree in variables.items()
    }
    same = [jax.tree.structure(tree) for tree in (copied, variables)]
    assert same[0] == same[1], "a copy has the sub-tree of the backbone's last stage"
    outputs = jax.jit(model.apply)(copied, x)
    scale = np.abs(outputs["map"]).max()
    np.testing.assert_allclose(outputs["part0"] / scale, outputs["map"] / scale, atol=1e-5)
    assert not np.allclose(outputs["part1"] / scale, outputs["map"] / scale, atol=1e-2)
