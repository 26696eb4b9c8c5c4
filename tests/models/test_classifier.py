"""The classifier: groups of outputs, heads, masks, and where their weights come from."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import source_b
from market_jax import build as build_
from market_jax import experiment, losses
from market_jax.data.datasets import Dataset
from market_jax.data.schema import Schema
from market_jax.errors import InputError
from market_jax.losses import Context
from market_jax.losses.classification import cross_entropies, cross_entropy
from market_jax.models import classifier, heads
from market_jax.models.backbones import alexnet, efficientnet_lite, resnet
from market_jax.models.layers import conv
from market_jax.models.norms import batch_norm
from market_jax.weights import namings, pretrained, published
from tests.weights.test_pretrained import safetensors

SIZE, KEY = (64, 32), jax.random.key(0)
CLASSES = {"age": 4, "hat": 2, "bag": 2, "color": 3}


class Tiny(nn.Module):
    """A backbone with the outputs that one has."""

    @nn.compact
    def __call__(self, x, train=False):
        x = conv(6, 3, 8, dtype=jnp.float32)(x)
        x = nn.relu(batch_norm(train)(x))
        return {"map": x, "feature": jnp.mean(x, axis=(1, 2))}


def build(**fields):
    """A small network of source B's kind, its variables, and images."""
    model = classifier.Model(CLASSES, Tiny(), **fields)
    x = jax.random.uniform(jax.random.key(1), (4, *SIZE, 3))
    return model, jax.jit(model.init)(jax.random.key(0), x), x


def test_groups_are_source_bs():
    found = classifier.group(source_b.common.ATTRIBUTES)
    assert found == source_b.GROUPS
    assert list(found) == ["age", "up_color", "down_color", "binaries"]


def test_outputs_and_that_two_classes_have_a_binary_cross_entropy():
    model, variables, x = build(head=functools.partial(heads.NormalizedHead, width=8))
    outputs = jax.jit(model.apply)(variables, x)
    shapes = {k: v.shape for k, v in outputs.items()}
    logits = {name: (4, k) for name, k in CLASSES.items()}
    features = {"feature": (4, 6), "embedding": (4, 6)}
    assert shapes == logits | features | {"map": (4, 8, 4, 6), "predictions": (4, 4 + 3 + 2)}
    parts = np.split(np.asarray(outputs["predictions"]), [4, 7], axis=1)
    np.testing.assert_allclose(parts[0], jax.nn.softmax(outputs["age"]), rtol=1e-5)
    np.testing.assert_allclose(parts[1], jax.nn.softmax(outputs["color"]), rtol=1e-5)
    np.testing.assert_allclose(parts[2][:, 0], jax.nn.sigmoid(outputs["hat"][:, 1]), rtol=1e-5)
    labels = np.array([0, 1, 1, 0])
    found, _ = cross_entropy(Context(outputs, {"hat": labels}), logits="hat")
    expected = optax.sigmoid_binary_cross_entropy(outputs["hat"][:, 1], labels)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_squash_is_a_sigmoid_before_the_cross_entropy():
    (plain, variables, x), (squashed, *_) = build(), build(squash=True)
    a, b = (jax.jit(m.apply)(variables, x) for m in (plain, squashed))
    np.testing.assert_allclose(b["age"], jax.nn.sigmoid(a["age"]), rtol=1e-5)
    np.testing.assert_array_equal(b["hat"], a["hat"])
    np.testing.assert_array_equal(b["predictions"][:, :4], b["age"])


