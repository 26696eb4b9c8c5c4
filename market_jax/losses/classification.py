"""Terms for classifications: (context, *, ...) -> (values [N], weights [N]).

A row with an unknown label (below 0) has weight 0 and adds nothing to the loss.
"""

import jax.numpy as jnp
import optax

from market_jax.errors import InputError
from market_jax.losses.context import Context
from market_jax.typing import Array, FractionBelow1

__all__ = ["cross_entropies", "cross_entropy", "uncertain_cross_entropies"]

Values = tuple[Array, Array]


def cross_entropy(
    context: Context, *, logits: str, labels: str = "", label_smoothing: FractionBelow1 = 0.0
) -> Values:
    """Softmax cross-entropy of an output [N, K] against a column int [N].

    Args:
      context: the batch, and the model's outputs for it.
      logits: the name of the model's output.
      labels: the name of the column with the labels; by default the same name.
      label_smoothing: the share of the target that is spread over all classes, from 0 to below 1.

    Returns:
      The cross-entropies in nats [N]; and weights [N], 1 where the label is known.
    """
    scores, truth = context.outputs[logits], context.batch[labels or logits]
    targets = jnp.eye(scores.shape[-1])[jnp.maximum(truth, 0)]
    targets = optax.smooth_labels(targets, label_smoothing)
    known = truth >= 0
    values = jnp.where(known, optax.softmax_cross_entropy(scores, targets), 0.0)
    return values, known.astype(jnp.float32)


def cross_entropies(
    context: Context, *, logits: tuple[str, ...], labels: tuple[str, ...] = ()
) -> Values:
    """The mean of `cross_entropy` over several classifications.

    Args:
      context: the batch, and the model's outputs for it.
      logits: the names of the model's outputs.
      labels: the names of the columns with the labels; by default the same names.

    Returns:
      Nats [N], the mean over a row's known labels; and weights [N], the share that is known.

    Raises:
      InputError: there are no outputs, or another number of columns.
    """
    pairs = pair(logits, labels)
    each = [cross_entropy(context, logits=output, labels=column) for output, column in pairs]
    return mean_of_known(each)


def pair(logits: tuple[str, ...], labels: tuple[str, ...]) -> list[tuple[str, str]]:
    """Pairs of an output and the column with its labels.

    Args:
      logits: the names of the model's outputs.
      labels: the names of the columns; () has the same names.

    Raises:
      InputError: there are no outputs, or another number of columns.
    """
    labels = labels or logits
    if not logits or len(labels) != len(logits):
        raise InputError(
            f"logits is {logits} and labels is {labels}; they must be as many names, one or more"
        )
    return list(zip(logits, labels, strict=True))


def mean_of_known(each: list[Values]) -> Values:
    """The mean of each row over its known values, and the share of values that are known."""
    values = sum(value * weight for value, weight in each)
    known = sum(weight for _, weight in each)
    return values / jnp.maximum(known, 1.0), known / len(each)


def uncertain_cross_entropies(
    context: Context, *, logits: tuple[str, ...], labels: tuple[str, ...] = (), group: str
) -> Values:
    """The mean x of `cross_entropies`, weighed by a learned variance: exp(-s) x + s / 2.

    s is the output "log_variance_<group>" (Kendall, Gal & Cipolla 2018, for classification).

    Args:
      context: the batch, and the model's outputs for it.
      logits: the names of the model's outputs.
      labels: the names of the columns with the labels; by default the same names.
      group: the name of the group of labels that share the variance.

    Raises:
      InputError: as for `cross_entropies`.
    """
    values, weights = cross_entropies(context, logits=logits, labels=labels)
    s = context.outputs[f"log_variance_{group}"]
    return jnp.exp(-s) * values + 0.5 * s, weights
