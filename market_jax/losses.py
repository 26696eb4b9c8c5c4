"""Loss terms: (outputs, batch, **kw) -> a value per image [N]. `weighted_sum` reduces once.

A term with weight 0 is only reported.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import optax

from market_jax.typing import Array, Batch, Outputs

__all__ = ["cross_entropy", "accuracy"]

Term = tuple[Callable[[Outputs, Batch], Array], float]  # the term, its keywords bound; weight


def cross_entropy(
    outputs: Outputs, batch: Batch, *, key: str, label_smoothing: float = 0.0
) -> Array:
    """Softmax cross-entropy in nats of `outputs[key]` [N, K] against `batch[key]` int [N].

    An unknown label (below 0) costs nothing.
    """
    logits, labels = outputs[key], batch[key]
    targets = jnp.eye(logits.shape[-1])[jnp.maximum(labels, 0)]
    targets = optax.smooth_labels(targets, label_smoothing)
    return jnp.where(labels >= 0, optax.softmax_cross_entropy(logits, targets), 0.0)


def accuracy(outputs: Outputs, batch: Batch, *, keys: tuple[str, ...]) -> Array:
    """Share of the named classifications that are right, [N]; to be reported, not minimised."""
    right = [jnp.argmax(outputs[key], axis=-1) == batch[key] for key in keys]
    return jnp.mean(jnp.stack(right).astype(jnp.float32), axis=0)


def weighted_sum(
    terms: Mapping[str, Term], outputs: Outputs, batch: Batch
) -> tuple[Array, dict[str, Array]]:
    """Reduces every term to its mean over the images that are not padding, and adds them up.

    Args:
      terms: name -> (term, weight).
      outputs: of the model.
      batch: with "mask" bool [N].

    Returns:
      (the loss, {"loss": ..., "loss/<name>": ... for a term with a weight,
      "<name>": ... for one without}), all scalars.
    """
    mask = batch["mask"].astype(jnp.float32)
    count = jnp.maximum(jnp.sum(mask), 1.0)
    total, metrics = jnp.zeros(()), {}
    for name, (term, weight) in terms.items():
        mean = jnp.sum(term(outputs, batch) * mask) / count
        total += weight * mean
        metrics[f"loss/{name}" if weight else name] = mean
    return total, {"loss": total} | metrics
