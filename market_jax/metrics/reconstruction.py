"""How well images are reconstructed, and whether that separates junk from people."""

import jax.numpy as jnp
import numpy as np

from market_jax.errors import InputError
from market_jax.typing import Array

SCORES = ("error", "normalized")
QUANTILE, DEVIATIONS = 0.98, 3.5  # of the two proposed thresholds


def scores(target: Array, reconstruction: Array) -> dict[str, Array]:
    """Scores of N images: the stranger an image, the higher. Can be compiled by `jax.jit`.

    Args:
      target: the images, float [N, H, W, C].
      reconstruction: their reconstructions, float [N, H, W, C].

    Returns:
      {"error": [N] the mean squared error, "normalized": [N] the error divided by the image's own
      variance; the plain error mostly follows an image's contrast}.
    """
    error = jnp.mean(jnp.square(target - reconstruction), axis=(1, 2, 3))
    center = jnp.mean(target, axis=(1, 2), keepdims=True)
    variance = jnp.mean(jnp.square(target - center), axis=(1, 2, 3))
    return {"error": error, "normalized": error / jnp.maximum(variance, 1e-6)}


def propose_thresholds(values: np.ndarray) -> dict[str, float]:
    """Proposes thresholds for a score without labels: name -> value.

    Args:
      values: the scores, [M].

    Returns:
      {"quantile": the score that 2 % exceed, "robust_z": 3.5 robust standard deviations (1.4826 of
      the median absolute deviation) above the median}. Where more than 2 % have the highest score,
      the quantile is the score below it; where most have the same score, the second is the first.
    """
    median, known = np.median(values), np.unique(values)
    deviation = 1.4826 * np.median(np.abs(values - median))
    quantile = min(np.quantile(values, QUANTILE), known[-2:][0])
    robust = median + DEVIATIONS * deviation if deviation else quantile
    return {"quantile": float(quantile), "robust_z": float(robust)}


def judge(values: np.ndarray, junk: np.ndarray) -> dict[str, float]:
    """Judges how well a score separates junk from the rest.

    Args:
      values: the scores, [M].
      junk: bool [M], True where an image is junk.

    Returns:
      {"auroc": 0.5 by chance, "average_precision", "chance": the average precision by chance, which
      is the share of junk}.

    Raises:
      InputError: all images are junk, or none is.
    """
    from sklearn import metrics  # slow to import

    if junk.all() or not junk.any():
        raise InputError(f"{junk.sum()} of {len(junk)} images are junk: nothing can be told apart")
    return {
        "auroc": float(metrics.roc_auc_score(junk, values)),
        "average_precision": float(metrics.average_precision_score(junk, values)),
        "chance": float(junk.mean()),
    }
