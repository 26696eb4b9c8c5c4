"""JCM: attributes from a sequence of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.models import jcm
from market_jax.models.backbones import resnet

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
    assert variables["params"]["positions"].shape == (4, 16)


def test_rows_are_told_apart_and_columns_are_not():
    class Still(resnet.Model):
        """Its map is the picture."""

        def __call__(self, image, train=False):
            return {"stage3": image}

    model = MODEL.clone(backbone=Still())
    picture = jax.random.uniform(jax.random.key(1), (1, 4, 6, 3))
    params = model.init(KEY, picture)
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
