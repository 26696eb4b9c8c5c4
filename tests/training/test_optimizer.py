import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from market_jax.errors import InputError
from market_jax.training import optimizer

PARAMS = {"kernel": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "bias": jnp.array([1.0, 1.0])}
GRADIENTS = {"kernel": jnp.array([[0.1, 0.2], [-0.3, 0.4]]), "bias": jnp.array([0.5, -0.5])}


def follow(tx, steps=5):
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(GRADIENTS, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_adam_is_adamw_with_decay_on_kernels():
    schedule = optax.linear_schedule(0.1, 0.0, 10)
    ours = follow(optimizer.adam(schedule, weight_decay=0.01))
    mask = jax.tree.map(lambda p: p.ndim > 1, PARAMS)
    theirs = follow(optax.adamw(schedule, weight_decay=0.01, mask=mask))
    for key in PARAMS:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-5)


def test_sgd_has_momentum_and_coupled_decay():
    tx = optimizer.sgd(optax.constant_schedule(0.1), weight_decay=0.5)
    first = follow(tx, 1)
    np.testing.assert_allclose(
        first["kernel"],
        PARAMS["kernel"] - 0.1 * (GRADIENTS["kernel"] + 0.5 * PARAMS["kernel"]),
        rtol=1e-6,
    )
    np.testing.assert_allclose(first["bias"], PARAMS["bias"] - 0.1 * GRADIENTS["bias"], rtol=1e-6)


def test_clipping_bounds_the_step():
    tx = optimizer.make_optimizer(optimizer.sgd(optax.constant_schedule(1.0)), clip_norm=0.01)
    moved = jax.tree.map(lambda a, b: a - b, follow(tx, 1), PARAMS)
    assert float(optax.tree.norm(moved)) == pytest.approx(0.01, rel=1e-4)


def test_schedule():
    rates = optimizer.make_schedule(
        optimizer.cosine, learning_rate=0.4, total_steps=110, warmup_steps=10
    )
    values = [float(rates(step)) for step in (0, 5, 10, 60, 110)]
    np.testing.assert_allclose(values, [0.0, 0.2, 0.4, 0.2, 0.0], atol=1e-6)
    flat = optimizer.make_schedule(optimizer.constant, learning_rate=0.4, total_steps=10)
    assert float(flat(7)) == pytest.approx(0.4)


def test_values_out_of_range_are_refused():
    plain = optimizer.adam(optax.constant_schedule(0.1))
    for settings, message in (
        ({"clip_norm": -1.0}, "clip_norm is -1.0; it must be 0 or more"),
        ({"lr_multipliers": [("(", 1.0)]}, r"lr_multipliers: '\(' \("),
        ({"clip_norm": float("nan")}, "clip_norm is nan; it must be a finite number"),
        (
            {"lr_multipliers": [("kernel", -1.0)]},
            "factor of 'kernel' is -1.0; it must be 0 or more",
        ),
        ({"lr_multipliers": [("kernel", float("nan"))]}, "factor of 'kernel' is nan; it must be"),
    ):
        with pytest.raises(InputError, match=message):
            optimizer.make_optimizer(plain, **settings)


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_a_lowered_rate_moves_by_as_much_less(name):
    make = optimizer.OPTIMIZERS[name]

    def moved(lowered):
        tx = optimizer.make_optimizer(make(optax.constant_schedule(0.1)), plateau=True)
        state = tx.init(PARAMS)
        for _ in range(lowered):
            state = optimizer.lower(state, 0.8)
        return tx.update(GRADIENTS, state, PARAMS)[0]

    for key in PARAMS:
        np.testing.assert_allclose(moved(2)[key], 0.64 * moved(0)[key], rtol=1e-6)
    tx = make(optax.constant_schedule(0.1))
    plain = tx.update(GRADIENTS, tx.init(PARAMS), PARAMS)[0]
    np.testing.assert_allclose(moved(0)["kernel"], plain["kernel"])


def test_multipliers_are_factors_and_the_first_fitting_pattern_counts():
    plain = optimizer.adam(optax.constant_schedule(0.1), weight_decay=0.5)
    with pytest.raises(InputError, match=r"lr_multipliers: 'neck' finds no parameter"):
        optimizer.make_optimizer(plain, lr_multipliers=[("neck", 1.0)]).init(PARAMS)
    multipliers = [("bi.s", 0.0), ("^kern", 0.25), ("s|k", 7.0)]
    found = follow(optimizer.make_optimizer(plain, lr_multipliers=multipliers), 1)
    np.testing.assert_array_equal(found["bias"], PARAMS["bias"])
    expected = PARAMS["kernel"] + 0.25 * (follow(plain, 1)["kernel"] - PARAMS["kernel"])
    np.testing.assert_allclose(found["kernel"], expected, rtol=1e-6)


def test_a_multiplier_of_0_keeps_weight_decay_away_too():
    plain = optimizer.adam(optax.constant_schedule(0.1), weight_decay=0.5)
    found = follow(optimizer.make_optimizer(plain, lr_multipliers=[("kernel", 0.0)]), 3)
    np.testing.assert_array_equal(found["kernel"], PARAMS["kernel"])
