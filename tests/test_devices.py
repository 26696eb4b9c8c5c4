import os
import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax import devices
from market_jax.errors import InputError


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
    assert devices.quick_compiler_options("cpu")
    assert devices.quick_compiler_options("gpu") == devices.quick_compiler_options("tpu") == {}


SRUN = dict.fromkeys(("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NODELIST"), "0")


@pytest.mark.parametrize(
    ("variables", "several"),
    [
        ({}, False),
        ({"JAX_NUM_PROCESSES": "1"}, False),
        ({"JAX_NUM_PROCESSES": "4"}, True),
        ({"JAX_COORDINATOR_ADDRESS": "host:1234"}, True),
        ({"SLURM_NTASKS": "2"}, False),
        (SRUN | {"SLURM_NTASKS": "2"}, True),
        (SRUN | {"SLURM_NTASKS": "1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ],
)
def test_several_processes_are_known_by_the_environment(monkeypatch, variables, several):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "SLURM_", "TPU_"))}
    monkeypatch.setattr(os, "environ", clean | variables)
    assert devices._of_several() is several


FAULTS = """
import resource, sys
import numpy as np
from market_jax import devices

kept = devices.keep_memory()
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**24)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
@pytest.mark.parametrize(("own", "kept"), [({}, True), ({"MALLOC_ARENA_MAX": "4"}, False)])
def test_freed_memory_is_kept_unless_the_user_has_set_it_himself(own, kept):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    program = [sys.executable, "-c", FAULTS]
    output = subprocess.check_output(program, env=clean | own, text=True)
    said, faults = output.split()
    assert said == str(kept)
    assert (int(faults) < 10) == kept, "128 MiB are some 32768 pages, or 64 huge ones"


RELEASE = """
import re
from pathlib import Path
import numpy as np
from market_jax import devices

def resident():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\\s+(\\d+)", status)[1]) // 1024

devices.keep_memory()
before = resident()
ones = np.ones(2**24)
del ones
kept = resident() - before
devices.release_memory()
devices.start()
import jax
print(kept, resident() - before, jax.config.read("jax_cpu_enable_async_dispatch"))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_what_is_kept_can_be_given_back_and_steps_do_not_pile_up():
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    output = subprocess.check_output([sys.executable, "-c", RELEASE], env=clean, text=True)
    kept, left, ahead = output.split()
    assert int(kept) >= 120, "of 128 MiB; rounding of pages aside"
    assert int(left) < 32
    assert ahead == "False", "the memory of several steps would be allocated at once"


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
    assert mesh.size == 2
    placed = devices.place_batch(mesh, {"x": np.zeros((16, 2))})["x"]
    assert {shard.data.shape for shard in placed.addressable_shards} == {(8, 2)}
    kept = devices.replicate(mesh, {"w": np.zeros((3, 2))})["w"]
    assert {shard.data.shape for shard in kept.addressable_shards} == {(3, 2)}


@pytest.mark.parametrize("size", [0, -8, 13])
def test_batch_size_divides_over_the_devices(size):
    with pytest.raises(InputError, match=f"batch_size is {size}; .* 2 device"):
        devices.check_batch_size(size, devices.make_mesh())
