"""Terms for classifications: (context, *, ...) -> (values [N], weights [N]).

A row with an unknown label (below 0) has weight 0: it costs nothing and counts for nothing.
"""

import jax.numpy as jnp
import optax

from market_jax.errors import InputError
from market_jax.losses.context import Context
from market_jax.typing import Array

__all__ = ["cross_entropies", "cross_entropy", "uncertain_cross_entropies"]

Values = tuple[Array, Array]


def cross_entropy(
    context: Context, *, logits: str, labels: str = "", label_smoothing: float = 0.0
) -> Values:
    """Softmax cross-entropy of an output [N, K] against a column int [N].

    Args:
      context: of the batch.
      logits: the name of the output.
      labels: the name of the column; by default the output's.
      label_smoothing: the share of the target that is spread over all classes, 0 to 1.

    Returns:
      Nats, and 1 where the label is known.

    Raises:
      InputError: label_smoothing is out of range.
    """
    if not 0 <= label_smoothing < 1:
        raise InputError(f"label_smoothing is {label_smoothing}; it must be 0 or more and below 1")
    scores, truth = context.outputs[logits], context.batch[labels or logits]
    targets = jnp.eye(scores.shape[-1])[jnp.maximum(truth, 0)]
    targets = optax.smooth_labels(targets, label_smoothing)
    known = truth >= 0
    values = jnp.where(known, optax.softmax_cross_entropy(scores, targets), 0.0)
    return values, known.astype(jnp.float32)


def cross_entropies(
    context: Context, *, logits: tuple[str, ...], labels: tuple[str, ...] = ()
) -> Values:
    """The mean of several classifications' `cross_entropy`.

    Args:
      context: of the batch.
      logits: the names of the outputs.
      labels: the names of the columns; by default the outputs'.

    Returns:
      Nats, the mean over the labels of a row that are known; and their share.
    """
    pairs = zip(logits, labels or logits, strict=True)
    each = [cross_entropy(context, logits=output, labels=column) for output, column in pairs]
    return mean_of_known(each)


def mean_of_known(each: list[Values]) -> Values:
    """The mean of each row over what is known of it, and the share that is known."""
    values = sum(value * weight for value, weight in each)
    known = sum(weight for _, weight in each)
    return values / jnp.maximum(known, 1.0), known / len(each)


def uncertain_cross_entropies(
    context: Context, *, logits: tuple[str, ...], labels: tuple[str, ...] = (), group: str
) -> Values:
    """`cross_entropies` over a variance that is learned, and its price: exp(-s) x + s / 2.

    s is the output "log_variance_<group>" (Kendall, Gal & Cipolla 2018, for classification).

    Args:
      context: of the batch.
      logits: the names of the outputs.
      labels: the names of the columns; by default the outputs'.
      group: the name of the group of labels.
    """
    values, weights = cross_entropies(context, logits=logits, labels=labels)
    s = context.outputs[f"log_variance_{group}"]
    return jnp.exp(-s) * values + 0.5 * s, weights
