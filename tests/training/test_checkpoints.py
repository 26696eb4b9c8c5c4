import contextlib

import jax.numpy as jnp
import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.training import checkpoints
from market_jax.training.state import TrainState


def make_state(step, width=3, ema=None, **collections):
    return TrainState(
        step=jnp.int32(step),
        params={"w": jnp.full(width, float(step))},
        collections=collections,
        opt_state=(),
        ema=ema,
        key_data=jnp.zeros(2, jnp.uint32),
    )


def save_all(directory, scores, borders=None, **state):
    with contextlib.closing(checkpoints.open_manager(directory)) as manager:
        for step, score in enumerate(scores, start=1):
            checkpoints.save(
                manager,
                step,
                make_state(step, **state),
                score=score,
                round_start=borders[step - 1] if borders else 0,
                extra={"progress": {"n": step}},
            )


def kept_in(directory):
    return {int(path.name) for path in directory.iterdir() if path.name.isdigit()}


@pytest.mark.parametrize(
    ("scores", "best"), [([1, 2, 3], 3), ([3, 2, 1], 1), ([1, 3, 2, 2.5], 2), ([1], 1)]
)
def test_the_latest_and_the_best_stay(tmp_path, scores, best):
    """Resuming never rewinds: the newest stays even when it is not among the best."""
    save_all(tmp_path, scores)
    assert kept_in(tmp_path) == {best, len(scores)}
    with contextlib.closing(checkpoints.open_manager(tmp_path)) as manager:
        assert checkpoints.find(manager) == len(scores)
        assert checkpoints.find(manager, "best") == best
        state = checkpoints.read_state(manager, best, make_state(0))
        np.testing.assert_array_equal(state.params["w"], np.full(3, float(best)))
        assert int(state.step) == best
        assert checkpoints.read_extra(manager, best) == {"progress": {"n": best}}


def test_the_border_of_the_present_round_stays(tmp_path):
    save_all(tmp_path, [1, 2, 3, 9, 4, 5], borders=[0, 2, 2, 2, 2, 2])
    assert kept_in(tmp_path) == {2, 4, 6}
    save_all(tmp_path / "next", [9, 2, 3, 3], borders=[0, 2, 2, 4])
    assert kept_in(tmp_path / "next") == {1, 4}


def test_parameters_are_read_alone_and_averaged_ones_first(tmp_path):
    average, bank = {"w": jnp.full(3, 7.0)}, {"bank": jnp.ones((2, 2))}
    save_all(tmp_path, [1.0], ema=average, batch_stats={"mean": jnp.ones(2)}, memory=bank)
    template = {"params": {"w": jnp.zeros(3)}, "batch_stats": {"mean": jnp.zeros(2)}}
    with contextlib.closing(checkpoints.open_manager(tmp_path)) as manager:
        found = checkpoints.read_variables(manager, 1, template)
        assert sorted(found) == ["batch_stats", "params"]
        np.testing.assert_array_equal(found["params"]["w"], np.full(3, 7.0))
        np.testing.assert_array_equal(found["batch_stats"]["mean"], np.ones(2))
        whole = make_state(0, ema=average, batch_stats={"mean": jnp.ones(2)}, memory=bank)
        state = checkpoints.read_state(manager, 1, whole)
    np.testing.assert_array_equal(state.collections["memory"]["bank"], np.ones((2, 2)))
    np.testing.assert_array_equal(state.params["w"], np.full(3, 1.0))


def test_nothing_saved(tmp_path):
    with contextlib.closing(checkpoints.open_manager(tmp_path)) as manager:
        assert checkpoints.find(manager) is None
        assert checkpoints.find(manager, "best") is None


def test_another_model_is_refused(tmp_path):
    save_all(tmp_path, [1.0])
    other = make_state(0).replace(params={"v": jnp.zeros(3)})
    with contextlib.closing(checkpoints.open_manager(tmp_path)) as manager:
        for template, message in (
            (make_state(0, width=4), r"params/w is \(3,\) there and \(4,\) here"),
            (other, r"params/v is absent there and \(3,\) here"),
        ):
            with pytest.raises(InputError, match=f"does not fit this model: {message}"):
                checkpoints.read_state(manager, 1, template)
