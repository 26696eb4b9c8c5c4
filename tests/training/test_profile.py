import jax
import jax.numpy as jnp
import pytest

from market_jax.training import profile


@jax.jit
def step(state, batch):
    return state + jnp.sum(batch @ batch), {"loss": jnp.mean(batch)}


BATCH = jnp.ones((64, 64))


def run(directory, count):
    state = jnp.zeros(())
    with profile.traced(
        step,
        directory,
        count=lambda *arguments: profile.count_flops(step, *arguments),
        batch_size=64,
        dtype="float32",
    ) as traced:
        for _ in range(count):
            state, _ = traced(state, BATCH)
    return float(state)


def test_flops_of_a_matrix_product():
    flops = profile.count_flops(jax.jit(lambda a: a @ a), BATCH)
    assert flops == pytest.approx(2 * 64**3, rel=0.01)


def test_peak_is_a_rate():
    assert 1e8 < profile.matrix_product_peak("float32", size=256) < 1e15


@pytest.mark.parametrize("count", [5, 12])
def test_a_trace_and_a_summary_are_written(tmp_path, count):
    """Also where the training ends while it is traced."""
    assert run(tmp_path / "profile", count) == count * 64.0**3
    text = (tmp_path / "profile" / profile.SUMMARY).read_text()
    steps = min(count - profile.SKIPPED, profile.TRACED)
    for said in (f"median of {steps}", "images/s", "share of peak", "0.00 GFLOP a step"):
        assert said in text
    assert sum(profile.operation_times(tmp_path / "profile").values()) > 0
    assert list((tmp_path / "profile").rglob("perfetto_trace.json.gz"))


def test_too_short_a_training_says_so(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        profile.logging, "warning", lambda text, *values: said.append(text % values)
    )
    run(tmp_path / "profile", 2)
    assert not (tmp_path / "profile").exists()
    assert said == ["no profile: the training had no more than 3 steps"]
