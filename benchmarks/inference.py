"""A network in inference beside its peers: images to features, alternating, medians and ratios.

python -m venv peer && peer/bin/pip install torch==2.13.0 onnx onnxruntime openvino
python -m benchmarks.inference --peer=peer/bin/python [--networks=resnet50] [--batches=1,8]

Crops of 256x128 to the pooled feature, float32, random weights. Ours is pure JAX ("jax") and oneDNN
through jax.ffi ("onednn"), its BatchNorms folded, as `Predictor` runs it, without what training
sets for the memory. The peers are ONNX Runtime and OpenVINO, which read the network that PyTorch
exports, and PyTorch, compiled and eager, channels last. Ours does slightly more: it is given uint8
images and makes them float32 and normalises them in every run; the peers are given float32 that is
normalised already.

Every variant is a process of its own, of which one runs at a time. Prints medians over the rounds:
milliseconds, images/s, the ratio to the faster of ONNX Runtime and OpenVINO within a round (below
1: faster), the peak of the process's memory in MiB, compilation included, and how far that is above
what it had when its libraries were imported. The last two need Linux.
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

OURS, PEERS = ("jax", "onednn"), ("onnxruntime", "openvino", "compiled", "eager")

NETWORKS = flags.DEFINE_list("networks", ["efficientnet_lite", "resnet50"], "Which networks.")
BATCHES = flags.DEFINE_list("batches", ["1", "8", "64"], "Images at a time.")
VARIANTS = flags.DEFINE_list("variants", [*OURS, *PEERS], "Which variants.")
PEER = flags.DEFINE_string("peer", None, "Python that has the peers; without it, ours alone.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds; the first one warms up and is left out.", 2)
SECONDS = flags.DEFINE_float("seconds", 1.0, "Of each variant in a round, about.")
JSON = flags.DEFINE_string("json", None, "Where to keep every measured time.")


def start(case: dict) -> Worker:
    """The process of a case's variant."""
    if case["variant"] in OURS:
        return Worker([sys.executable, "-m", "benchmarks.inference_jax"], case)
    return Worker([PEER.value, str(Path(__file__).parent / "inference_peers.py")], case)


def measure(network: str, batch: int) -> dict[str, dict]:
    """All variants of a case, as `workers.compare` returns them."""
    case = {"network": network, "batch": batch, "threads": os.cpu_count()}
    variants = [v for v in VARIANTS.value if v in OURS or PEER.value]
    return compare(
        lambda variant: start(case | {"variant": variant}), variants, ROUNDS.value, SECONDS.value
    )


def rows(network: str, batch: int, result: dict[str, dict]) -> list[tuple[str, ...]]:
    """The lines of the table for a case."""
    medians = {v: statistics.median(r["seconds"]) for v, r in result.items()}
    peers = [v for v in PEERS[:2] if v in result]
    reference = result[min(peers, key=medians.get)] if peers else None
    lines = []
    for variant, report in result.items():
        seconds = medians[variant]
        speed = f"{batch / seconds:.1f}"
        cells = (f"{1e3 * seconds:.1f}", speed, ratio(report, reference), *memory(report))
        lines.append((network, str(batch), variant, *cells))
    return lines


def main(_) -> None:
    """Measures and prints a table."""
    results, lines = {}, []
    for network in NETWORKS.value:
        for batch in map(int, BATCHES.value):
            result = measure(network, batch)
            results[f"{network} {batch}"] = result
            lines += rows(network, batch, result)
            print(*("  ".join(line) for line in lines[-len(result) :]), sep="\n", flush=True)
            if JSON.value:
                write_atomically(Path(JSON.value), json.dumps(results, indent=1) + "\n")
    times = ("ms", "images/s", "to faster peer")
    header = ("network", "batch", "variant", *times, "peak MiB", "above libraries")
    print(tables.align(header, lines))


if __name__ == "__main__":
    app.run(main)
