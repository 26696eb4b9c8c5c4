"""Pictures of an autoencoder at work: reconstructions, draws from the prior, interpolations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from market_jax.data import columns as columns_
from market_jax.data import transforms
from market_jax.data.datasets import Dataset
from market_jax.evaluators.result import Result
from market_jax.inference import Predictor
from market_jax.losses.reconstruction import kl_of_dimensions
from market_jax.report import curves, pictures
from market_jax.typing import Columns

_SHOWN, _STEPS = 12, 9  # pictures in a row, steps of an interpolation
_PAIRS = 4  # interpolations


def _choose(columns: Columns, seed: int) -> jax.Array:
    """Some images, the same every time: float32 [n, H, W, 3]."""
    rng, size = np.random.default_rng(seed), len(columns["name"])
    rows = np.sort(rng.choice(size, min(_SHOWN, size), replace=False))
    chosen = columns_.select(columns, rows)["image"]
    return transforms.to_float(jnp.asarray(chosen[np.arange(len(rows))]))


def _draw_latent(predict: Predictor, outputs: dict, size: tuple[int, int], seed: int) -> dict:
    """Pictures of a model that has `decode`."""
    shown = functools.partial(pictures.to_unit_range, target=outputs["target"])

    @jax.jit
    def decode(latent):
        return predict.apply(predict.variables, latent, size, method="decode")

    mean = outputs["mean"]
    draws = np.random.default_rng(seed).normal(size=(2 * _SHOWN, mean.shape[1]))
    samples = shown(decode(jnp.asarray(draws, jnp.float32)))
    ways = []
    for a, b in list(zip(mean[::2], mean[1::2], strict=False))[:_PAIRS]:
        share = np.linspace(0, 1, _STEPS, dtype=np.float32)[:, None]
        ways.append(shown(decode((1 - share) * a + share * b)))
    kl = np.asarray(kl_of_dimensions(outputs)).mean(axis=0)
    drawn = {
        "samples.png": pictures.grid([samples[:_SHOWN], samples[_SHOWN:]]),
        "latent.png": curves.draw_dimensions(kl),
    }
    return drawn | ({"interpolations.png": pictures.grid(ways)} if ways else {})


def evaluate(predict: Predictor, dataset: Dataset, *, split: str = "val", seed: int = 0) -> Result:
    """Draws pictures that show how well an autoencoder works.

    `reconstructions.png` has images above their reconstructions. A model with a method `decode`
    also gets `samples.png`, drawn from the prior; `interpolations.png` between two images; and
    `latent.png`, the KL divergence of each dimension.

    Args:
      predict: a model with the outputs "reconstruction" and "target".
      dataset: the data set from which some images are shown.
      split: the split that they are taken from.
      seed: seeds the choice of images and the draws from the prior.

    Returns:
      A result with pictures only.
    """
    images = _choose(dataset.open(split), seed)
    outputs = jax.device_get(jax.jit(predict.apply)(predict.variables, images))
    both = [
        pictures.to_unit_range(outputs[key], outputs["target"])
        for key in ("target", "reconstruction")
    ]
    drawn = {"reconstructions.png": pictures.grid(both)}
    if hasattr(predict.model, "decode"):
        drawn |= _draw_latent(predict, outputs, images.shape[1:3], seed)
    return Result(pictures=drawn)
