"""A training step beside PyTorch's: same network, batch, precision and threads, alternating.

python -m venv peer && peer/bin/pip install torch==2.13.0
python -m benchmarks.training --peer=peer/bin/python [--networks=vae,resnet34] [--json=FILE]

Every variant is a process of its own, of which one runs at a time: XLA as it comes ("plain"), the
project's lowering ("jax"), oneDNN through jax.ffi ("onednn"), PyTorch on the CPU, eager and
compiled, channels last. In every round each variant runs the same number of steps. Prints medians
over the rounds: milliseconds, images/s, the ratio to the faster PyTorch variant within a round
(below 1: faster than PyTorch), the share of the fastest matrix product seen on this machine, the
peak of the process's memory in MiB, compilation included, how far that is above what it had when
its libraries were imported, and the faults of pages in a step. The last three need Linux.
"""

import json
import os
import statistics
import sys
from pathlib import Path

from absl import app, flags

from benchmarks.workers import Worker, compare, memory, ratio
from market_jax.files import write_atomically
from market_jax.report import tables

CASES = {
    "attributes_cnn": ("attributes_cnn", (64, 128, 64, 3)),
    "autoencoder": ("autoencoder", (32, 128, 64, 3)),
    "vae": ("vae", (64, 64, 64, 3)),
    "resnet34": ("resnet34", (64, 128, 64, 3)),
    "resnet50": ("resnet50", (32, 256, 128, 3)),
    "efficientnet_lite": ("efficientnet_lite", (64, 128, 64, 3)),
    "osnet": ("osnet", (64, 256, 128, 3)),
    "vit_small": ("vit_small", (32, 256, 128, 3)),
    "efficientnet_lite_256x128": ("efficientnet_lite", (64, 256, 128, 3)),
}
OURS, PEERS = ("plain", "jax", "onednn"), ("eager", "compiled")

NETWORKS = flags.DEFINE_list("networks", [*CASES], "Which cases to run.")
DTYPES = flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "Which precisions.")
VARIANTS = flags.DEFINE_list("variants", [*OURS, *PEERS], "Which variants.")
PEER = flags.DEFINE_string("peer", None, "Python that has PyTorch; without it, ours alone.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds; the first one warms up and is left out.", 2)
SECONDS = flags.DEFINE_float("seconds", 2.0, "Of each variant in a round, about.")
JSON = flags.DEFINE_string("json", None, "Where to keep every measured time.")


def start(case: dict) -> Worker:
    """The process of a case's variant."""
    ours = case["variant"] in OURS
    side = "training_jax" if ours else "training_torch"
    program = [sys.executable, "-m", f"benchmarks.{side}"]
    if not ours:
        program = [PEER.value, str(Path(__file__).parent / f"{side}.py")]
    return Worker(program, case)


def measure(name: str, dtype: str) -> dict:
    """All variants of a case: variant -> its worker's report, and "seconds", one for each round."""
    network, shape = CASES[name]
    case = {"network": network, "shape": shape, "dtype": dtype, "threads": os.cpu_count()}
    variants = [v for v in VARIANTS.value if v in OURS or PEER.value]
    return compare(
        lambda variant: start(case | {"variant": variant}), variants, ROUNDS.value, SECONDS.value
    )


def rows(name: str, dtype: str, result: dict) -> list[tuple[str, ...]]:
    """The lines of the table for a case."""
    medians = {v: statistics.median(r["seconds"]) for v, r in result.items()}
    peers = [v for v in PEERS if v in result]
    reference = result[min(peers, key=medians.get)] if peers else None
    flops = next(r["flops"] for v, r in result.items() if "flops" in r)
    peak = max(r["peak"] for r in result.values())
    lines = []
    for variant, report in result.items():
        seconds = medians[variant]
        speed = f"{CASES[name][1][0] / seconds:.1f}"
        share = f"{100 * flops / seconds / peak:.0f} %"
        cells = (f"{1e3 * seconds:.0f}", speed, ratio(report, reference), share)
        faults = f"{report['faults']:.0f}"
        lines.append((name, dtype, variant, *cells, *memory(report), faults))
    return lines


def main(_) -> None:
    """Measures and prints a table."""
    results, lines = {}, []
    for name in NETWORKS.value:
        for dtype in DTYPES.value:
            result = measure(name, dtype)
            results[f"{name} {dtype}"] = result
            lines += rows(name, dtype, result)
            print(*("  ".join(line) for line in lines[-len(result) :]), sep="\n", flush=True)
            if JSON.value:
                write_atomically(Path(JSON.value), json.dumps(results, indent=1) + "\n")
    times = ("ms", "images/s", "to PyTorch", "of peak")
    header = ("network", "dtype", "variant", *times, "peak MiB", "above libraries", "faults")
    print(tables.align(header, lines))


if __name__ == "__main__":
    app.run(main)
