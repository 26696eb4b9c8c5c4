"""The networks that come with the convolutions: sizes, shapes, gradients, every way to compute."""

import contextlib
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_jax.errors import InputError
from market_jax.kernels import convolution, fused
from market_jax.models import attention, attributes_cnn, autoencoder, inverted_residuals, norms, vae
from market_jax.models.backbones import (
    alexnet,
    densenet,
    efficientnet_lite,
    mobilenet_v2,
    osnet,
    resnet,
)

NETWORKS = {  # name -> (model, image size, parameters): PyTorch's definitions have as many
    "resnet18": (resnet.Model(18), (64, 32), 11_176_512),
    "resnet34": (resnet.Model(34), (64, 32), 21_284_672),
    "resnet50": (resnet.Model(50), (64, 32), 23_508_032),
    # the published files have 4,652,008, 5,416,680 and 6,092,072; 1,281,000 are ImageNet's head
    "efficientnet_lite": (efficientnet_lite.Model(), (64, 32), 3_371_008),
    "efficientnet_lite1": (efficientnet_lite.Model(1), (64, 32), 4_135_680),
    "efficientnet_lite2": (efficientnet_lite.Model(2), (64, 32), 4_811_072),
    "efficientnet_lite3": (efficientnet_lite.Model(3), (64, 32), 6_916_096),
    "efficientnet_lite4": (efficientnet_lite.Model(4), (64, 32), 11_725_568),
    "mobilenet_v2": (mobilenet_v2.Model(), (64, 32), 2_223_872),
    "vae": (vae.Model(), (64, 64), 2_364_515),
    "autoencoder": (autoencoder.Model(), (16, 8), 2_294_147),
}
F32 = jnp.float32
SMALL = {  # name -> (module, input)
    "residual block": (resnet.Block(4, 2, bottleneck=False, dtype=F32), (4, 9, 8, 3)),
    "bottleneck": (resnet.Block(4, 1, bottleneck=True, dtype=F32), (4, 4, 2, 6)),
    "residual block, IBN-a": (resnet.Block(4, 2, False, F32, "a"), (4, 9, 8, 3)),
    "residual block, IBN-b": (resnet.Block(4, 2, False, F32, "b"), (4, 9, 8, 3)),
    "inverted residual": (inverted_residuals.Block(4, 5, 2, 3, dtype=F32), (4, 9, 8, 5)),
    "omni-scale block": (osnet.Block(64, "after", dtype=F32), (4, 9, 8, 6)),
    "omni-scale block, AIN": (osnet.Block(64, "inside", dtype=F32), (4, 4, 5, 64)),
    "vae": (vae.Model(widths=(4, 6), latent=3), (4, 16, 8, 3)),
    "autoencoder": (autoencoder.Model(widths=(4, 6)), (4, 8, 12, 3)),
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


FOLDED = {  # name -> convolutions that have a BatchNorm behind them
    "residual network": (resnet.Model(18, non_local=(0, 1, 0, 0)), 21),
    "inverted residuals": (efficientnet_lite.Model(), 49),
    "vae": (vae.Model(widths=(4, 6), latent=3), 4),
    "autoencoder": (autoencoder.Model(widths=(4, 6)), 4),
    "densenet": (densenet.Model(), 0),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FOLDED)
def test_folding_changes_no_output(name, way):
    model, count = FOLDED[name]
    x = images((3, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(1), x)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda v: v + 0.1 * np.abs(rng.normal(size=v.shape)), variables)
    apply = convolution.applying(way, model.apply)
    # by lax and unfolded, in which BatchNorm stands alone
    alone = functools.partial(apply_batch_norm_alone, model)
    expected = jax.jit(convolution.applying("lax", alone))(variables, x)
    folded = jax.jit(functools.partial(norms.fold, apply, image_size=(32, 32)))(variables)
    assert len(jax.tree.leaves(folded)) == 2 * count, "weights and bias of each"
    for name, found in jax.jit(apply)({**variables, **folded}, x).items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(found / scale, expected[name] / scale, atol=1e-5, err_msg=name)
    if folded:  # they are what is used
        zero = jax.tree.map(jnp.zeros_like, folded)
        others = jax.jit(apply)({**variables, **zero}, x)
        assert any(
            (others[n] != expected[n]).any() for n in ("feature", "embedding") if n in others
        )


def apply_batch_norm_alone(model, variables, x):
    def unit(conv, norm, x, activation="", residual=None):
        return fused.activate(norm(conv(x)), None, activation, residual)

    modules = [
        m for m in (attention, resnet, inverted_residuals, vae, autoencoder) if hasattr(m, "unit")
    ]
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(mock.patch.object(module, "unit", unit))
        return model.apply(variables, x)


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


CLASSES = {"age": 4, "hat": 2}
ATTRIBUTES = attributes_cnn.Model(CLASSES)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (attributes_cnn.Model(CLASSES, widths=(4, 6, 8, 5)), "second must equal the fourth"),
        (attributes_cnn.Model(CLASSES, final_pool=(17, 4)), r"\(17, 4\) on a map of 16x16"),
        (vae.Model(widths=()), r"model\.widths is \(\); it must be one number or more"),
        (autoencoder.Model(widths=()), r"model\.widths is \(\); it must be one number or more"),
    ],
)
def test_arguments_that_do_not_fit_each_other_are_refused(model, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (
            ATTRIBUTES,
            (128, 96),
            r"size is 128x96 and model.final_pool is \(4, 16\) on a map of 32x24",
        ),
        (ATTRIBUTES, (128, 96), "heights that fit are multiples of 16, widths of 64"),
        (ATTRIBUTES, (120, 64), "data.image_size is 120x64 and .* on a map of 30x16"),
        (ATTRIBUTES, (130, 66), "data.image_size is 130x66 and .* on a map of 32x16"),
        (ATTRIBUTES, (8, 32), r"data.image_size is 8x32 and .* on a map of 2x8"),
        (vae.Model(), (20, 16), "size is 20x16 and model.widths halves the map 4 times"),
        (vae.Model(), (128, 40), "heights that fit are multiples of 16, widths of 16"),
        (
            autoencoder.Model(),
            (128, 100),
            "size is 128x100 and model.widths halves the map 3 times",
        ),
        (autoencoder.Model(switches=False), (9, 8), "multiples of 8, widths of 8"),
        (autoencoder.Model(widths=(4,) * 8), (128, 64), "halves the map 8 times"),
        (densenet.Model(), (128, 28), "an image of 128x28 is too small; each side must be 29"),
        (alexnet.Model(), (62, 63), "an image of 62x63 is too small; each side must be 63"),
    ],
)
def test_a_picture_that_would_not_be_seen_whole_is_refused(model, size, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))


