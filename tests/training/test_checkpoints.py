import contextlib

import jax.numpy as jnp
import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.training import checkpoints


def save_all(directory, losses):
    with contextlib.closing(checkpoints.open_manager(directory)) as manager:
        for step, loss in enumerate(losses, start=1):
            state = {"w": jnp.full(3, float(step)), "step": jnp.int32(step)}
            checkpoints.save(manager, step, state, {"val/loss": loss}, {"progress": {"n": step}})


@pytest.mark.parametrize(
    ("losses", "best"), [([3, 2, 1], 3), ([1, 2, 3], 1), ([3, 1, 2, 2.5], 2), ([1], 1)]
)
def test_the_latest_and_the_best_stay(tmp_path, losses, best):
    """Resuming never rewinds: the newest stays even when it is not among the best."""
    save_all(tmp_path, losses)
    kept = {int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()}
    assert kept == {best, len(losses)}
    with contextlib.closing(checkpoints.open_manager(tmp_path)) as manager:
        assert checkpoints.find(manager) == len(losses)
        assert checkpoints.find(manager, "best") == best
        template = {"w": jnp.zeros(3), "step": jnp.int32(0)}
        state = checkpoints.read_state(manager, best, template)
        np.testing.assert_array_equal(state["w"], np.full(3, float(best)))
        assert checkpoints.read_extra(manager, best) == {"progress": {"n": best}}


def test_nothing_saved(tmp_path):
    with contextlib.closing(checkpoints.open_manager(tmp_path)) as manager:
        assert checkpoints.find(manager) is None
        assert checkpoints.find(manager, "best") is None


def test_another_model_is_refused(tmp_path):
    save_all(tmp_path, [1.0])
    with contextlib.closing(checkpoints.open_manager(tmp_path)) as manager:
        for template, said in (
            ({"w": jnp.zeros(4), "step": jnp.int32(0)}, r"w is \(3,\) there and \(4,\) here"),
            ({"v": jnp.zeros(3), "step": jnp.int32(0)}, r"v is absent there and \(3,\) here"),
        ):
            with pytest.raises(InputError, match=f"does not fit this model: {said}"):
                checkpoints.read_state(manager, 1, template)
