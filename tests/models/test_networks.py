"""The networks that come with the convolutions: sizes, shapes, gradients, every way to compute."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.kernels import convolution
from market_jax.models import attributes_cnn, autoencoder, heads, vae
from market_jax.models.backbones import alexnet, densenet, efficientnet_lite, resnet

NETWORKS = {  # name -> (model, image size, parameters): PyTorch's definitions have as many
    "resnet18": (resnet.Model(18), (64, 32), 11_176_512),
    "resnet34": (resnet.Model(34), (64, 32), 21_284_672),
    "resnet50": (resnet.Model(50), (64, 32), 23_508_032),
    "efficientnet_lite": (efficientnet_lite.Model(), (64, 32), 3_371_008),
    "vae": (vae.Model(), (64, 64), 2_364_515),
    "autoencoder": (autoencoder.Model(), (16, 8), 2_294_147),
}
F32 = jnp.float32
SMALL = {  # name -> (module, input)
    "residual block": (resnet.Block(4, 2, bottleneck=False, dtype=F32), (4, 9, 8, 3)),
    "bottleneck": (resnet.Block(4, 1, bottleneck=True, dtype=F32), (4, 4, 2, 6)),
    "inverted residual": (efficientnet_lite.Block(4, 5, 2, 3, dtype=F32), (4, 9, 8, 5)),
    "vae": (vae.Model(widths=(4, 6), latent=3), (4, 16, 8, 3)),
    "autoencoder": (autoencoder.Model(widths=(4, 6)), (4, 9, 10, 3)),
}
WAYS = [w for w in convolution.IMPLEMENTATIONS if w != "onednn" or convolution.has_onednn()]


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_parameter_counts(name):
    model, size, expected = NETWORKS[name]
    params = jax.eval_shape(model.init, jax.random.key(1), images((1, *size, 3)))["params"]
    found = sum(p.size for p in jax.tree.leaves(params))
    assert found == expected, "not the published network's size"


def images(shape):
    return jax.random.uniform(jax.random.key(0), shape)


def outputs_and_gradients(model, variables, x):
    """(sum of all outputs' sines, outputs and BatchNorm's updates), gradients."""

    def loss(params):
        outputs, updates = model.apply(
            {**variables, "params": params},
            x,
            train=True,
            rngs={"sample": jax.random.key(2)},
            mutable=["batch_stats"],
        )
        return sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(outputs)), (outputs, updates)

    return jax.value_and_grad(loss, has_aux=True)(variables["params"])


@pytest.mark.parametrize("name", SMALL)
def test_every_way_gives_the_same_outputs_and_gradients(name):
    model, shape = SMALL[name]
    variables = jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(1), images(shape)
    )
    results = {}
    for way in WAYS:
        run = convolution.applying(way, functools.partial(outputs_and_gradients, model))
        results[way] = jax.jit(run)(variables, images(shape))
    reference = jax.tree_util.tree_leaves_with_path(results.pop("lax"))
    for way, result in results.items():
        for (path, b), a in zip(reference, jax.tree.leaves(result), strict=True):
            scale = 1 + np.abs(b).max()
            where = f"{way}: {jax.tree_util.keystr(path)}"
            np.testing.assert_allclose(a / scale, b / scale, atol=5e-4, err_msg=where)


@pytest.mark.parametrize(("last_stride", "rows"), [(2, 2), (1, 4)])
def test_resnet_map_and_embedding(last_stride, rows):
    model = resnet.Model(18, last_stride, classes={"pid": 5})
    found = jax.eval_shape(model.init_with_output, jax.random.key(1), images((4, 64, 32, 3)))[0]
    shapes = {k: v.shape for k, v in found.items()}
    ends = {"map": (4, rows, rows // 2, 512), "feature": (4, 512), "embedding": (4, 512)}
    stages = {"stage1": (4, 16, 8, 64), "stage2": (4, 8, 4, 128), "stage3": (4, 4, 2, 256)}
    assert shapes == ends | stages | {"stage4": (4, rows, rows // 2, 512), "pid": (4, 5)}


@pytest.mark.parametrize("name", ["vae", "autoencoder"])
def test_reconstructions_have_the_images_shape_and_range(name):
    """A sigmoid ends the autoencoder, and nothing the VAE; a draw is for training alone."""
    model, shape = SMALL[name]
    variables = jax.tree.map(lambda x: 20 * x, model.init(jax.random.key(1), images(shape)))
    found = model.apply(variables, images(shape))["reconstruction"]
    assert found.shape == shape
    assert ((found >= 0) & (found <= 1)).all() == (name == "autoencoder")
    np.testing.assert_array_equal(found, model.apply(variables, images(shape))["reconstruction"])


def test_what_a_network_cannot_be_is_refused():
    key, x = jax.random.key(0), jnp.zeros((1, 20, 16, 3))
    with pytest.raises(InputError, match=r"unknown model\.depth 35; known: 18, 34, 50, 101"):
        resnet.Model(depth=35).init(key, x)
    with pytest.raises(InputError, match="last_stride is 3"):
        resnet.Model(last_stride=3).init(key, x)
    with pytest.raises(InputError, match="image of 20x16 cannot be halved 4 times"):
        vae.Model().init(key, x)


CLASSES = {"age": 4, "hat": 2}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (resnet.Model(18, attention=(5,)), "attention has stage 5; the stages are 1 to 4"),
        (densenet.Model(attention=(0,)), "attention has stage 0; the stages are 1 to 4"),
        (efficientnet_lite.Model(attention=(8,)), "attention has stage 8; .* 1 to 7"),
        (alexnet.Model(attention=(6,)), "attention has stage 6; the stages are 1 to 5"),
        (alexnet.Model(dropout=1.0), "dropout is 1.0; it must be 0 or more, below 1"),
        (alexnet.Model(classes={"hat": 1}), "classes.hat is 1; it must be 2 or more"),
        (resnet.Model(18, classes={"hat": 1}), "classes.hat is 1; it must be 2 or more"),
        (attributes_cnn.Model(CLASSES, dropout=-0.1), r"model\.dropout is -0.1"),
        (attributes_cnn.Model({"hat": 0}), r"model\.classes\.hat is 0; it must be 2 or more"),
        (attributes_cnn.Model(CLASSES, widths=(4, 6, 8, 5)), "second must equal the fourth"),
        (attributes_cnn.Model(CLASSES, final_pool=(17, 4)), r"\(17, 4\); .* is 16x16"),
        (heads.DenseHead(2, width=0), r"head\.width is 0; it must be 1 or more"),
        (heads.NormalizedHead(2, width=0), r"head\.width is 0; it must be 1 or more"),
        (vae.Model(latent=0), r"model\.latent is 0; it must be 1 or more"),
        (vae.Model(widths=()), r"model\.widths is \(\); it must be one number or more"),
        (autoencoder.Model(bottleneck=-1), r"model\.bottleneck is -1; it must be 0 or more"),
        (autoencoder.Model(widths=(4, 0)), r"model\.widths is \(4, 0\)"),
    ],
)
def test_values_out_of_range_are_refused(model, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


def test_alexnet_needs_63_pixels_on_each_side():
    x = jnp.zeros((1, 63, 63, 3))
    shapes = jax.eval_shape(alexnet.Model().init_with_output, jax.random.key(0), x)[0]
    assert shapes["map"].shape == (1, 1, 1, 256)
    with pytest.raises(InputError, match="an image of 63x62 is too small"):
        jax.eval_shape(alexnet.Model().init, jax.random.key(0), x[:, :, :62])


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_keeps_parameters_and_outputs_in_float32(name):
    model, size, _ = NETWORKS[name]
    model, x = model.clone(dtype=jnp.bfloat16), images((2, *size, 3))
    variables = jax.eval_shape(model.init, jax.random.key(1), x)
    outputs = jax.eval_shape(model.apply, variables, x)
    ends = {k: v for k, v in outputs.items() if not k.startswith("stage")}
    assert all(v.dtype == jnp.float32 for v in jax.tree.leaves((variables, ends)))
    stages = [v for k, v in outputs.items() if k.startswith("stage")]
    assert all(v.dtype == jnp.bfloat16 for v in stages), "maps between stages are not widened"
