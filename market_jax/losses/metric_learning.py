"""Terms that compare the rows of a batch: (context, *, ...) -> (values [N], weights [N]).

Padding and rows of nobody (pid 0 and below) are nobody's positives and nobody's negatives.
"""

import jax
import jax.numpy as jnp

from market_jax.losses.context import Context
from market_jax.retrieval.triplets import hardest, squared_distances
from market_jax.typing import Array, NonNegative

__all__ = ["triplet"]


def triplet(
    context: Context, *, features: str = "feature", labels: str = "pid", margin: NonNegative = 0.3
) -> tuple[Array, Array]:
    """Batch-hard triplet loss of Euclidean distances (Hermans, Beyer & Leibe 2017).

    Compares, for every image, the farthest one of the same person and the nearest one of another
    person in the batch.

    Args:
      context: the batch, and the model's outputs for it.
      features: the name of the model's output [N, D].
      labels: the name of the column with the identities; 0 and below are nobody.
      margin: how much farther the other person should be, as a distance; 0 is the soft margin,
        log(1 + exp(x)).

    Returns:
      The losses [N]; and weights [N], 1 where a row has both a positive and a negative.
    """
    vectors = context.outputs[features].astype(jnp.float32)
    # padding may hold anything, and 0 times NaN is NaN in the gradient
    vectors = jnp.where(context.batch["mask"][:, None], vectors, 0.0)
    pids = jnp.where(context.batch["mask"], context.batch[labels], 0)
    # the floor bounds the root's gradient
    distances = jnp.sqrt(jnp.maximum(squared_distances(vectors), 1e-12))
    farthest, nearest = hardest(distances, pids)
    known = (pids > 0) & jnp.isfinite(farthest) & jnp.isfinite(nearest)
    gap = jnp.where(known, farthest - nearest, 0.0)
    value = jnp.maximum(gap + margin, 0) if margin else jax.nn.softplus(gap)
    return jnp.where(known, value, 0.0), known.astype(jnp.float32)
