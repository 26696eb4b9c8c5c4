import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax.training import schedules


def test_schedule():
    rates = schedules.make_schedule(
        schedules.cosine, learning_rate=0.4, total_steps=110, warmup_steps=10
    )
    values = [float(rates(step)) for step in (0, 5, 10, 60, 110)]
    np.testing.assert_allclose(values, [0.0, 0.2, 0.4, 0.2, 0.0], atol=1e-6)
    flat = schedules.make_schedule(schedules.constant, learning_rate=0.4, total_steps=10)
    assert float(flat(7)) == pytest.approx(0.4)


def rates_at(schedule, epochs, *, warmup, at, rate=3.5e-4, per_epoch=50, **settings):
    """The rates at some epochs of a training of so many epochs."""
    rates = schedules.make_schedule(
        schedule,
        learning_rate=rate,
        total_steps=epochs * per_epoch,
        warmup_steps=warmup * per_epoch,
        **settings,
    )
    eager = [float(rates(round(epoch * per_epoch))) for epoch in at]
    jitted = [float(jax.jit(rates)(jnp.int32(round(epoch * per_epoch)))) for epoch in at]
    np.testing.assert_allclose(eager, jitted, rtol=1e-6, atol=1e-12)
    return eager


def test_steps_are_where_the_strong_baseline_has_them():
    """120 epochs, 10 of them warm-up from a hundredth, lower after 40 and 70 (BoT)."""
    places = (0, 5, 10, 39.98, 40, 40.1, 69.98, 70, 70.1, 119.98)
    found = rates_at(schedules.multistep, 120, warmup=10, warmup_from=0.01, at=places)
    expected = [3.5e-6, 0.505 * 3.5e-4] + [3.5e-4] * 2 + [3.5e-5] * 3 + [3.5e-6] * 3
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("at", "factor", "expected"),
    [
        ((), 0.5, [1, 1, 1, 1]),
        ((0.5,), 0.5, [1, 1, 0.5, 0.5]),
        ((0.5, 0.5, 0.0), 0.5, [0.5, 0.5, 0.125, 0.125]),
        ((0.75, 0.25), 1.0, [1, 1, 1, 1]),
    ],
)
def test_steps_of_any_number_and_order(at, factor, expected):
    rates = schedules.multistep(1.0, 8, at=at, factor=factor)
    np.testing.assert_allclose([float(rates(step)) for step in (0, 3, 4, 7)], expected)


def test_cosine_after_a_flat_part_is_that_of_fastreid():
    """60 epochs, a cosine from 30 on, from 3.5e-4 to 7e-7 (SBS)."""

    def sbs(learning_rate, *steps):
        return schedules.cosine(learning_rate, *steps, flat=0.5, end=0.002)

    places = (0, 5, 10, 29.98, 30, 37.5, 45, 60)
    found = rates_at(sbs, 60, warmup=10, warmup_from=0.1, at=places)
    falling = [7e-7 + (3.5e-4 - 7e-7) * (1 + np.cos(np.pi * t)) / 2 for t in (0.25, 0.5, 1)]
    np.testing.assert_allclose(found, [3.5e-5, 1.925e-4] + [3.5e-4] * 3 + falling, rtol=1e-4)


def test_a_cosine_begins_after_the_warm_up_at_the_earliest():
    rates = schedules.cosine(1.0, 10, 4, flat=0.1)
    np.testing.assert_allclose([float(rates(step)) for step in (4, 7, 10)], [1, 0.5, 0], atol=1e-6)
    whole = schedules.cosine(1.0, 10, flat=1.0)
    assert [float(whole(step)) for step in (0, 9)] == [1.0, 1.0]


def test_exponential_decay_begins_after_the_warm_up():
    places = (5, 10, 60, 110)
    found = rates_at(schedules.exponential, 110, warmup=10, at=places, rate=1.0)
    np.testing.assert_allclose(found, [0.5, 1.0, 0.1, 0.01], rtol=1e-5)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_a_training_that_is_all_warm_up_has_finite_rates(name):
    found = rates_at(schedules.SCHEDULES[name], 2, warmup=2, at=(0, 1, 2), rate=1.0)
    np.testing.assert_allclose(found[:2], [0.0, 0.5])
    assert np.isfinite(found).all()
