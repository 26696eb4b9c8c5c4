"""Metrics: (context, *, ...) -> (values [N], weights [N]), only reported, never minimised."""

import jax.numpy as jnp

from market_jax.losses.classification import mean_of_known, pair
from market_jax.losses.context import Context
from market_jax.typing import Array, NonNegative

__all__ = ["accuracy", "active_dimensions"]

Values = tuple[Array, Array]


def accuracy(context: Context, *, logits: tuple[str, ...], labels: tuple[str, ...] = ()) -> Values:
    """The share of right answers over several classifications.

    Args:
      context: the batch, and the model's outputs for it.
      logits: the names of the model's outputs [N, K].
      labels: the names of the columns with the labels int [N]; by default the same names. Unknown
        labels (below 0) do not count.

    Raises:
      InputError: there are no outputs, or another number of columns.
    """
    each = []
    for output, column in pair(logits, labels):
        truth = context.batch[column]
        right = jnp.argmax(context.outputs[output], axis=-1) == truth
        each.append((right.astype(jnp.float32), (truth >= 0).astype(jnp.float32)))
    return mean_of_known(each)


def active_dimensions(context: Context, *, threshold: NonNegative = 0.01) -> Values:
    """The number of latent dimensions whose mean varies over the batch by more than a threshold.

    The number is the same for every image. It is 0 if the posterior has collapsed (Burda et al.
    2016).

    Args:
      context: the batch, and the model's outputs for it, with "mean" [N, D].
      threshold: the variance above which a dimension is active, 0 or more.
    """
    mask = context.batch["mask"].astype(jnp.float32)[:, None]
    mean = jnp.where(mask > 0, context.outputs["mean"], 0.0)  # padding may hold anything
    count = jnp.maximum(jnp.sum(mask), 1.0)
    center = jnp.sum(mean * mask, axis=0) / count
    variance = jnp.sum(jnp.square(mean - center) * mask, axis=0) / count
    active = jnp.sum((variance > threshold).astype(jnp.float32))
    return jnp.full(len(mean), active), jnp.ones(len(mean))
