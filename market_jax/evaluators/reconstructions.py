"""What people look at while an autoencoder trains: reconstructions, draws, interpolations."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from market_jax import losses
from market_jax.data import columns, transforms
from market_jax.report import curves, pictures
from market_jax.typing import Array, Columns, PyTree

_SHOWN, _STEPS = 12, 9  # pictures in a row, steps of an interpolation
_PAIRS = 4  # interpolations


def make(apply: Callable, model, rows: Columns, seed: int = 0) -> Callable[[PyTree, Path], None]:
    """Returns the function that draws into a folder.

    It writes `reconstructions.png`, images over what becomes of them; and for a model that has
    `decode`, `samples.png` from the prior, `interpolations.png` between two images, and
    `latent.png`, the KL divergence of each dimension.

    Args:
      apply: `model.apply`.
      model: with the outputs "reconstruction" and "target".
      rows: of whose images some are shown, the same every time.
      seed: of the choice and of the draws.
    """
    rng = np.random.default_rng(seed)
    size = min(_SHOWN, len(rows["name"]))
    chosen = columns.select(rows, np.sort(rng.choice(len(rows["name"]), size, replace=False)))
    images = transforms.to_float(jnp.asarray(chosen["image"][np.arange(size)]))
    image_size = images.shape[1:3]
    run = jax.jit(apply)

    @jax.jit
    def decode(variables: PyTree, latent: Array) -> Array:
        return apply(variables, latent, image_size, method="decode")

    def draw(variables: PyTree, folder: Path) -> None:
        outputs = jax.device_get(run(variables, images))
        shown = functools.partial(pictures.to_unit_range, target=outputs["target"])
        both = [shown(outputs[key]) for key in ("target", "reconstruction")]
        _save(pictures.grid(both), folder / "reconstructions.png")
        if not hasattr(model, "decode"):
            return
        mean = outputs["mean"]
        draws = np.random.default_rng(seed).normal(size=(2 * _SHOWN, mean.shape[1]))
        samples = shown(decode(variables, jnp.asarray(draws, jnp.float32)))
        _save(pictures.grid([samples[:_SHOWN], samples[_SHOWN:]]), folder / "samples.png")
        ways = []
        for a, b in list(zip(mean[::2], mean[1::2], strict=False))[:_PAIRS]:
            share = np.linspace(0, 1, _STEPS, dtype=np.float32)[:, None]
            ways.append(shown(decode(variables, (1 - share) * a + share * b)))
        if ways:
            _save(pictures.grid(ways), folder / "interpolations.png")
        kl = np.asarray(losses.kl_of_dimensions(outputs)).mean(axis=0)
        curves.draw_dimensions(kl, folder / "latent.png")

    return draw


def _save(picture: np.ndarray, path: Path) -> None:
    Image.fromarray(picture).save(path)
