"""The benchmark's JAX side, run by `benchmarks.inference` as a process: what `Predictor` runs."""

import functools
import json
import sys

import jax
import numpy as np

from benchmarks.workers import resident_memory, serve
from market_jax import build, devices
from market_jax.inference import make_forward
from market_jax.kernels import convolution
from market_jax.models import norms
from market_jax.training.state import init_variables

SIZE = (256, 128)
NETWORKS = {
    "efficientnet_lite": {"name": "efficientnet_lite"},
    "resnet50": {"name": "resnet", "depth": 50},
}


def make_run(network, variant, batch):
    """Returns a function from nothing to the features [N, D] of a fixed batch of uint8 images."""
    model = build.model(NETWORKS[network])
    variables = init_variables(model, SIZE, seed=0)
    apply = convolution.applying(variant, model.apply)
    fold = jax.jit(functools.partial(norms.fold, apply, image_size=SIZE))
    folded = {**variables, **fold(variables)}
    forward = make_forward(apply, ("feature",), flip=False, derive=lambda outputs: outputs)
    images = np.random.default_rng(0).integers(0, 256, (batch, *SIZE, 3), np.uint8)

    def run():
        return np.asarray(forward(folded, images)["feature"])

    run.parameters = sum(p.size for p in jax.tree.leaves(variables["params"]))
    return run


def main():
    """Reads a case, says when it is ready, then runs as many batches as each line asks for."""
    case = json.loads(sys.argv[1])
    devices.start()
    jax.devices()
    start_memory = resident_memory()
    run = make_run(case["network"], case["variant"], case["batch"])
    ready = {"parameters": run.parameters, "shape": run().shape, "mean": float(run().mean())}
    serve(run, ready | {"start_memory": start_memory})


if __name__ == "__main__":
    main()
