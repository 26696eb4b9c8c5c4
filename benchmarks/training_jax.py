"""The benchmark's JAX side, run by `benchmarks.training` as a process: the project's own step."""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.workers import resident_memory, serve
from configs import common
from market_jax import build, devices, fitting, losses
from market_jax.kernels import convolution
from market_jax.training import profile, step
from market_jax.training.state import init_state, init_variables

IDENTITIES = 751
NETWORKS = {
    "attributes_cnn": {"classes": common.ATTRIBUTES},
    "autoencoder": {},
    "vae": {},
    "resnet34": {"name": "resnet", "depth": 34, "classes": {"pid": IDENTITIES}},
    "resnet50": {"name": "resnet", "depth": 50, "classes": {"pid": IDENTITIES}},
    "efficientnet_lite": {"classes": {"pid": IDENTITIES}},
    "osnet": {"classes": {"pid": IDENTITIES}},
    "vit_small": {"name": "vit", "size": "small", "classes": {"pid": IDENTITIES}},
}


def loss(names, context):
    """What `networks_torch` minimises: over the heads, or over the reconstruction."""
    outputs, batch = context.outputs, context.batch
    terms = [
        optax.softmax_cross_entropy_with_integer_labels(
            outputs[name], batch["label"] % outputs[name].shape[1]
        )
        for name in names
    ]
    values = sum(terms) / max(len(terms), 1)
    if "reconstruction" in outputs:
        squares = jnp.square(outputs["reconstruction"] - batch["image"])
        values = jnp.mean(squares, axis=(1, 2, 3))
        if "logvar" in outputs:
            kl = losses.TERMS["kl"](context)[0]
            values = jnp.sum(squares, axis=(1, 2, 3)) + kl
    return values, jnp.ones(len(batch["image"]))


def make_step(network, dtype, variant, shape):
    """Returns a function that trains one step on a fixed batch and returns the loss."""
    model = build.model({"name": network} | NETWORKS[network], dtype)
    tx = optax.adam(1e-3)
    batch = {
        "image": np.random.default_rng(0).random(shape, np.float32),
        "label": np.random.default_rng(1).integers(0, IDENTITIES, shape[0]),
        "mask": np.ones(shape[0], bool),
    }
    batch = jax.device_put(batch)
    term = functools.partial(loss, NETWORKS[network].get("classes", ()))
    objective = step.Objective({"all": losses.Term(term)}, {})

    def make(way):
        apply = convolution.applying(way, model.apply)
        return step.make_train_step(apply, objective, lambda key, images: images, tx)

    state = init_state(init_variables(model, shape[1:3], seed=0), tx, seed=0)
    train = fitting.settle(make("lax" if variant == "plain" else variant))
    holder = {"state": state}

    def run():
        holder["state"], metrics = train(holder["state"], batch)
        return float(metrics["loss"])

    run.parameters = sum(p.size for p in jax.tree.leaves(state.params))
    run.count = lambda: profile.count_flops(make("lax"), holder["state"], batch)
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
    jax.devices()
    start_memory = resident_memory()
    run = make_step(case["network"], case["dtype"], case["variant"], case["shape"])
    ready = {"loss": run(), "parameters": run.parameters, "start_memory": start_memory}

    def last():
        return {"flops": run.count(), "peak": profile.matrix_product_peak(case["dtype"])}

    serve(run, ready, last)


if __name__ == "__main__":
    main()
