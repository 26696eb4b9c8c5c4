"""The benchmark's JAX side, run by `benchmarks.training` as a process: the project's own step."""

import functools
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import common
from market_jax import devices, networks
from market_jax.kernels import convolution
from market_jax.training import profile, step
from market_jax.training.state import create

IDENTITIES = 751
NETWORKS = {
    "attributes_cnn": {"classes": common.ATTRIBUTES},
    "autoencoder": {},
    "vae": {},
    "resnet34": {"name": "resnet", "depth": 34, "classes": {"pid": IDENTITIES}},
    "resnet50": {"name": "resnet", "depth": 50, "classes": {"pid": IDENTITIES}},
    "efficientnet_lite": {"classes": {"pid": IDENTITIES}},
}


def loss(names, outputs, batch):
    """What `training_torch` minimises: over the heads, or over the reconstruction."""
    terms = [
        jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(
                outputs[name], batch["label"] % outputs[name].shape[1]
            )
        )
        for name in names
    ]
    value = sum(terms) / max(len(terms), 1)
    if "reconstruction" in outputs:
        squares = jnp.square(outputs["reconstruction"] - batch["image"])
        value = jnp.mean(squares)
        if "logvar" in outputs:
            mean, logvar = outputs["mean"], outputs["logvar"]
            kl = -0.5 * jnp.sum(1 + logvar - mean**2 - jnp.exp(logvar))
            value = (jnp.sum(squares) + kl) / len(squares)
    return value, {"loss": value}


def make_step(network, dtype, variant, shape):
    """Returns a function that trains one step on a fixed batch and returns the loss."""
    model = networks.build({"name": network} | NETWORKS[network], dtype)
    tx = optax.adam(1e-3)
    batch = {
        "image": np.random.default_rng(0).random(shape, np.float32),
        "label": np.random.default_rng(1).integers(0, IDENTITIES, shape[0]),
    }
    batch = jax.device_put(batch)
    objective = functools.partial(loss, NETWORKS[network].get("classes", ()))

    def make(way):
        apply = convolution.applying(way, model.apply)
        return step.make_train_step(apply, objective, lambda key, images: images, tx)

    state = create(model, batch, tx, seed=0)
    train = make("lax" if variant == "plain" else variant)
    holder = {"state": state}

    def run():
        holder["state"], metrics = train(holder["state"], batch)
        return float(metrics["loss"])

    run.parameters = sum(p.size for p in jax.tree.leaves(state.params))
    run.flops = profile.count_flops(make("lax"), state, batch)
    return run


def main():
    """Reads a case, says when it is ready, then runs as many steps as each line asks for."""
    case = json.loads(sys.argv[1])
    if case["variant"] == "plain":  # as XLA comes
        devices.cpu_flags = lambda flags, version: flags
        devices.compiler_options = lambda backend, version: {}
    else:
        devices.keep_memory()
    devices.start()
    run = make_step(case["network"], case["dtype"], case["variant"], case["shape"])
    ready = {"loss": run(), "parameters": run.parameters, "flops": run.flops}
    print(json.dumps(ready | {"peak": profile.matrix_product_peak(case["dtype"])}), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            run()
        print((time.perf_counter() - start) / int(line), flush=True)


if __name__ == "__main__":
    main()