def test_attention_is_an_output_of_its_group_alone():
    model, variables, x = build(attention={"color": "sigmoid", "age": ""})
    outputs = jax.jit(model.apply)(variables, x)
    assert [k for k in outputs if k.startswith("attention")] == ["attention_color"]
    assert outputs["attention_color"].shape == (4, 8, 4)
    assert "mask_color" in variables["params"]
    assert "mask_age" not in variables["params"]


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_backbone_has_no_gradient_and_keeps_its_statistics(frozen):
    model, variables, x = build(frozen=frozen)

    def loss(params):
        outputs, updates = model.apply(
            {**variables, "params": params},
            x,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return jnp.sum(jnp.square(outputs["age"])), updates["batch_stats"]

    gradients, statistics = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    moved = any(np.any(g) for g in jax.tree.leaves(gradients["backbone"]))
    same = jax.tree.all(
        jax.tree.map(np.array_equal, statistics["backbone"], variables["batch_stats"]["backbone"])
    )
    assert (not moved, same) == (frozen, frozen)
    assert np.any(gradients["head_age"]["Dense_0"]["kernel"])


def test_identities_are_told_by_the_normalised_embedding():
    model, variables, x = build(identities=5)
    outputs, updated = model.apply(variables, x, True, mutable="batch_stats")
    assert outputs["identity"].shape == (4, 5)
    deviation = np.std(outputs["feature"], axis=0)
    normalised = (outputs["feature"] - np.mean(outputs["feature"], axis=0)) / np.sqrt(
        deviation**2 + 1e-5
    )
    np.testing.assert_allclose(outputs["embedding"], normalised, atol=1e-3)
    kernel = variables["params"]["head_identity"]["kernel"]
    np.testing.assert_allclose(outputs["identity"], outputs["embedding"] @ kernel, atol=1e-5)
    assert "bnneck" in updated["batch_stats"]
    plain = model.clone(identities=0).apply(variables, x)
    np.testing.assert_array_equal(plain["embedding"], model.apply(variables, x)["feature"])


def test_learned_weights_of_losses():
    model, variables, x = build(uncertainty=True)
    params = variables["params"]
    outputs = jax.jit(model.apply)(variables | {"params": params | {"log_variance_age": 0.7}}, x)
    context = Context(outputs, {"age": np.array([0, 1, 2, 3])})
    term = functools.partial(cross_entropies, logits=("age",))
    term = losses.qualify(term, "losses.age", uncertainty="age")
    found, _ = term(context)
    plain, _ = cross_entropy(context, logits="age")
    np.testing.assert_allclose(found, np.exp(-0.7) * plain + 0.35, rtol=1e-5)


def spec(name, **arguments):
    return {"name": name} | arguments


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"backbone": spec("resnet", depth=35)},
            "backbone 'resnet': depth is 35; it must be 18 or 34",
        ),
        ({"backbone": spec("resnet", deep=34)}, "argument of backbone 'resnet': 'deep'; did you"),
        (
            {"backbone": spec("resnet", depth="34")},
            "depth is '34'; it must be 18 or 34 or 50 or 101",
        ),
        ({"backbone": spec("alexnet", dense=0)}, "dense is 0; it must be true or false"),
        ({"backbone": spec("resnot")}, "unknown backbone 'resnot'; did you mean 'resnet'"),
        ({"backbone": spec("layers")}, "unknown backbone 'layers'"),
        ({"head": spec("conv")}, "unknown head 'conv'; known: dense, linear, normalized"),
        ({"head": spec("linear", width=3)}, "unknown argument of head 'linear': 'width'"),
        ({"head": spec("dense", dropout=0.3)}, "unknown argument of head 'dense': 'dropout'"),
        ({"attention": {"hat": "sigmoid"}}, "unknown group of attributes 'hat'"),
        ({"attention": {"age": "tanh"}}, "unknown attention mask 'tanh'"),
        ({"dropout": {"age": 1.5}}, "dropout.age is 1.5; it must be 0 or more and below 1"),
        ({"classes": {"age": 1}}, "classes.age is 1; it must be 2 or more"),
        ({"identities": -3}, "identities is -3; it must be 0 or more"),
        ({"classifier": "round"}, "classifier is 'round'; it must be linear or cosine"),
        ({"dropuot": {}}, "unknown argument of model 'classifier': 'dropuot'; did you mean"),
        ({"name": "layers"}, "unknown model 'layers'"),
    ],
)
def test_what_a_network_cannot_be_is_refused(fields, message):
    given = spec("classifier", classes=CLASSES, backbone=spec("alexnet")) | fields
    with pytest.raises(InputError, match=message):
        jax.eval_shape(build_.model(given).init, KEY, np.zeros((1, 64, 64, 3)))


def test_what_a_network_lacks_is_named():
    with pytest.raises(InputError, match="model: missing a required argument: 'backbone'"):
        build_.model(spec("classifier", classes=CLASSES))


def test_a_network_may_know_identities_alone():
    given = spec("classifier", classes={}, identities=5, backbone=spec("alexnet", dense=False))
    outputs = jax.eval_shape(
        build_.model(given).init_with_output, KEY, np.zeros((2, 64, 64, 3), np.float32)
    )[0]
    assert outputs["identity"].shape == (2, 5)
    assert "predictions" not in outputs


def test_without_a_classifier_the_embedding_still_has_its_batchnorm():
    given = spec("classifier", classes={}, identities=0, classifier="none")
    given["backbone"] = spec("alexnet", dense=False)
    outputs, variables = jax.eval_shape(
        build_.model(given).init_with_output, KEY, np.zeros((2, 64, 64, 3), np.float32)
    )
    assert "identity" not in outputs
    assert "bnneck" in variables["params"]
    assert "head_identity" not in variables["params"]


def test_false_leaves_the_dense_layers_out():
    given = spec("classifier", classes=CLASSES, backbone=spec("alexnet", dense=False))
    params = jax.eval_shape(build_.model(given).init, KEY, np.zeros((1, 64, 64, 3)))["params"]
    assert "dense1" not in params["backbone"]


def test_a_backbone_from_outside():
    given = spec("classifier", classes=CLASSES)
    given["backbone"] = spec("tests.models.test_classifier:Tiny")
    assert isinstance(build_.model(given).backbone, Tiny)


