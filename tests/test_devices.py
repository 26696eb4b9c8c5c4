import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax import devices
from market_jax.typing import InputError


def test_cpu_flag_is_for_tested_versions_alone():
    assert "ynn_fusion" in devices.cpu_flags("", "0.10.2")
    assert devices.cpu_flags("", "99.0") == "", "a jaxlib that does not know a flag aborts"
    both = devices.cpu_flags("--xla_dump_to=x", "0.10.2").split()
    assert both[0] == "--xla_dump_to=x"
    assert len(both) == 2
    own = "--xla_cpu_experimental_ynn_fusion_type=+dot"
    assert devices.cpu_flags(own, "0.10.2") == own


def test_compiler_options_are_for_cpus_and_tested_versions_alone():
    assert devices.compiler_options("cpu", "0.10.2")
    assert devices.compiler_options("cpu", "99.0") == {}
    assert devices.compiler_options("gpu", "0.10.2") == {}


def test_auto_axes_let_a_sharded_batch_be_used_freely():
    """Explicit axes, jax.make_mesh's default, refuse each of these."""
    mesh = devices.make_mesh()
    x = np.arange(16 * 4, dtype=np.float32).reshape(16, 4)
    placed = devices.place_batch(mesh, {"x": x})["x"]

    @jax.jit
    def use(x):
        distances = jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)
        return distances, x @ x.T, x[jnp.array([3, 1])], x.reshape(4, 4, 4)

    distances, gram, rows, reshaped = use(placed)
    np.testing.assert_allclose(distances, ((x[:, None] - x[None]) ** 2).sum(-1))
    np.testing.assert_allclose(gram, x @ x.T)
    np.testing.assert_array_equal(rows, x[[3, 1]])
    assert reshaped.shape == (4, 4, 4)


def test_batch_is_split_and_state_is_not():
    mesh = devices.make_mesh()
    assert mesh.size == 8
    placed = devices.place_batch(mesh, {"x": np.zeros((16, 2))})["x"]
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 2)}
    kept = devices.replicate(mesh, {"w": np.zeros((3, 2))})["w"]
    assert {shard.data.shape for shard in kept.addressable_shards} == {(3, 2)}


@pytest.mark.parametrize("size", [0, -8, 12])
def test_batch_size_divides_over_the_devices(size):
    with pytest.raises(InputError, match=f"batch_size is {size}; .* 8 device"):
        devices.check_batch_size(size, devices.make_mesh())
