"""Persons and attributes on one trunk, by hand."""

import jax
import numpy as np

from market_jax.models import multitask
from market_jax.models.backbones import resnet
from tests.models.test_attention import normalized, shaken
from tests.models.test_jcm import Still

CLASSES = {"age": 4, "hat": 2}


def softmax(x):
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def test_both_heads_by_hand():
    picture = np.asarray(jax.random.uniform(jax.random.key(1), (2, 5, 4, 3)))
    model = multitask.Model(CLASSES, Still(), hidden=7, width=6, uncertainty=True)
    variables = shaken(jax.jit(model.init)(jax.random.key(0), picture))
    params, found = variables["params"], jax.jit(model.apply)(variables, picture)

    def dense(x, name):
        return x @ params[name]["kernel"] + params[name]["bias"]

    hidden = normalized(dense(picture.mean(axis=(1, 2)), "hidden"), "hidden_bn", variables)
    feature = dense(np.maximum(hidden, 0), "embed")
    np.testing.assert_allclose(found["embedding"], feature, rtol=1e-4)
    np.testing.assert_array_equal(found["feature"], found["embedding"])
    highest, shares = picture.max(axis=(1, 2)), []
    for name in CLASSES:
        y = np.maximum(normalized(highest, f"head_{name}_bn", variables), 0)
        np.testing.assert_allclose(found[name], dense(y, f"head_{name}"), rtol=1e-4)
        shares.append(softmax(dense(y, f"head_{name}")))
    np.testing.assert_allclose(found["predictions"], np.concatenate(shares, axis=1), rtol=1e-4)
    for task in ("persons", "attributes"):
        name = f"log_variance_{task}"
        np.testing.assert_array_equal(found[name], np.full(2, params[name], np.float32))


def test_attributes_may_have_a_last_stage_of_their_own():
    picture = jax.random.uniform(jax.random.key(1), (1, 64, 32, 3))
    model = multitask.Model(CLASSES, resnet.Model(18), separate=True)
    variables = jax.jit(model.init)(jax.random.key(0), picture)
    params = variables["params"]

    def without(part):
        """The outputs where a part's BatchNorms have a scale of 0."""

        def quiet(path, value):
            own = any(part == entry.key for entry in path) and path[-1].key == "scale"
            return 0 * value if own else value

        return jax.jit(model.apply)(
            variables | {"params": jax.tree_util.tree_map_with_path(quiet, params)}, picture
        )

    whole = jax.jit(model.apply)(variables, picture)
    quiet = without("branch_attributes")
    np.testing.assert_array_equal(quiet["embedding"], whole["embedding"])
    assert np.abs(quiet["age"] - whole["age"]).max() > 1e-3
