"""A tracker's call beside ONNX Runtime's: crops of any sizes to embeddings, some at a time.

python -m benchmarks.tracker --model=RUN [--counts=1,4,16,64] [--rounds=7]

market_jax   `model.embed(crops)` of `market_jax.load`
onnxruntime  the same network by `--task=export --to=onnx`, crops resized by Pillow as market_jax
             resizes them; `pip install "market_jax[onnx]"`
int8         the same in eight bits, if --int8

A call has a list of crops, 60 to 300 high and a third to a half as wide, no two of one size. Every
variant is a process of its own, of which one runs at a time. Prints the median over the rounds of
the milliseconds of a call, the crops a second, the ratio to ONNX Runtime within a round (below 1:
faster), and the compilations after the first two calls, in which there were other numbers of crops,
too.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import app, flags, logging

import market_jax
from benchmarks.workers import Worker, compare, ratio, serve
from market_jax import devices, programs, scripts
from market_jax.data import decoding
from market_jax.export import onnx
from market_jax.report import tables

MODEL = flags.DEFINE_string("model", "small", "A run, or a published network.")
COUNTS = flags.DEFINE_list("counts", ["1", "4", "16", "64"], "Crops in a call.")
INT8 = flags.DEFINE_bool("int8", False, "Measure eight bits too, by the run's training pictures.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds; the first one warms up and is left out.", 2)
SECONDS = flags.DEFINE_float("seconds", 2.0, "Of each variant in a round, about.")

OURS, PEER, EIGHT_BITS = "market_jax", "onnxruntime", "int8"
HEADER = ("crops", "variant", "ms", "crops/s", "to onnxruntime", "compilations")
_CALLS = 16  # different ones


def crops(count: int, seed: int) -> list[np.ndarray]:
    """Pictures of a call, uint8 [h, w, 3] of several sizes.

    Args:
      count: the number of crops.
      seed: of the call.
    """
    rng = np.random.default_rng(seed)
    heights = rng.integers(60, 300, count)
    widths = (heights * rng.uniform(1 / 3, 1 / 2, count)).astype(int)
    sizes = zip(heights, widths, strict=True)
    return [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in sizes]


def embedder(case: dict) -> Callable[[list[np.ndarray]], np.ndarray]:
    """The function of a variant: crops to embeddings [n, D].

    Args:
      case: of a worker.
    """
    if case["variant"] == OURS:
        return market_jax.load(case["model"]).embed
    embed, size = onnx.embedder(Path(case["file"])), tuple(case["size"])
    return lambda pictures: embed(np.stack([decoding.resize(x, size) for x in pictures]))


def work(case: dict) -> None:
    """A worker: calls with so many crops, again and again.

    Args:
      case: "variant", "model", "file", "size" and "count".
    """
    import jax

    devices.start()
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "backend_compile" in event else None
    )
    embed, calls, done = embedder(case), [crops(case["count"], i) for i in range(_CALLS)], [0]
    for count in (case["count"], 64, 8, 1):
        shape = embed(crops(count, 99)).shape
    before = len(compiled)
    embed(crops(37, 98))

    def run() -> None:
        done[0] += 1
        embed(calls[done[0] % _CALLS])

    serve(run, {"shape": shape}, lambda: {"compilations": len(compiled) - before})


def lines(count: int, result: dict[str, dict]) -> list[tuple[str, ...]]:
    """The rows of the table for a number of crops.

    Args:
      count: crops in a call.
      result: variant -> what `workers.compare` has found.
    """
    rows = []
    for variant, report in result.items():
        seconds = statistics.median(report["seconds"])
        speed = f"{count / seconds:.1f}"
        times = (f"{1e3 * seconds:.2f}", speed, ratio(report, result[PEER]))
        rows.append((str(count), variant, *times, str(report["compilations"])))
    return rows


def main(arguments: list[str]) -> None:
    """Measures and prints a table, or works as one of the processes."""
    if len(arguments) > 1:
        work(json.loads(arguments[1]))
        return
    with scripts.messages("tracker", "nothing was kept"), tempfile.TemporaryDirectory() as folder:
        logging.set_verbosity(logging.WARNING)
        devices.start()
        run, files = market_jax.load(MODEL.value).run, {PEER: "x.onnx", EIGHT_BITS: "8.onnx"}
        variants = [OURS, PEER, *([EIGHT_BITS] if INT8.value else [])]
        case = {"model": MODEL.value, "size": list(run.config.data.image_size)}
        for variant in variants[1:]:
            path, seen = Path(folder) / files[variant], variant == EIGHT_BITS
            programs.export(run, str(path), "onnx", _people(case["size"]), int8=seen)

        def start(variant: str) -> Worker:
            place = str(Path(folder) / files.get(variant, ""))
            this = case | {"variant": variant, "file": place, "count": count}
            return Worker([sys.executable, "-m", "benchmarks.tracker"], this)

        rows = []
        for count in map(int, COUNTS.value):
            rows += lines(count, compare(start, variants, ROUNDS.value, SECONDS.value))
        print(tables.align(HEADER, rows))


def _people(size: list[int]) -> dict[str, np.ndarray]:
    """Columns of a few made pictures, by which the exported files are compared."""
    images = np.stack([decoding.resize(x, tuple(size)) for x in crops(8, 7)])
    return {"image": images, "name": np.array([str(i) for i in range(8)])}


if __name__ == "__main__":
    app.run(main)
