"""The devices: start-up, the data-parallel mesh, and what is laid on it."""

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jaxlib
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from market_jax.errors import InputError
from market_jax.typing import PyTree

# Keeps single convolutions out of XLA's YNN fusions on the CPU: a step of the attribute network
# takes half the time. A jaxlib that does not know a flag aborts, so only tested ones get it.
_CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
_CPU_FLAG_VERSIONS = ("0.10.2",)


def cpu_flags(flags: str, jaxlib_version: str) -> str:
    """XLA_FLAGS with what makes this jaxlib fast on a CPU; the user's own setting is kept.

    Args:
      flags: XLA_FLAGS as the user has set them.
      jaxlib_version: of the installed jaxlib.
    """
    if jaxlib_version not in _CPU_FLAG_VERSIONS or _CPU_FLAG.split("=")[0] in flags:
        return flags
    return f"{flags} {_CPU_FLAG}".strip()


def compiler_options(backend: str, jaxlib_version: str) -> dict[str, str]:
    """What a training step is compiled with.

    XLA's CPU compiler drops the optimization barriers that keep what they guard from being
    computed again, in an order that is slow, or at all (rematerialisation). Here it keeps them.

    Args:
      backend: "cpu", "gpu" or "tpu".
      jaxlib_version: of the installed jaxlib.
    """
    if backend != "cpu" or jaxlib_version not in _CPU_FLAG_VERSIONS:
        return {}
    return {"xla_disable_hlo_passes": "cse_barrier_expander"}


def keep_memory() -> bool:
    """Tells the C library to keep freed memory for the next allocation; False if it cannot.

    XLA allocates a step's buffers on a CPU anew at every step. Given back to the system in
    between, every page of them is faulted in and cleared again, a third of a small network's
    step. For training alone: what is not the same at every step, as in evaluation, leaves gaps
    that add up. glibc alone is asked, and not where its `MALLOC_` or `GLIBC_TUNABLES` variables
    are set.
    """
    if "GLIBC_TUNABLES" in os.environ or any(k.startswith("MALLOC_") for k in os.environ):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")  # glibc's name; the settings' numbers are in its malloc.h
    except OSError:
        return False
    one_arena, no_mmap, never_trim = (-8, 1), (-4, 0), (-1, -1)
    settings = [libc.mallopt(*setting) for setting in (one_arena, no_mmap, never_trim)]
    return all(settings)


def start() -> None:
    """Sets XLA's flags, turns the compilation cache on, and joins the other hosts, if any.

    Call it before the first computation: XLA reads its flags once. The cache is in
    `JAX_COMPILATION_CACHE_DIR`, or else in `~/.cache/market_jax/xla`.
    """
    os.environ["XLA_FLAGS"] = cpu_flags(os.environ.get("XLA_FLAGS", ""), jaxlib.__version__)
    if not jax.config.jax_compilation_cache_dir:
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "market_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    several = (
        "JAX_COORDINATOR_ADDRESS" in os.environ
        or int(os.environ.get("SLURM_NTASKS", "1")) > 1
        or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    )
    if several and not jax.distributed.is_initialized():
        jax.distributed.initialize(
            num_processes=_integer("JAX_NUM_PROCESSES"), process_id=_integer("JAX_PROCESS_ID")
        )


def _integer(variable: str) -> int | None:
    """An environment variable; None, where JAX is to find out by itself."""
    return int(os.environ[variable]) if variable in os.environ else None


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices, or those given, on one axis "data", Auto: XLA propagates the sharding.

    Args:
      devices: on the mesh; by default all.
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def share() -> tuple[int, int]:
    """(i, n): this process is the i-th of n, each of which feeds its part of every batch."""
    return jax.process_index(), jax.process_count()


def check_batch_size(batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises an `InputError` unless each of the batch's parts divides over the devices.

    Args:
      batch_size: images in a step.
      mesh: the devices.
      parts: parts that a batch is cut into.
    """
    if batch_size < 1 or batch_size % (mesh.size * parts):
        times = f" times the {parts} parts of grad_accum_steps" if parts > 1 else ""
        raise InputError(
            f"batch_size is {batch_size}; it must be a multiple of the {mesh.size} device(s){times}"
        )


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """The same values on every device.

    Args:
      mesh: the devices.
      tree: of arrays.
    """
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def replicated(mesh: Mesh, shapes: PyTree) -> PyTree:
    """Shapes and dtypes with the sharding of `replicate`, as a template for a checkpoint.

    Args:
      mesh: the devices.
      shapes: of arrays, with dtypes.
    """
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def place_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Splits the first axis over the devices; each process gives its own share of the batch.

    Args:
      mesh: the devices.
      batch: column -> this process's rows.
    """
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