FITTING = {
    "attributes_cnn": (
        attributes_cnn.Model(CLASSES, widths=(2, 4, 4, 4), final_pool=(2, 4)),
        8,
        16,
    ),
    "autoencoder": (autoencoder.Model(widths=(2, 3), switches=False), 4, 4),
    "vae": (vae.Model(widths=(2, 3), latent=4), 4, 4),
}


@pytest.mark.parametrize("name", FITTING)
@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 40))
def test_a_size_fits_or_is_refused(name, height, width):
    model, rows, columns = FITTING[name]
    x = jax.ShapeDtypeStruct((1, height, width, 3), np.float32)
    run = functools.partial(jax.eval_shape, model.init_with_output, jax.random.key(0), x)
    if height % rows or width % columns:
        with pytest.raises(InputError, match=f"data.image_size is {height}x{width} and model."):
            run()
    else:
        assert run()[0]["embedding"].shape[0] == 1


@pytest.mark.parametrize("name", FITTING)
def test_every_pixel_counts(name):
    """The gradient of a random sum of the outputs reaches the last rows and columns."""
    model, rows, columns = FITTING[name]
    x = jax.random.uniform(jax.random.key(0), (1, 3 * rows, 2 * columns, 3))
    variables = model.init(jax.random.key(1), x)

    def embedding(x):
        return jnp.sum(jnp.sin(9 * model.apply(variables, x)["embedding"]))

    seen = np.abs(jax.grad(embedding)(x)).sum(axis=-1)[0]
    assert (seen > 0).any(axis=0).all()
    assert (seen > 0).any(axis=1).all()


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
