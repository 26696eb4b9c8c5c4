"""A tiny network as a run, and what its published file holds."""

import json

import jax
import numpy as np
import optax
import safetensors
import safetensors.numpy

from configs import source_b
from market_jax import build, devices, history, runs, settings
from market_jax.data.attributes import CLASSES
from market_jax.data.datasets import Division
from market_jax.inference import Predictor
from market_jax.training import checkpoints
from market_jax.training.state import init_state

IDENTITIES = 5


def as_run(config, workdir, pids):
    """A run of an untrained network, BatchNorm's statistics as if it had seen something."""
    rng = np.random.default_rng(0)
    model, template = runs.make_template(config)

    def draw(leaf):
        value = rng.normal(size=leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
        return np.asarray(1 + 0.1 * value if len(leaf.shape) == 1 else value, leaf.dtype)

    variables = devices.replicate(devices.make_mesh(), jax.tree.map(draw, template))
    predict = Predictor(build.apply(config, model), variables, model=model, batch_size=8)
    division = Division("synthetic", {"train": pids, "val": [1001, 1002], "holdout": []}, {})
    extra = {
        "config": settings.to_json(config),
        "divisions": [division._asdict()],
        "labels": {name: list(classes) for name, classes in CLASSES.items()},
        "label_counts": {name: [1] * len(classes) for name, classes in CLASSES.items()},
    }
    return runs.Run(workdir, 7, config, predict, extra, [division])


def keep(workdir, config, divisions, *, variables=None, step=7, score=1.0, beginnings=()):
    """Writes a checkpoint as a run leaves it, by default of next to nothing."""
    extra = {
        "format": settings.FORMAT,
        "config": settings.to_json(config),
        "labels": {},
        "divisions": [division._asdict() for division in divisions],
        "clustered": [],
        "beginnings": history.as_json(beginnings),
    }
    state = init_state(variables or {"params": {"x": np.zeros(1)}}, optax.identity(), seed=0)
    how = {"score": score, "round_start": 0, "extra": extra}
    checkpoints.save(workdir / "checkpoints", step, state, **how)
    return str(workdir)


def tiny(**changes):
    """A classifier of attributes and persons, of another machine."""
    config = source_b.get_config("identity,alexnet,dense=False")
    config.data.image_size, config.data.dir = (96, 64), "/home/somebody/data"
    config.model.head.width, config.model.identities = 8, IDENTITIES
    config.model.pretrained = "/home/somebody/alexnet.pth"
    config.convolution, config.batch_size = "lax", 8
    config.update_from_flattened_dict(changes)
    return config


def read(path):
    """The tensors, and the metadata."""
    with safetensors.safe_open(path, framework="numpy") as opened:
        return safetensors.numpy.load_file(path), json.loads(opened.metadata()["market_jax"])
