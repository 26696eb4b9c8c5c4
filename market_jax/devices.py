"""Devices: start-up, the data-parallel mesh, and arrays placed on it."""

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    """Adds the flag that makes this jaxlib fast on a CPU to XLA_FLAGS; the user's own setting wins.

    Args:
      flags: the value of XLA_FLAGS that the user has set; "" where there is none.
      jaxlib_version: version of the installed jaxlib, such as "0.10.2".
    """
    if jaxlib_version not in _CPU_FLAG_VERSIONS or _CPU_FLAG.split("=")[0] in flags:
        return flags
    return f"{flags} {_CPU_FLAG}".strip()


def compiler_options(backend: str, jaxlib_version: str) -> dict[str, str]:
    """XLA's compiler options for a training step.

    XLA's CPU compiler drops optimization barriers, so that values they guard are computed again or
    in a slow order, and rematerialisation has no effect. These options keep the barriers.

    Args:
      backend: "cpu", "gpu" or "tpu".
      jaxlib_version: version of the installed jaxlib, such as "0.10.2".
    """
    if backend != "cpu" or jaxlib_version not in _CPU_FLAG_VERSIONS:
        return {}
    return {"xla_disable_hlo_passes": "cse_barrier_expander"}


def quick_compiler_options(backend: str) -> dict[str, Any]:
    """XLA's compiler options for what is computed once, such as a network's first variables.

    Args:
      backend: "cpu", "gpu" or "tpu".
    """
    if backend != "cpu":
        return {}
    return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def keep_memory() -> bool:
    """Tells the C library to keep freed memory for the next allocation; False if it cannot.

    On a CPU, XLA allocates the buffers of every step anew. If the memory goes back to the system in
    between, each page is faulted in and cleared again, which takes a third of a small network's
    step. Call it for training only: in evaluation, buffers differ from step to step and leave gaps
    that add up. Only glibc can do it, and nothing is changed where the user has set its `MALLOC_`
    or `GLIBC_TUNABLES` variables.
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


def release_memory() -> None:
    """Gives memory that is free now back to the system, whatever `keep_memory` has said (glibc).

    Call it after an evaluation: what its buffers leave free seldom fits a training step's.
    """
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


def start() -> None:
    """Sets XLA's flags, turns the compilation cache on, and joins the other hosts, if any.

    On a CPU, steps are computed as they are called: with JAX's asynchronous dispatch the memory of
    the next steps is allocated while one is computed, two to four times what one needs.

    Call it before the first computation: XLA reads its flags once. The cache is in
    `JAX_COMPILATION_CACHE_DIR`, or else in `~/.cache/market_jax/xla`.

    Raises:
      InputError: the processes of a training do not find each other.
    """
    os.environ["XLA_FLAGS"] = cpu_flags(os.environ.get("XLA_FLAGS", ""), jaxlib.__version__)
    if not jax.config.jax_compilation_cache_dir:
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "market_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if _of_several() and not jax.distributed.is_initialized():
        count, number = _integer("JAX_NUM_PROCESSES"), _integer("JAX_PROCESS_ID")
        try:
            jax.distributed.initialize(num_processes=count, process_id=number)
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"the processes of this training do not find each other ({error}); see "
                "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
            ) from None


def _of_several() -> bool:
    """Whether this process is one of several, by the environment; who the others are JAX finds."""
    return (
        "JAX_COORDINATOR_ADDRESS" in os.environ
        or (_integer("JAX_NUM_PROCESSES") or 1) > 1
        or (_of_srun() and (_integer("SLURM_NTASKS") or 1) > 1)
        or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    )


def _of_srun() -> bool:
    """Whether srun has started this process; an allocation alone sets SLURM_NTASKS too."""
    return {"SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NODELIST"} <= os.environ.keys()


def _integer(variable: str) -> int | None:
    """An environment variable; None, where JAX is to find out by itself."""
    if variable not in os.environ:
        return None
    try:
        return int(os.environ[variable])
    except ValueError:
        raise InputError(f"{variable} is {os.environ[variable]!r}; it must be a number") from None


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with one axis "data", of type Auto: XLA propagates the sharding.

    Args:
      devices: the devices on the mesh; by default all.
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def share() -> tuple[int, int]:
    """(i, n): this process is number i of n; each process feeds its own part of every batch."""
    return jax.process_index(), jax.process_count()


def from_first(value):
    """What the first process has; every process calls it.

    Args:
      value: a number or an array, of the same shape and dtype in every process.
    """
    if share()[1] == 1:
        return value
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(value)


def check_batch_size(batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Checks that each part of a batch can be split evenly over the devices.

    Args:
      batch_size: images in a step.
      mesh: the devices.
      parts: the number of parts that a batch is cut into (`grad_accum_steps`).

    Raises:
      InputError: the batch size is below 1, or no multiple of devices times parts.
    """
    if batch_size < 1 or batch_size % (mesh.size * parts):
        times = f" times the {parts} parts of grad_accum_steps" if parts > 1 else ""
        raise InputError(
            f"batch_size is {batch_size}; it must be a multiple of the {mesh.size} device(s){times}"
        )


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """Copies arrays to every device.

    Args:
      mesh: the devices.
      tree: a pytree of arrays.
    """
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def replicated(mesh: Mesh, shapes: PyTree) -> PyTree:
    """Shapes and dtypes with the sharding of `replicate`, as a template for a checkpoint.

    Args:
      mesh: the devices.
      shapes: a pytree of arrays or `jax.ShapeDtypeStruct`s.
    """
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def place_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Splits the first axis of a batch over the devices.

    Args:
      mesh: the devices.
      batch: column name -> the rows that this process feeds, see `share`.
    """
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
