"""Source B's networks: groups of outputs, heads, masks, and where their weights come from."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import source_b
from market_jax import experiment, losses, networks
from market_jax.errors import InputError
from market_jax.models import classifier, heads
from market_jax.models.attention import MASKS, ResidualAttention, StageAttention
from market_jax.models.layers import batch_norm, conv
from market_jax.weights import pretrained

SIZE, KEY = (64, 32), jax.random.key(0)
CLASSES = {"age": 4, "hat": 2, "bag": 2, "color": 3}


class Tiny(nn.Module):
    """A backbone with the outputs that one has."""

    @nn.compact
    def __call__(self, x, train=False):
        x = conv(6, 3, 8, dtype=jnp.float32)(x)
        x = nn.relu(batch_norm(train)(x))
        return {"map": x, "embedding": jnp.mean(x, axis=(1, 2))}


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
    assert shapes == logits | {"embedding": (4, 6), "predictions": (4, 4 + 3 + 2)}
    parts = np.split(np.asarray(outputs["predictions"]), [4, 7], axis=1)
    np.testing.assert_allclose(parts[0], jax.nn.softmax(outputs["age"]), rtol=1e-5)
    np.testing.assert_allclose(parts[1], jax.nn.softmax(outputs["color"]), rtol=1e-5)
    np.testing.assert_allclose(parts[2][:, 0], jax.nn.sigmoid(outputs["hat"][:, 1]), rtol=1e-5)
    labels = np.array([0, 1, 1, 0])
    found = losses.cross_entropy(outputs, {"hat": labels}, key="hat")
    expected = optax.sigmoid_binary_cross_entropy(outputs["hat"][:, 1], labels)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_squash_is_a_sigmoid_before_the_cross_entropy():
    (plain, variables, x), (squashed, *_) = build(), build(squash=True)
    a, b = (jax.jit(m.apply)(variables, x) for m in (plain, squashed))
    np.testing.assert_allclose(b["age"], jax.nn.sigmoid(a["age"]), rtol=1e-5)
    np.testing.assert_array_equal(b["hat"], a["hat"])
    np.testing.assert_array_equal(b["predictions"][:, :4], b["age"])


@pytest.mark.parametrize("mask", MASKS)
def test_masks_sum_as_they_say(mask):
    """Source B's own leaves 1 + mask at 1, to a part in a thousand: the attention does nothing."""
    x = jax.random.normal(jax.random.key(0), (3, 4, 2, 128))
    block = ResidualAttention(mask)
    (weighed, found), _ = jax.jit(block.init_with_output)(jax.random.key(1), x)
    np.testing.assert_allclose(weighed, x * (1 + found), rtol=1e-5)
    found = np.asarray(found)
    assert (found >= 0).all()
    assert (found <= 1).all()
    if mask == "softmax_all":
        np.testing.assert_allclose(found.sum(axis=(1, 2, 3)), 1, rtol=1e-4)
        assert found.max() < 2e-3
    elif mask == "softmax":
        np.testing.assert_allclose(found.sum(axis=(1, 2)), 1, rtol=1e-4)
    else:
        assert found.std() > 0.02, "every place is weighed alike"


def test_a_mask_between_stages_begins_near_one():
    x = jax.random.normal(jax.random.key(0), (2, 8, 4, 16))
    weighed = StageAttention().init_with_output(jax.random.key(1), x)[0]
    np.testing.assert_allclose(weighed, x * (1 + jax.nn.sigmoid(-3.0)), rtol=1e-5)


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
    batch = {"age": np.array([0, 1, 2, 3])}
    found = losses.uncertain_cross_entropies(outputs, batch, keys=("age",), group="age")
    plain = losses.cross_entropy(outputs, batch, key="age")
    np.testing.assert_allclose(found, np.exp(-0.7) * plain + 0.35, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "resnet depth=35"}, r"unknown model\.depth 35"),
        ({"backbone": "resnet deep=34"}, "unknown field of resnet 'deep'; known: .*depth"),
        ({"backbone": "resnot"}, "unknown backbone 'resnot'; known: alexnet, .*resnet"),
        ({"backbone": "layers"}, "unknown backbone 'layers'; known: alexnet"),
        ({"head": "conv"}, "unknown head 'conv'; known: dense, linear, normalized"),
        ({"head": "linear width=3"}, "unknown field of linear 'width'"),
        ({"attention": {"hat": "sigmoid"}}, "unknown group of attributes 'hat'; known: age, bin"),
        ({"attention": {"age": "tanh"}}, "unknown attention mask 'tanh'; known: sigmoid, softmax"),
    ],
)
def test_what_a_network_cannot_be_is_refused(fields, message):
    given = {"name": "classifier", "classes": CLASSES, "backbone": "alexnet"} | fields
    with pytest.raises(InputError, match=message):
        jax.eval_shape(networks.build(given, "float32").init, KEY, np.zeros((1, 64, 64, 3)))


