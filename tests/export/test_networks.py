"""Every backbone and every model of persons as ONNX: the outputs are the network's."""

import functools

import numpy as np
import pytest

from market_jax.export import checking, onnx
from market_jax.models import apr, classifier, jcm, multitask, parts, pcb, transreid
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
from market_jax.models.heads import NormalizedHead
from tests.export import networks
from tests.export.networks import CLASSES

SIZE, PERSONS = (64, 32), 5
BACKBONES = {
    "alexnet": alexnet.Model(dense=False),
    "densenet": densenet.Model(attention=(2,), pooling="max"),
    "efficientnet": efficientnet_lite.Model(0, same_padding=True, classes={"imagenet": 3}),
    "efficientnet, gem": efficientnet_lite.Model(0, attention=(3,), pooling="gem"),
    "mobilenet": mobilenet_v2.Model(build="torchreid"),
    "osnet": osnet.Model(0.25, "ain"),
    "residual attention": residual_attention.Model(56, width=2),
    "resnet": resnet.Model(18, last_stride=1, attention=(1, 2), pooling="max"),
    "resnet, IBN-a": resnet.Model(18, ibn="a", stem="fast-reid"),
    "resnet, IBN-b": resnet.Model(18, ibn="b", stem="bot"),
    "resnet with bottlenecks": resnet.Model(50, non_local=(0, 1, 0, 0), pooling="gem"),
    "swin": swin.Model(depths=(1, 2)),
    "vit": vit.Model("tiny", 2, "dinov2", 4, lora_rank=2),
    "vit of TransReID": vit.Model("tiny", 2, cameras=(1, 2, 3)),
    "vit of CLIP": vit.Model("tiny", 2, "clip", patch_stride=12, projection=8),
}
SMALL = resnet.Model(18)
MASKS = {"age": "softmax", "binaries": "sigmoid"}
PERSON = {"identities": PERSONS}
MODELS = {
    "classifier": classifier.Model(
        CLASSES, SMALL, functools.partial(NormalizedHead, width=8), attention=MASKS, **PERSON
    ),
    "softmax over all": classifier.Model(CLASSES, SMALL, attention={"age": "softmax_all"}),
    "uncertainty": classifier.Model(CLASSES, SMALL, uncertainty=True, squash=True),
    "parts": parts.Model(CLASSES, SMALL, width=6, **PERSON),
    "pcb": pcb.Model(CLASSES, SMALL, stripes=2, width=6, **PERSON),
    "apr": apr.Model(CLASSES, SMALL, **PERSON),
    "jcm": jcm.Model(CLASSES, SMALL, stage=3, width=16, heads=2),
    "transreid": transreid.Model(CLASSES, vit.Model("tiny", 2), groups=2, **PERSON),
    "multitask": multitask.Model(CLASSES, SMALL, separate=True, hidden=16, width=8),
}


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """The same kinds of layers, fewer of each."""
    monkeypatch.setattr(densenet, "_LAYERS", (2, 1, 1, 1))
    monkeypatch.setitem(resnet._DEPTHS, 18, ((1, 1, 1, 1), False))
    monkeypatch.setitem(resnet._DEPTHS, 50, ((1, 2, 1, 1), True))
    for module in (efficientnet_lite, mobilenet_v2):
        stages = [row._replace(blocks=min(row.blocks, 2)) for row in module._STAGES]
        monkeypatch.setattr(module, "_STAGES", tuple(stages))


def check(model, size, **settings):
    """The largest difference between the ONNX file and the network."""
    variables, given = networks.prepare(model, size), networks.images(4, size)
    content = onnx.make(networks.function(model, variables, **settings), size)
    expected = networks.expected(model, variables, given, **settings)
    assert np.std(expected["embedding"], axis=0).max() > 0, "embeddings say something"
    return checking.check("x.onnx", onnx.run_content(content, "x.onnx"), given, expected)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_as_onnx(name):
    pytest.importorskip("onnxruntime")
    check(BACKBONES[name], (64, 64) if name == "alexnet" else SIZE)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_persons_as_onnx(name):
    pytest.importorskip("onnxruntime")
    check(MODELS[name], SIZE)


def test_the_mean_with_the_mirror_image_as_onnx():
    pytest.importorskip("onnxruntime")
    check(MODELS["apr"], SIZE, flip=True)


def test_maps_stay_with_channels_first_and_biases_go_into_convolutions():
    package = pytest.importorskip("onnx")
    variables = networks.prepare(SMALL, SIZE)
    model = package.load_from_string(onnx.make(networks.function(SMALL, variables), SIZE))
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Transpose") == 1, "of the images alone"
    assert set(operators) - {"Add", "Cast", "Conv", "Div", "MaxPool", "Relu", "Sub"} == {
        "Identity",
        "ReduceSum",
        "Transpose",
    }
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 1 + 4 * 2 + 3
    assert {len(node.input) for node in convolutions} == {3}
    assert operators.count("Add") == 4, "one for each block"
