import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from market_jax.models.attributes_cnn import Model

IMAGES = jax.random.uniform(jax.random.key(0), (4, 32, 16, 3))
SMALL = {"widths": (4, 6, 8, 6), "final_pool": (4, 4), "head_width": 5}
CLASSES = {"age": 4, "hat": 2, "up_color": 9}


def make(**kwargs):
    model = Model(classes=CLASSES, **(SMALL | kwargs))
    return model, jax.jit(model.init)(jax.random.key(1), IMAGES)


def test_outputs_are_keyed_by_attribute():
    model, variables = make()
    outputs = jax.jit(model.apply)(variables, IMAGES)
    shapes = {name: value.shape for name, value in outputs.items()}
    features = {"map": (4, 8, 4, 6), "feature": (4, 12), "embedding": (4, 12)}
    assert shapes == {"age": (4, 4), "hat": (4, 2), "up_color": (4, 9)} | features
    assert all(value.dtype == jnp.float32 for value in outputs.values())


def test_eager_equals_jit():
    model, variables = make()
    eager, jitted = model.apply(variables, IMAGES), jax.jit(model.apply)(variables, IMAGES)
    for name in eager:
        np.testing.assert_allclose(eager[name], jitted[name], atol=1e-5)


def test_gradients_reach_every_head_and_convolution():
    model, variables = make()

    def loss(params):
        outputs, _ = model.apply(
            {**variables, "params": params},
            IMAGES,
            train=True,
            rngs={"dropout": jax.random.key(2)},
            mutable=["batch_stats"],
        )
        return sum(jnp.sum(jax.nn.log_softmax(outputs[name])[:, 0]) for name in CLASSES)

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    assert {f"head_{name}" for name in CLASSES} < set(gradients)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.abs(gradient).max() > 0, f"no gradient reaches {jax.tree_util.keystr(path)}"


def test_the_residual_adds_the_second_blocks_input():
    with_residual, variables = make(residual=True)
    without, _ = make(residual=False)
    a = with_residual.apply(variables, IMAGES)["embedding"]
    b = without.apply(variables, IMAGES)["embedding"]
    assert not np.allclose(a, b)
    zeroed = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.zeros_like(x) if "Conv_3" in str(path) else x, variables
    )
    block_input_alone = with_residual.apply(zeroed, IMAGES)["embedding"]
    assert np.abs(block_input_alone).max() > 0
    np.testing.assert_allclose(without.apply(zeroed, IMAGES)["embedding"], 0.0, atol=1e-7)


def test_batch_statistics_move_in_training_alone():
    model, variables = make()
    outputs, updates = model.apply(
        variables, IMAGES, True, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"]
    )
    old, new = (jax.tree.leaves(tree["batch_stats"]) for tree in (variables, updates))
    assert all(not np.allclose(a, b) for a, b in zip(old, new, strict=True))
    again = model.apply(variables, IMAGES)
    np.testing.assert_array_equal(again["age"], model.apply(variables, IMAGES)["age"])
    assert not np.allclose(outputs["age"], again["age"])


def test_golden_size_of_the_published_trunk():
    model = Model(classes=common.ATTRIBUTES)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 128, 64, 3)))["params"]
    kernels = [shapes[f"Conv_{i}"]["kernel"].size for i in range(4)]
    assert kernels == [4704, 102400, 294912, 294912], "not source A's stored weights' sizes"
    outputs = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 128, 64, 3)))
    assert outputs[0]["embedding"].shape == (1, 8 * 128), "eight strips of 128 channels"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_stay_float32(dtype):
    model, variables = make(dtype=jnp.dtype(dtype))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    assert np.isfinite(model.apply(variables, IMAGES)["age"]).all()