@pytest.mark.parametrize("variant", source_b.VARIANTS)
def test_every_variant_of_source_b_has_a_model_and_a_loss(variant):
    config = source_b.get_config(variant)
    config = experiment.count_identities(config, {"identity": np.array([0, 7, 3])})
    assert config.model.identities == (8 if variant == "identity" else 0)
    model = experiment.make_model(config)
    x = jax.ShapeDtypeStruct((2, 128, 64, 3), np.float32)
    outputs, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    batch = {name: np.zeros(2, np.int32) for name in config.model.classes}
    batch |= {"mask": np.ones(2, bool), "pid": np.ones(2, int), "identity": np.ones(2, int)}
    total, metrics = jax.eval_shape(experiment.make_loss(config), outputs, batch)
    assert total.shape == ()
    assert {f"loss/{name}" for name in source_b.GROUPS} <= metrics.keys()
    has_masks = any(name.startswith("mask") for name in variables["params"])
    assert has_masks == (variant in source_b.ATTENTION)


def test_published_weights_reach_the_backbone_and_nothing_else():
    fields = {"name": "classifier", "classes": CLASSES, "pretrained": "auto"}
    fields["backbone"] = "efficientnet_lite same_padding=true pooling=gem attention=[3]"
    model = networks.build(fields, "float32")
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    variables = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(model.init, KEY, x)
    )
    found = networks.with_weights(fields, variables)
    _, expected = networks.make_pretrained()
    for kind in ("params", "batch_stats"):
        backbone = dict(found[kind]["backbone"])
        for name in {"attention3", "gem"} & backbone.keys():  # which the file has not
            pair = backbone.pop(name), variables[kind]["backbone"][name]
            assert jax.tree.all(jax.tree.map(lambda a, b: a is b, *pair))
        assert jax.tree.all(jax.tree.map(np.array_equal, backbone, expected[kind]))
    assert found["params"]["head_age"] is variables["params"]["head_age"]
    assert networks.with_weights(fields | {"pretrained": ""}, variables) is variables


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "resnet", "pretrained": "auto"}, "efficientnet_lite's weights, and not res"),
        ({"backbone": "vae", "pretrained": "x.pth"}, "no published weights of 'vae' can be read"),
        ({"backbone": "resnet", "pretrained": "no.pth"}, "no.pth: there is no such file"),
        ({"backbone": "resnet", "pretrained": "hf:a/b"}, "it must be hf:OWNER/NAME/FILE"),
    ],
)
def test_weights_that_cannot_be_had(fields, message):
    variables = {"params": {"backbone": {"conv1": {"kernel": np.zeros((7, 7, 3, 64))}}}}
    with pytest.raises(InputError, match=message):
        networks.with_weights(fields, variables)


def test_a_download_that_fails_says_what_to_do(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def refuse(*_):
        raise OSError("no network\nand more")

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    with pytest.raises(InputError, match=r"\(no network\); .*co/a/b/resolve/main/c/d.safetensors"):
        pretrained.find("hf:a/b/c/d.safetensors")
    monkeypatch.setattr(hub, "hf_hub_download", lambda repo, file: f"/{repo}/{file}")
    assert str(pretrained.find("hf:a/b/c.pth")) == "/a/b/c.pth"
