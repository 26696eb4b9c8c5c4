"""Where the time of a training step goes: a trace, operations counted, the machine's peak."""

import contextlib
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import logging

from market_jax.files import write_atomically

SUMMARY = "summary.txt"
SKIPPED, TRACED = 3, 5  # steps: compiling and settling down, then what is looked at
TOP = 20  # operations in the summary


def count_flops(step: Callable, *arguments) -> float:
    """Floating-point operations of one call of a jitted function, by XLA's cost analysis.

    XLA counts the program before it is optimised, and does not see into foreign calls (oneDNN's):
    pass a function that computes the same with XLA alone.

    Args:
      step: the jitted function.
      *arguments: the arguments of the call; nothing is computed with them.
    """
    return float(step.lower(*arguments).cost_analysis()["flops"])


def matrix_product_peak(dtype: str, size: int = 2048, repeats: int = 4) -> float:
    """FLOP/s of a square matrix product on one device, the best of several measurements.

    Args:
      dtype: dtype of the matrices.
      size: rows and columns of the matrices.
      repeats: the number of measurements.
    """
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(product(a))
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def operation_times(directory: Path) -> Counter:
    """Seconds of each kind of XLA operation in the newest trace, over all steps and threads.

    The kind is the operation's name without its number. Threads add up, so the sum can exceed the
    time that has passed; an operation that runs others is counted as well as they are.

    Args:
      directory: the folder of the traces.
    """
    newest = max(Path(directory).rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    times: Counter = Counter()
    for plane in jax.profiler.ProfileData.from_file(str(newest)).planes:
        for line in plane.lines:
            for event in line.events:
                name = dict(event.stats).get("hlo_op")
                if name:
                    times[re.sub(r"[.\d]+$", "", str(name))] += event.duration_ns / 1e9
    return times


def _summary(
    directory: Path, seconds: list[float], flops: float, batch_size: int, dtype: str
) -> str:
    devices = jax.devices()
    median, peak = statistics.median(seconds), matrix_product_peak(dtype) * len(devices)
    lines = [
        f"device           {len(devices)} x {devices[0].device_kind}",
        f"precision        {dtype}",
        f"batch            {batch_size} images",
        f"step             {1e3 * median:.1f} ms, median of {len(seconds)}, one at a time",
        f"speed            {batch_size / median:.1f} images/s",
        f"operations       {flops / 1e9:.2f} GFLOP a step by XLA's cost analysis",
        f"rate             {flops / median / 1e9:.1f} GFLOP/s",
        f"peak             {peak / 1e9:.1f} GFLOP/s, a {dtype} matrix product of 2048x2048",
        f"share of peak    {100 * flops / median / peak:.1f} %",
        "",
        "ms a step, by kind of operation, summed over threads",
    ]
    times = operation_times(directory)
    lines += [f"{1e3 * t / len(seconds):9.2f}  {name}" for name, t in times.most_common(TOP)]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def traced(
    step: Callable, directory: Path, *, count: Callable, batch_size: int, dtype: str
) -> Iterator[Callable]:
    """Traces some steps of a training, after the first few.

    Args:
      step: (state, batch) -> (state, metrics).
      directory: where the trace is written, for TensorBoard and (perfetto_trace.json.gz)
        ui.perfetto.dev, and summary.txt.
      count: (state, batch) -> floating-point operations of a step.
      batch_size: images in a step.
      dtype: dtype of the computation.

    Yields:
      A function to call in place of `step`, with the same results.
    """
    seconds: list[float] = []
    calls, flops, running = 0, 0.0, False

    def run(state, batch):
        nonlocal calls, flops, running
        calls += 1
        if calls <= SKIPPED or len(seconds) == TRACED:
            return step(state, batch)
        if not running:
            jax.block_until_ready(state)
            flops = count(state, batch)
            directory.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(directory), create_perfetto_trace=True)
            running = True
        start = time.perf_counter()
        result = jax.block_until_ready(step(state, batch))
        seconds.append(time.perf_counter() - start)
        if len(seconds) == TRACED:
            finish()
        return result

    def finish():
        nonlocal running
        running = False
        jax.profiler.stop_trace()
        text = _summary(directory, seconds, flops, batch_size, dtype)
        write_atomically(directory / SUMMARY, text)
        logging.info("profile of %d steps in %s:\n%s", len(seconds), directory, text)

    try:
        yield run
    finally:
        if running and seconds:
            finish()
        elif running:
            jax.profiler.stop_trace()
        if not seconds:
            logging.warning("no profile: the training had no more than %d steps", SKIPPED)
