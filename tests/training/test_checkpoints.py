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
    for step, score in enumerate(scores, start=1):
        checkpoints.save(
            directory,
            step,
            make_state(step, **state),
            score=score,
            round_start=borders[step - 1] if borders else 0,
            extra={"progress": {"n": step}},
        )


def read_all(directory, step, template):
    checkpoints.read_extra(directory, step)
    checkpoints.read_state(directory, step, template)


def kept_in(directory):
    return {int(path.name) for path in directory.iterdir() if path.name.isdigit()}


@pytest.mark.parametrize(
    ("scores", "best"),
    [([1, 2, 3], 3), ([3, 2, 1], 1), ([1, 3, 2, 2.5], 2), ([1], 1), ([2, None, None], 1)],
)
def test_the_latest_and_the_best_stay(tmp_path, scores, best):
    """Resuming never rewinds: the newest stays even when it is not among the best."""
    save_all(tmp_path, scores)
    newest = len(scores)
    assert kept_in(tmp_path) == {best, newest, max(newest - 1, 1)}
    assert checkpoints.find(tmp_path) == newest
    assert checkpoints.find(tmp_path, "best") == best
    assert checkpoints.find(tmp_path, str(newest)) == newest
    state = checkpoints.read_state(tmp_path, best, make_state(0))
    np.testing.assert_array_equal(state.params["w"], np.full(3, float(best)))
    assert int(state.step) == best
    assert checkpoints.read_extra(tmp_path, best) == {"progress": {"n": best}}


def test_the_border_of_the_present_round_stays(tmp_path):
    save_all(tmp_path, [1, 2, 3, 9, 4, 5], borders=[0, 2, 2, 2, 2, 2])
    assert kept_in(tmp_path) == {2, 4, 5, 6}
    save_all(tmp_path / "next", [9, 2, 3, 3, 3], borders=[0, 2, 2, 4, 4])
    assert kept_in(tmp_path / "next") == {1, 4, 5}


def test_every_checkpoint_that_stays_can_be_gone_on_from(tmp_path):
    """Of each the beginning of its round is there, not of the last one alone."""
    save_all(tmp_path, [1, 2, 9, 3, 4, 4, 4], borders=[0, 2, 2, 4, 4, 4, 7])
    assert kept_in(tmp_path) == {2, 3, 4, 6, 7}, "3 is the best, 6 and 7 are the newest"


def test_an_error_without_a_word_is_told_by_its_kind(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(checkpoints, "_digests", fail)
    with pytest.raises(InputError, match=r"1: the checkpoint cannot be written \(MemoryError"):
        save_all(tmp_path, [1])


def test_parameters_are_read_alone_and_averaged_ones_first(tmp_path):
    average, bank = {"w": jnp.full(3, 7.0)}, {"bank": jnp.ones((2, 2))}
    save_all(tmp_path, [1.0], ema=average, batch_stats={"mean": jnp.ones(2)}, memory=bank)
    template = {"params": {"w": jnp.zeros(3)}, "batch_stats": {"mean": jnp.zeros(2)}}
    found = checkpoints.read_variables(tmp_path, 1, template)
    assert sorted(found) == ["batch_stats", "params"]
    np.testing.assert_array_equal(found["params"]["w"], np.full(3, 7.0))
    np.testing.assert_array_equal(found["batch_stats"]["mean"], np.ones(2))
    whole = make_state(0, ema=average, batch_stats={"mean": jnp.ones(2)}, memory=bank)
    state = checkpoints.read_state(tmp_path, 1, whole)
    np.testing.assert_array_equal(state.collections["memory"]["bank"], np.ones((2, 2)))
    np.testing.assert_array_equal(state.params["w"], np.full(3, 1.0))


def test_nothing_saved(tmp_path):
    assert checkpoints.find(tmp_path) is None
    assert checkpoints.find(tmp_path / "missing", "best") is None
    with pytest.raises(InputError, match="has no checkpoint '7'; best, latest, or of none"):
        checkpoints.find(tmp_path, "7")


def test_another_model_is_refused(tmp_path):
    save_all(tmp_path, [1.0])
    other = make_state(0).replace(params={"v": jnp.zeros(3)})
    for template, message in (
        (make_state(0, width=4), r"params/w is \(3,\) there and \(4,\) here"),
        (other, r"params/v is absent there and \(3,\) here"),
    ):
        with pytest.raises(InputError, match=f"does not fit this model: {message}"):
            checkpoints.read_state(tmp_path, 1, template)


def test_every_flipped_byte_is_noticed(tmp_path):
    """Of a checkpoint's files: nothing is read but what was written."""
    save_all(tmp_path, [1.0], batch_stats={"mean": jnp.ones(2)})
    whole = make_state(0, batch_stats={"mean": jnp.ones(2)})
    rng, noticed = np.random.default_rng(0), 0
    paths = sorted(path for path in (tmp_path / "1").rglob("*") if path.is_file())
    paths.remove(tmp_path / "1/digests.json")  # its white space says nothing
    for path in paths:
        content = path.read_bytes()
        for place in rng.integers(len(content), size=4 if content else 0):
            flipped = bytearray(content)
            flipped[place] ^= 1 << rng.integers(8)
            path.write_bytes(bytes(flipped))
            with pytest.raises(InputError, match=f"{tmp_path}/1: the checkpoint is damaged"):
                read_all(tmp_path, 1, whole)
            noticed += 1
        path.write_bytes(content)
    assert noticed > 20


@pytest.mark.parametrize("change", ["cut", "empty", "missing"])
def test_a_damaged_checkpoint_is_named_with_the_others(tmp_path, change):
    save_all(tmp_path, [1.0, 2.0])
    for path in sorted(path for path in (tmp_path / "2").rglob("*") if path.is_file()):
        content = path.read_bytes()
        if change == "missing":
            path.unlink()
        else:
            path.write_bytes(content[: len(content) // 2] if change == "cut" else b"")
        with pytest.raises(InputError) as error, checkpoints.offering_others(tmp_path, 2):
            read_all(tmp_path, 2, make_state(0))
        for part in ("2: the checkpoint is damaged", "of step 1", "--checkpoint=1"):
            assert part in str(error.value)
        assert checkpoints.find(tmp_path, "best") in (1, 2)
        assert int(checkpoints.read_state(tmp_path, 1, make_state(0)).step) == 1
        path.write_bytes(content)


def test_what_killed_processes_have_left_is_removed(tmp_path):
    save_all(tmp_path, [1.0])
    for name in (".deleted-7", "9.orbax-checkpoint-tmp-3", "8"):
        (tmp_path / name / "variables").mkdir(parents=True)
    assert checkpoints.find(tmp_path) == 1
    checkpoints.clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