@pytest.mark.parametrize("variant", source_b.VARIANTS)
def test_every_variant_of_source_b_has_a_model_and_a_loss(variant):
    config = source_b.get_config(variant)
    columns = {"identity": np.array([0, 7, 3]), "camid": np.array([1, 2, 1])}
    dataset = Dataset(Schema("made", {}), lambda split: columns)
    config = experiment.open_sides(config, dataset).config
    assert config.model.identities == (8 if variant == "identity" else 0)
    model = build_.model(config.model)
    x = jax.ShapeDtypeStruct((2, 128, 64, 3), np.float32)
    outputs, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    batch = {name: np.zeros(2, np.int32) for name in config.model.classes}
    batch |= {"mask": np.ones(2, bool), "pid": np.ones(2, int), "identity": np.ones(2, int)}
    objective = build_.objective(config)

    def sums(outputs):
        context = Context(outputs, batch)
        return losses.evaluate_terms(objective.terms, objective.metrics, context)

    found = jax.eval_shape(sums, outputs)
    assert {f"loss/{name}" for name in source_b.GROUPS} <= found.keys()
    has_masks = any(name.startswith("mask") for name in variables["params"])
    assert has_masks == (variant in source_b.ATTENTION)
    assert model.frozen_parameters() == (("^backbone/",) if variant == "frozen" else ())


def test_another_backbone_is_an_argument_of_the_config():
    config = source_b.get_config("plain,resnet,depth=34,last_stride=1")
    assert config.model.backbone.depth == 34
    assert config.model.pretrained == ""
    assert build_.model(config.model).backbone == resnet.Model(34, last_stride=1)
    with pytest.raises(ValueError, match="unknown variant 'resnet'"):
        source_b.get_config("resnet")


def with_weights(backbone, source, variables):
    config = source_b.get_config()
    config.model.backbone, config.model.pretrained = backbone, source
    return build_.pretrained_variables(config, variables)


def test_published_weights_reach_the_backbone_and_nothing_else():
    added = {"pooling": "gem", "attention": (3,), "non_local": (0, 1, 0, 0, 0, 0, 0)}
    backbone = spec("efficientnet_lite", same_padding=True, **added)
    model = build_.model(spec("classifier", classes=CLASSES, backbone=backbone))
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    variables = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(model.init, KEY, x)
    )
    found = with_weights(backbone, "auto", variables)
    _, expected = efficientnet_lite.make_pretrained()
    for kind in ("params", "batch_stats"):
        loaded = dict(found[kind]["backbone"])
        for name in {"attention3", "gem", "non_local2_1"} & loaded.keys():  # which the file has not
            pair = loaded.pop(name), variables[kind]["backbone"][name]
            assert jax.tree.all(jax.tree.map(lambda a, b: a is b, *pair))
        assert jax.tree.all(jax.tree.map(np.array_equal, loaded, expected[kind]))
    assert found["params"]["head_age"] is variables["params"]["head_age"]
    assert with_weights(backbone, "", variables) is variables


def test_a_backbone_without_running_statistics_gets_its_weights(tmp_path):
    """AlexNet has no BatchNorm, its heads have."""
    model = build_.model(
        spec("classifier", classes=CLASSES, backbone=spec("alexnet"), head=spec("normalized"))
    )
    x = np.zeros((1, 64, 64, 3), np.float32)
    variables = jax.tree.map(np.asarray, jax.jit(model.init)(KEY, x))
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]["backbone"]):
        keys = [key.key for key in path]
        value = leaf.transpose((3, 2, 0, 1) if leaf.ndim == 4 else None)
        rules = alexnet.TORCH_NAMES["torchvision"]
        tensors[namings.name_of(keys, rules)] = np.ascontiguousarray(value) + 1
    path = safetensors(tmp_path / "w.safetensors", tensors)
    found = with_weights(spec("alexnet"), str(path), variables)
    bias = found["params"]["backbone"]["conv1"]["bias"]
    np.testing.assert_allclose(bias, variables["params"]["backbone"]["conv1"]["bias"] + 1)
    assert found["batch_stats"] == variables["batch_stats"]


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("resnet", "auto", "efficientnet_lite's weights, and not resnet's"),
        ("tests.models.test_classifier:Tiny", "x.pth", "no published weights of 'tests"),
        ("resnet", "no.pth", "no.pth: there is no such file"),
        ("resnet", "hf:a/b", "it must be hf:OWNER/NAME/FILE"),
    ],
)
def test_weights_that_cannot_be_had(name, source, message):
    variables = {"params": {"backbone": {"conv1": {"kernel": np.zeros((7, 7, 3, 64))}}}}
    with pytest.raises(InputError, match=message):
        with_weights(spec(name), source, variables)


def test_a_download_that_fails_says_what_to_do(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def refuse(*_):
        raise OSError("no network\nand more")

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    with pytest.raises(InputError, match=r"\(no network\); .*co/a/b/resolve/main/c/d.safetensors"):
        pretrained.find("hf:a/b/c/d.safetensors")
    monkeypatch.setattr(hub, "hf_hub_download", lambda repo, file: f"/{repo}/{file}")
    assert str(pretrained.find("hf:a/b/c.pth")) == "/a/b/c.pth"
    assert str(published.find("hf:a/b/c.safetensors")) == "/a/b/c.safetensors"
