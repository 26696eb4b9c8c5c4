import jax.numpy as jnp
import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.losses import Context
from market_jax.training import hooks
from market_jax.training.state import TrainState


def test_the_average_follows_the_parameters_by_hand():
    params = {"w": jnp.array([2.0])}
    state = TrainState(jnp.int32(0), params, {}, (), None, jnp.zeros(2, jnp.uint32))
    hook = hooks.ema(decay=0.5)
    state = hook.init(state)
    assert state.averaged_variables["params"]["w"][0] == 2.0
    context = Context({}, {}, None, {})
    for step, share in ((1, 2 / 11), (2, 3 / 12), (100, 0.5)):
        before = float(state.ema["w"][0])
        state = state.replace(step=jnp.int32(step), params={"w": jnp.array([4.0])})
        state = hook.update(state, context)
        np.testing.assert_allclose(state.ema["w"], [share * before + (1 - share) * 4], rtol=1e-6)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, float("inf"), float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(
        InputError, match=r"ema: decay is .*; it must be (0 or more and below 1|a finite)"
    ):
        hooks.ema(decay=decay)
