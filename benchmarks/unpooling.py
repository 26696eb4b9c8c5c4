"""Max-pooling with indices and max-unpooling beside Flax's plain `nn.max_pool`.

python -m benchmarks.unpooling [--rounds=9]

Each under jit, forward and backward, on the maps of configs/autoencoder.py (batch 32). Variants
alternate; a cell is the median of the rounds, and the ratio to `nn.max_pool` in the same round.
"""

import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import app, flags

from market_jax import devices
from market_jax.kernels.pooling import max_pool_with_indices, max_unpool
from market_jax.report import tables

ROUNDS = flags.DEFINE_integer("rounds", 9, "Counted rounds.")
WINDOW = (2, 2)
SHAPES = ((32, 128, 64, 64), (32, 64, 32, 128), (32, 32, 16, 256))


def with_gradient(function):
    """(x, cotangent) -> value and gradient, compiled."""

    @jax.jit
    def run(x, cotangent):
        y, pull = jax.vjp(function, x)
        return y, pull(cotangent)[0]

    return run


def variants(x: jax.Array) -> dict:
    """Name -> () -> arrays."""
    pooled, indices = max_pool_with_indices(x, WINDOW)
    calls = {
        "nn.max_pool": (with_gradient(lambda x: nn.max_pool(x, WINDOW, WINDOW)), x, pooled),
        "max_pool_with_indices": (
            with_gradient(lambda x: max_pool_with_indices(x, WINDOW)[0]),
            x,
            pooled,
        ),
        "max_unpool": (
            with_gradient(lambda v: max_unpool(v, indices, x.shape[1:3], WINDOW)),
            pooled,
            x,
        ),
    }
    return {name: lambda call=call: call[0](*call[1:]) for name, call in calls.items()}


def main(_) -> None:
    """Measures and prints a table."""
    devices.start()
    lines = []
    for shape in SHAPES:
        for dtype in (jnp.float32, jnp.bfloat16):
            calls = variants(jax.random.normal(jax.random.key(0), shape, dtype))
            times = {name: [] for name in calls}
            for _ in range(ROUNDS.value + 1):  # the first compiles
                for name, call in calls.items():
                    begin = time.perf_counter()
                    jax.block_until_ready(call())
                    times[name].append(time.perf_counter() - begin)
            plain = times["nn.max_pool"][1:]
            for name, seconds in times.items():
                ratios = [a / b for a, b in zip(seconds[1:], plain, strict=True)]
                lines.append(
                    (
                        f"{shape} {jnp.dtype(dtype).name}, {name}",
                        f"{1e3 * statistics.median(seconds[1:]):.1f}",
                        f"{statistics.median(ratios):.2f}",
                    )
                )
    print(tables.align(("map, variant", "ms", "to nn.max_pool"), lines))


if __name__ == "__main__":
    app.run(main)
