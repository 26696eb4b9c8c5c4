"""The function that is exported: names, mirror images, any number of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.export import functions
from tests.export import networks


def apply(variables, images):
    """A model: the colours of the left half, and logits of them."""
    assert images.dtype == np.float32
    left = images[:, :, : images.shape[2] // 2].mean(axis=(1, 2)) * variables["scale"]
    return {"embedding": left, "age": 3 * left, "map": images}


def test_the_function_returns_embedding_and_probabilities():
    given = networks.images(5, (6, 4))
    function = functions.make_function(apply, {"scale": 2.0}, labels=["age"])
    found = jax.jit(function)(given)
    left = given[:, :, :2].mean(axis=(1, 2)) / 255 * 2
    np.testing.assert_allclose(found["embedding"], left, rtol=1e-5)
    share = np.exp(3 * left) / np.exp(3 * left).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found["attributes/age"], share, rtol=1e-5)
    assert found.keys() == {"embedding", "attributes/age"}


def test_flip_is_the_mean_with_the_mirror_image():
    given = networks.images(5, (6, 4))
    plain, both = (
        functions.make_function(apply, {"scale": 2.0}, labels=["age"], flip=flip)
        for flip in (False, True)
    )
    one, other, mean = plain(given), plain(given[:, :, ::-1]), both(given)
    for name, value in mean.items():
        np.testing.assert_allclose(value, (one[name] + other[name]) / 2, rtol=1e-6)


def test_an_output_that_is_not_there_is_named():
    function = functions.make_function(apply, {"scale": 2.0}, labels=["ages"])
    with pytest.raises(InputError, match="unknown output of the model 'ages'; did you mean 'age'"):
        function(networks.images(1, (6, 4)))


def test_code_that_counts_its_images_is_refused():
    def counts(images):
        return {"embedding": jnp.zeros((len(images), 2))}

    with (
        pytest.raises(InputError, match=r"any number of images .* x\.shape\[0\], not len\(x\)"),
        functions.for_any_batch(),
    ):
        jax.eval_shape(counts, functions.images_like((6, 4)))
