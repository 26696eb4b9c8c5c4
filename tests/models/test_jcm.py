"""JCM: attributes from a sequence of rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.models import jcm
from market_jax.models.backbones import resnet
from tests.models.test_attention import shaken

KEY = jax.random.key(0)
CLASSES = {"age": 4, "hat": 2, "hair": 2}
MODEL = jcm.Model(CLASSES, resnet.Model(18), ("hat", "hair", "age"), stage=3, width=16, heads=2)


def test_what_it_returns():
    x = jax.ShapeDtypeStruct((2, 64, 32, 3), np.float32)
    outputs, variables = jax.eval_shape(MODEL.init_with_output, KEY, x)
    shapes = {name: value.shape for name, value in outputs.items()}
    assert shapes == {
        **{name: (2, size) for name, size in CLASSES.items()},
        **{f"ctc_{name}": (2, size) for name, size in CLASSES.items()},
        "sequence": (2, 4, 9),
        "feature": (2, 16),
        "embedding": (2, 16),
        "map": (2, 4, 2, 256),
        "predictions": (2, 8),
    }
    larger = jax.ShapeDtypeStruct((2, 96, 48, 3), np.float32)
    assert jax.eval_shape(MODEL.apply, variables, larger)["sequence"].shape == (2, 6, 9)


class Still(resnet.Model):
    """Its map is the picture."""

    def __call__(self, image, train=False):
        return {"stage3": image, "map": image}


@functools.cache
def still():
    """The model on `Still`, its variables, and a picture."""
    model = MODEL.clone(backbone=Still())
    picture = jax.random.uniform(jax.random.key(1), (1, 5, 6, 3))
    return model, jax.jit(model.init)(KEY, picture), picture


def test_heights_are_the_same_at_all_sizes():
    found = jcm.heights(9, 6)
    height = 2 * np.pi * 4.5 / 9  # of the fifth row
    angles = [height, height / 10_000 ** (1 / 3), height / 10_000 ** (2 / 3)]
    np.testing.assert_allclose(found[4], [*np.sin(angles), *np.cos(angles)], atol=1e-6)
    np.testing.assert_allclose(found[1::3], jcm.heights(3, 6), atol=1e-6)
    np.testing.assert_array_equal(jcm.heights(4, 5), jcm.heights(4, 6)[:, :5])


def dense(x, params):
    """A dense layer in NumPy."""
    return x @ params["kernel"] + params["bias"]


def norm(x, params):
    """LayerNorm in NumPy."""
    centered = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centered**2).mean(axis=-1, keepdims=True) + 1e-6)
    return centered / deviation * params["scale"] + params["bias"]


def transformer(x, seen, params):
    """One picture's vectors [T, D] after a `jcm.Layer`, head by head."""
    y = norm(x, params["LayerNorm_0"])
    seen = y if seen is None else seen
    attention, added = params["attention"], 0
    for head in range(2):
        q, k, v = (
            rows @ attention[name]["kernel"][:, head] + attention[name]["bias"][head]
            for name, rows in (("query", y), ("key", seen), ("value", seen))
        )
        likeness = np.exp(q @ k.T / np.sqrt(q.shape[1]))
        found = likeness / likeness.sum(axis=1, keepdims=True) @ v
        added = added + found @ attention["out"]["kernel"][head]
    x = x + added + attention["out"]["bias"]
    y = dense(norm(x, params["LayerNorm_1"]), params["wide"])
    y = y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))  # gelu
    return x + dense(y, params["narrow"])


def test_the_network_by_hand():
    model, variables, picture = still()
    params = shaken(variables)["params"]
    found = jax.jit(model.apply)({"params": params}, picture)
    x = dense(np.asarray(picture, np.float64)[0].mean(axis=1), params["rows"])
    x = x + jcm.heights(5, 16)
    for number in (1, 2):
        x = transformer(x, None, params[f"encoder{number}"])
    x = norm(x, params["encoded"])
    answers = norm(transformer(params["questions"], x, params["decoder"]), params["decoded"])
    close = {"rtol": 1e-3, "atol": 1e-4}
    np.testing.assert_allclose(found["sequence"][0], dense(x, params["sequence"]), **close)
    np.testing.assert_allclose(found["embedding"][0], x.mean(axis=0), **close)
    for number, name in enumerate(MODEL.order):
        own = dense(answers[number], params[f"head_{name}"])
        np.testing.assert_allclose(found[name][0], own, **close)


def test_rows_are_told_apart_and_columns_are_not():
    model, params, picture = still()
    run = jax.jit(model.apply)
    plain, sides, upside = (
        run(params, p)["age"] for p in (picture, picture[:, :, ::-1], picture[:, ::-1])
    )
    np.testing.assert_allclose(sides, plain, atol=1e-6)
    assert np.abs(upside - plain).max() > 1e-4


def test_reading_greedily_by_hand():
    share = [
        [0.6, 0.1, 0.1, 0.1, 0.1],  # nothing
        [0.1, 0.3, 0.4, 0.1, 0.1],  # hat 1
        [0.4, 0.35, 0.1, 0.05, 0.1],  # nothing, though hat 0 is likely
    ]
    found = jcm.read_greedily(jnp.log(jnp.array([share])), {"hat": 2, "hair": 2})
    np.testing.assert_allclose(found["ctc_hat"], [[0.35, 1.4]], rtol=1e-5)
    np.testing.assert_allclose(found["ctc_hair"], [[0.1, 0.1]], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": ("hat", "hair")}, "model.order is .*; it must name each attribute once"),
        ({"heads": 3}, "model.heads is 3; it must divide model.width, 16"),
        ({"stage": 4}, "has 2 rows; it must have at least 3, one for each attribute"),
        ({"stage": 9}, "unknown map of the backbone .*'stage9'"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    x = jax.ShapeDtypeStruct((1, 64, 32, 3), np.float32)
    with pytest.raises(InputError, match=message):
        jax.eval_shape(MODEL.clone(**changes).init, KEY, x)
