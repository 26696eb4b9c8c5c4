"""What people look at while an autoencoder trains: reconstructions, draws, interpolations."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

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

    def shown(values: Array, outputs: dict[str, np.ndarray]) -> np.ndarray:
        """From the range of the targets to [0, 1]."""
        low = min(float(np.min(outputs["target"])), 0.0)
        return np.clip((np.asarray(values) - round(low)) / (1 - round(low)), 0, 1)

    def draw(variables: PyTree, folder: Path) -> None:
        outputs = jax.device_get(run(variables, images))
        both = [shown(outputs[key], outputs) for key in ("target", "reconstruction")]
        _save(pictures.grid(both), folder / "reconstructions.png")
        if not hasattr(model, "decode"):
            return
        mean = outputs["mean"]
        draws = np.random.default_rng(seed).normal(size=(2 * _SHOWN, mean.shape[1]))
        samples = shown(decode(variables, jnp.asarray(draws, jnp.float32)), outputs)
        _save(pictures.grid([samples[:_SHOWN], samples[_SHOWN:]]), folder / "samples.png")
        ways = []
        for a, b in list(zip(mean[::2], mean[1::2], strict=False))[:_PAIRS]:
            share = np.linspace(0, 1, _STEPS, dtype=np.float32)[:, None]
            ways.append(shown(decode(variables, (1 - share) * a + share * b), outputs))
        if ways:
            _save(pictures.grid(ways), folder / "interpolations.png")
        kl = 0.5 * (np.exp(outputs["logvar"]) + mean**2 - 1 - outputs["logvar"])
        curves.draw_dimensions(kl.mean(axis=0), folder / "latent.png")

    return draw


def _save(picture: np.ndarray, path: Path) -> None:
    Image.fromarray(picture).save(path)
