"""Vision Transformers by their outputs: what a block sees, what is trained, and cameras."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.models.backbones import vit
from market_jax.weights import pretrained
from tests.models.golden_vit import fill, images
from tests.models.test_vit import KEY, SMALL, load, sevens, template, tensors_of
from tests.weights.makers import safetensors

TINY = vit.Model("tiny", 2)


@pytest.fixture(scope="module")
def variables(tmp_path_factory):
    return load(tmp_path_factory.mktemp("tiny"), TINY, tensors_of(TINY, "timm"))[0]


def test_the_outputs(variables):
    outputs = jax.eval_shape(
        TINY.clone(patch_stride=12, registers=3).init_with_output, KEY, images()
    )
    shapes = {name: value.shape for name, value in outputs[0].items()}
    assert shapes == {
        "stage1": (2, 5, 3, 192),
        "stage2": (2, 5, 3, 192),
        "map": (2, 5, 3, 192),
        "feature": (2, 192),
        "embedding": (2, 192),
        "prefix_tokens": (2, 4, 192),
    }
    mean = TINY.clone(pooling="average").apply(variables, images())
    np.testing.assert_allclose(mean["feature"], mean["map"].mean(axis=(1, 2)), atol=1e-5)
    with pytest.raises(InputError, match="unknown pooling 'median'"):
        TINY.clone(pooling="median").apply(variables, images())


def test_bfloat16_is_near(variables):
    half = TINY.clone(dtype=jnp.bfloat16)
    found, expected = (jax.jit(m.apply)(variables, images())["feature"] for m in (half, TINY))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_pictures_pass_by_residuals_in_training_alone(variables):
    """The first block has a rate of 0; each picture is drawn for itself."""
    model, x = TINY.clone(drop_path=0.5), jnp.tile(images()[:1], (16, 1, 1, 1))
    stages = jax.jit(functools.partial(model.apply, train=True))(
        variables, x, rngs={"dropout": KEY}
    )
    plain = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(stages["stage1"], plain["stage1"], atol=1e-5)
    first, second = (np.asarray(stages[name])[:, 0, 0] for name in ("stage1", "stage2"))
    alike = {np.isclose(row, second, atol=1e-3).all(axis=1).tobytes() for row in second}
    assert len(alike) == 4, "with and without either residual"
    assert 0 < np.sum(np.all(first == second, axis=1)) < 16, "some pass by both"


def test_a_copy_of_the_last_stage_sees_what_it_is_given(variables):
    """With the backbone's own weights and all tokens it says what the backbone says."""
    outputs = jax.jit(TINY.apply)(variables, images())
    patches = outputs["stage1"].reshape(2, 1, -1, 192)
    tokens = jnp.concatenate([outputs["prefix_tokens"][:, None], patches], axis=2)
    own = {name: variables["params"][name] for name in ("block1", "norm")}
    found = jax.jit(TINY.last_stage("copy").apply)({"params": own}, tokens)
    np.testing.assert_allclose(found[:, 0, 0], outputs["feature"], atol=1e-4)
    rest = outputs["map"].reshape(2, -1, 192)
    np.testing.assert_allclose(found[:, 0, 1:], rest, atol=1e-4)


def test_lora_begins_as_the_network_and_learns_alone(variables, tmp_path):
    model, own = TINY.clone(lora_rank=3), variables["params"]
    made = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * (path[-1].key != "up"), sevens(model)
    )
    path = safetensors(tmp_path / "w.safetensors", tensors_of(TINY, "timm"))
    found, unused = pretrained.load(path, made, vit.TORCH_NAMES, vit.TORCH_VALUES)
    assert unused == []
    outputs, plain = (
        jax.jit(m.apply)(v, images()) for m, v in ((model, found), (TINY, {"params": own}))
    )
    np.testing.assert_array_equal(outputs["feature"], plain["feature"])

    def total(params):
        outputs, _ = model.apply({"params": params}, images(), mutable=["batch_stats"])
        return jnp.sum(jnp.sin(outputs["feature"]))

    moved = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 0.01 * (path[-1].key == "up"), found["params"]
    )
    gradients = jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(total))(moved))
    reached = {
        "/".join(key.key for key in path) for path, leaf in gradients if np.any(np.asarray(leaf))
    }
    matrices = itertools.product(("block0", "block1"), ("qkv_lora", "out_lora"), ("down", "up"))
    norm = {"norm/scale", "norm/bias"}  # which the optimizer leaves
    assert reached == norm | {"/".join(names) for names in matrices}


CAMERAS = SMALL.clone(cameras=(0, 2, 5))


def test_a_camera_is_three_times_its_embedding_at_every_place():
    """As in TransReID; a picture of no known camera has the mean of the embeddings."""
    rng, x = np.random.default_rng(0), images()[:1]
    drawn = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), template(CAMERAS))
    variables = jax.tree.map(lambda a: a / 8, drawn)
    params = dict(variables["params"])
    table = params.pop("camera_embed")
    by_camera = jax.jit(lambda camera: CAMERAS.apply(variables, x, camera=camera)["feature"])
    alone = jax.jit(lambda params: SMALL.apply({"params": params}, x)["feature"])
    found = {camera: by_camera(np.array([camera])) for camera in (0, 2, 5, 1, 6, -1)}
    rows = {0: table[0], 2: table[1], 5: table[2]}
    for camera, feature in found.items():
        added = 3 * rows.get(camera, table.mean(axis=0))
        moved = {name: params[name] + added for name in ("class_position", "pos_embed")}
        np.testing.assert_allclose(feature, alone(params | moved), atol=1e-4)
    np.testing.assert_allclose(CAMERAS.apply(variables, x)["feature"], found[-1], atol=1e-4)
    assert np.abs(found[0] - found[5]).max() > 0.1


def test_a_model_that_tells_no_cameras_is_not_trained():
    with pytest.raises(InputError, match="does not tell its backbone 'vit' the cameras: cameras="):
        jax.eval_shape(functools.partial(CAMERAS.apply, train=True), template(CAMERAS), images())


def test_embeddings_of_cameras_are_read_and_not_overlooked(tmp_path):
    cameras = fill({"sie_embed": (3, 1, 192)})
    tensors = tensors_of(SMALL, "timm")
    params = load(tmp_path, CAMERAS, tensors | cameras)[0]["params"]
    np.testing.assert_array_equal(params["camera_embed"], cameras["sie_embed"][:, 0])
    with pytest.raises(InputError, match=r"sie_embed is not 0; .*cameras=\(1, 2, 3\)"):
        load(tmp_path, SMALL, tensors | cameras)
    with pytest.raises(InputError, match=r"sie_embed is \(3, 1, 192\).*the model has \(4, 192\)"):
        load(tmp_path, SMALL.clone(cameras=(1, 2, 3, 4)), tensors | cameras)
    nothing = {"sie_embed": 0 * cameras["sie_embed"]}
    assert load(tmp_path, SMALL, tensors | nothing)[1] == ["sie_embed"]
