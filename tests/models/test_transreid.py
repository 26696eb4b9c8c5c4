"""TransReID's groups of patches, and its experiment as it is built."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, transreid
from market_jax import build
from market_jax.errors import InputError
from market_jax.models import transreid as model_
from market_jax.models.backbones import resnet, vit
from market_jax.training import transfer

KEY, SIZE = jax.random.key(0), (64, 32)  # 5x2 patches every 12 pixels


def experiment(arguments="vit,size=tiny,depth=2"):
    config = transreid.get_config(arguments)
    config.model.identities = 5
    config.model.backbone.cameras = (1, 2, 3)
    return config


def shapes_of(config):
    """The outputs' and the variables' shapes."""
    images = jax.ShapeDtypeStruct((2, *SIZE, 3), np.float32)
    return jax.eval_shape(build.model(config.model).init_with_output, KEY, images)


def ones(config):
    """Parameters that are all 1."""
    return jax.tree.map(
        lambda leaf: np.ones(leaf.shape, np.float32), shapes_of(config)[1]["params"]
    )


def moves(config):
    """Parameter -> how far a step goes for a gradient of 1, over the learning rate."""
    optimizer = build.optimizer(config, build.model(config.model), 10)

    @jax.jit
    def update(gradients):
        params = jax.tree.map(jnp.zeros_like, gradients)
        return optimizer.update(gradients, optimizer.init(params), params)[0]

    rate = config.optimizer.learning_rate
    leaves = jax.tree_util.tree_leaves_with_path(update(ones(config)))
    return {"/".join(k.key for k in path): float(u.ravel()[0]) / -rate for path, u in leaves}


def constant(config, **settings):
    """Without a warm-up, at a constant rate."""
    config.optimizer.schedule = {"name": "constant"}
    config.optimizer.update(warmup_epochs=0.0, **settings)
    return config


def test_patches_are_rearranged_by_hand():
    """The order of the public code, where the first two of eight patches move."""
    patches = np.arange(1, 9, dtype=np.float32).reshape(1, 8, 1)
    found = model_.rearrange(patches, 2, 2, 4)
    assert found[:, 0, :, 0].tolist() == [[3, 7], [4, 8], [5, 1], [6, 2]]
    odd = model_.rearrange(patches[:, :7], 2, 2, 3)
    assert odd[:, 0, :, 0].tolist() == [[3, 7], [4, 1], [5, 2]]
    odd = model_.rearrange(patches[:, :7], 2, 2, 7)
    assert odd[:, 0, 0, 0].tolist() == [3, 7, 4, 1, 5, 2, 6], "of 3 4 5 6 and 7 1 2 1"
    with pytest.raises(InputError, match=r"model\.groups is 9; there are only 8 patches"):
        model_.rearrange(patches, 2, 2, 9)


def test_every_group_is_read_by_a_copy_with_the_class_token():
    backbone = vit.Model("tiny", 2, patch_stride=12)
    model = model_.Model({}, backbone, groups=2, shift=3, shuffle=2)
    x = jax.random.uniform(KEY, (2, *SIZE, 3))
    shapes = jax.eval_shape(model.init, KEY, x)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32) / 8, shapes)
    variables = transfer.copy_layers(variables)
    outputs = jax.jit(model.apply)(variables, x)
    seen = jax.jit(backbone.apply)({"params": variables["params"]["backbone"]}, x)
    copy = {"params": variables["params"]["branch_jigsaw"]}
    read = jax.jit(backbone.last_stage("copy").apply)
    groups = model_.rearrange(seen["stage1"].reshape(2, 10, 192), 3, 2, 2)
    for number, group in enumerate(groups, start=1):
        tokens = jnp.concatenate([seen["prefix_tokens"], group], axis=1)[:, None]
        expected = read(copy, tokens)[:, 0, 0]
        np.testing.assert_allclose(outputs[f"feature_jigsaw{number}"], expected, atol=1e-4)
    whole = [seen["feature"], outputs["feature_jigsaw1"] / 2, outputs["feature_jigsaw2"] / 2]
    np.testing.assert_allclose(outputs["embedding"], np.concatenate(whole, axis=1), atol=1e-4)


def test_a_backbone_without_tokens_is_refused():
    model = model_.Model({}, resnet.Model(18))
    with pytest.raises(InputError, match="needs a backbone with tokens: vit"):
        jax.eval_shape(model.init, KEY, jnp.zeros((1, *SIZE, 3)))


def test_the_experiment_has_every_output_that_its_losses_read():
    config = experiment()
    outputs, variables = shapes_of(config)
    read = [spec.get("logits", spec.get("features")) for spec in config.losses.values()]
    assert len(read) == 10
    assert set(read) <= set(outputs)
    assert sum(spec.weight for spec in config.losses.values()) == pytest.approx(2)
    assert outputs["map"].shape == (2, 5, 2, 192)
    assert outputs["embedding"].shape == (2, 5 * 192)
    params = variables["params"]
    assert set(params["branch_jigsaw"]) == {"block1", "norm"}
    build.objective(config)
    build.augment(config)
    assert transreid.get_config("size=tiny").model == transreid.get_config("vit,size=tiny").model
    with pytest.raises(ValueError, match="'resnet' is more than a backbone and its arguments"):
        transreid.get_config("resnet")


def test_biases_learn_at_twice_the_rate():
    moved = moves(constant(experiment()))
    assert moved["backbone/block0/qkv/bias"] == pytest.approx(2)
    assert moved["branch_jigsaw/block1/fc1/bias"] == pytest.approx(2)
    assert moved["backbone/block0/qkv/kernel"] == pytest.approx(1)


def test_learning_rates_fall_from_block_to_block():
    rates = common.decay_layers(2, 0.5)
    moved = moves(constant(experiment(), lr_multipliers=rates))
    expected = {"head_identity_global/kernel": 1, "backbone/norm/scale": 1}
    expected |= {"backbone/block1/fc1/bias": 0.5, "branch_jigsaw/block1/norm2/scale": 0.5}
    expected |= {"backbone/block0/out/kernel": 0.25, "backbone/patch_embed/bias": 0.125}
    expected |= {f"backbone/{name}": 0.125 for name in ("cls_token", "pos_embed", "camera_embed")}
    assert {name: moved[name] for name in expected} == pytest.approx(expected)


def test_blocks_from_the_tenth_on_have_their_own_rates():
    """The first pattern that fits counts, and "block1" begins "block11" too."""
    rates = dict(common.decay_layers(12, 0.5))
    assert len(rates) == 13
    assert rates[r"^(backbone|branch_\w+)/block1/"] == 0.5**11
    assert rates[r"^(backbone|branch_\w+)/block11/"] == 0.5


def test_with_lora_the_optimizer_moves_the_small_matrices_and_what_is_new():
    config = constant(experiment("vit,size=tiny,depth=2,lora_rank=2"), lr_multipliers=())
    moved = {name for name, far in moves(config).items() if far}
    small = {
        f"{part}/{layer}_lora/{matrix}"
        for part in ("backbone/block0", "backbone/block1", "branch_jigsaw/block1")
        for layer in ("qkv", "out")
        for matrix in ("down", "up")
    }
    small.add("backbone/camera_embed")
    parts = ("global", *(f"jigsaw{number}" for number in range(1, 5)))
    new = {f"{name}_{part}" for part in parts for name in ("bnneck", "head_identity")}
    assert {name for name in moved if name.split("/")[0] not in new} == small
    assert {name.split("/")[0] for name in moved} >= new
