"""Where the time of a training goes: operations counted, the machine's peak measured."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp


def count_flops(step: Callable, *arguments) -> float:
    """Floating-point operations of one call of a jitted function, by XLA's cost analysis.

    It is XLA's count of the program before it is optimised, which does not see into foreign calls
    (oneDNN's): count what computes the same by XLA alone.
    """
    return float(step.lower(*arguments).cost_analysis()["flops"])


def matrix_product_peak(dtype: str, size: int = 2048, repeats: int = 4) -> float:
    """FLOP/s of a square matrix product on one device, the best of several."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(product(a))
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)
