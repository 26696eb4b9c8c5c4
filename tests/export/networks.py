"""Untrained networks that are exported, and what they return."""

import functools

import jax
import numpy as np

from market_jax.export import functions
from market_jax.kernels import convolution
from market_jax.models import norms
from market_jax.training.state import draw_variables

CLASSES = {"age": 4, "hat": 2}


def draw(template):
    """Variables for a template, BatchNorm's statistics as if it had seen something."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        value = rng.standard_normal(leaf.shape, np.float32)
        if len(leaf.shape) < 2:
            return 1 + np.float32(0.1) * value
        return value / np.float32(np.sqrt(np.prod(leaf.shape[:-1])))

    return jax.tree.map(fill, template)


def images(count, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)


def prepare(model, size):
    """The variables, each BatchNorm in its convolution."""
    with convolution.using("lax"):
        template = jax.eval_shape(lambda: draw_variables(model, size, jax.random.key(0)))
        variables = draw(template)
        fold = jax.jit(functools.partial(norms.fold, model.apply, image_size=size))
        return {**variables, **fold(variables)}


def labels_of(model):
    return tuple(getattr(model, "classes", None) or ())


def expected(model, variables, given, *, flip=False):
    """What the network returns for images, its weights as arguments."""

    @jax.jit
    def run(variables, given):
        settings = {"labels": labels_of(model), "flip": flip}
        return functions.make_function(model.apply, variables, **settings)(given)

    return jax.device_get(run(variables, given))


def function(model, variables, *, flip=False):
    """What is exported, its weights as constants."""
    return functions.make_function(model.apply, variables, labels=labels_of(model), flip=flip)
