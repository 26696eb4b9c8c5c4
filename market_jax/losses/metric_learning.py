"""Terms that compare rows, with each other or with centres: (context, *, ...) -> (values, weights).

Padding and rows of nobody (pid 0 and below) are nobody's positives and nobody's negatives.
"""

from typing import Annotated

import jax
import jax.numpy as jnp

from market_jax.errors import InputError
from market_jax.losses.context import Context
from market_jax.retrieval.triplets import hardest, pairs, squared_distances, unit_length
from market_jax.typing import Array, NonNegative, Positive, Range

__all__ = ["center", "centroid_triplet", "multi_similarity", "triplet", "weighted_triplet"]

Values = tuple[Array, Array]


def triplet(
    context: Context, *, features: str = "feature", labels: str = "pid", margin: NonNegative = 0.3
) -> Values:
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
    vectors, pids = _persons(context, features, labels)
    return _hinge(*hardest(_distances(vectors), pids), margin)


def _hinge(farthest: Array, nearest: Array, margin: float) -> Values:
    """Triplet losses of the hardest distances, infinite where there are none; and their weights."""
    known = jnp.isfinite(farthest) & jnp.isfinite(nearest)
    gap = jnp.where(known, farthest - nearest, 0.0)
    value = jnp.maximum(gap + margin, 0) if margin else jax.nn.softplus(gap)
    return jnp.where(known, value, 0.0), known.astype(jnp.float32)


def centroid_triplet(
    context: Context, *, features: str = "feature", labels: str = "pid", margin: NonNegative = 0.3
) -> Values:
    """Batch-hard triplet loss of images and centroids (CTL, Wieczorek et al. 2021).

    In as many rounds as a person has images, one image of each person is the query, and the mean of
    the person's other images is the centroid. In a round every query and every centroid is compared
    with the other one of its person and with the nearest query or centroid of another person.

    Args:
      context: the batch, and the model's outputs for it.
      features: the name of the model's output [N, D].
      labels: the name of the column with the identities; 0 and below are nobody. The k-th image of
        each person is in round k.
      margin: how much farther the other person should be, as a distance; 0 is the soft margin,
        log(1 + exp(x)).

    Returns:
      The losses [N], the mean of an image's as a query and of its centroid's; and weights [N], 1
      where the person has another image and the round another person.
    """
    vectors, pids = _persons(context, features, labels)
    same = (pids[:, None] == pids) & (pids > 0)
    counts = jnp.sum(same, axis=1)
    others = same.astype(jnp.float32) @ vectors - vectors
    centroids = others / jnp.maximum(counts - 1, 1)[:, None]
    rounds = jnp.sum(jnp.tril(same, -1), axis=1)  # how many images of the person come before
    pids = jnp.where(counts > 1, pids, 0)  # alone, nobody has a centroid
    both, rounds = jnp.concatenate([vectors, centroids]), jnp.tile(rounds, 2)
    distances = _distances(both)
    meets = rounds[:, None] == rounds
    values, known = _hinge(*hardest(distances, jnp.tile(pids, 2), meets), margin)
    return jnp.mean(values.reshape(2, -1), axis=0), known[: len(pids)]


def _persons(context: Context, features: str, labels: str) -> tuple[Array, Array]:
    """Features float32 [N, D] and identities int [N]; padding and nobody are 0 in both."""
    somebody = context.batch["mask"] & (context.batch[labels] > 0)
    vectors = context.outputs[features].astype(jnp.float32)
    # padding may hold anything, and 0 times NaN is NaN in the gradient
    vectors = jnp.where(somebody[:, None], vectors, 0.0)
    return vectors, jnp.where(somebody, context.batch[labels], 0)


def _distances(vectors: Array) -> Array:
    """[N, D] -> Euclidean distances of all pairs [N, N]; the floor bounds the root's gradient."""
    return jnp.sqrt(jnp.maximum(squared_distances(vectors), 1e-12))


def weighted_triplet(context: Context, *, features: str = "feature", labels: str = "pid") -> Values:
    """Triplet loss of weighed means of the Euclidean distances (AGW, Ye et al. 2021).

    softplus(sum p d - sum n d): p is the softmax of the distances d to the other images of the same
    person, n that of -d over the images of other persons. There is no margin. An image is not its
    own positive.

    Args:
      context: the batch, and the model's outputs for it.
      features: the name of the model's output [N, D].
      labels: the name of the column with the identities; 0 and below are nobody.

    Returns:
      The losses [N]; and weights [N], 1 where a row has both a positive and a negative.
    """
    vectors, pids = _persons(context, features, labels)
    distances = _distances(vectors)
    same, other = pairs(pids)
    known = jnp.any(same, axis=1) & jnp.any(other, axis=1)

    def mean(kept, sign):
        shares = jax.nn.softmax(jnp.where(kept, sign * distances, -1e30), axis=1)
        return jnp.sum(jnp.where(kept, shares * distances, 0.0), axis=1)

    value = jax.nn.softplus(mean(same, 1.0) - mean(other, -1.0))
    return jnp.where(known, value, 0.0), known.astype(jnp.float32)


def multi_similarity(
    context: Context,
    *,
    features: str = "feature",
    labels: str = "pid",
    alpha: Positive = 2.0,
    beta: Positive = 40.0,
    threshold: Annotated[float, Range(-1, 1)] = 0.5,
    margin: NonNegative = 0.7,
) -> Values:
    """Multi-similarity loss of cosines s (Wang et al. 2019), with the defaults of LightMBN.

    The sum of log(1 + sum exp(-alpha (s - threshold))) / alpha over a row's positives and
    log(1 + sum exp(beta (s - threshold))) / beta over its negatives. Only hard pairs are kept:
    positives less than `margin` above the most similar negative, and negatives less than `margin`
    below the least similar positive.

    Args:
      context: the batch, and the model's outputs for it.
      features: the name of the model's output [N, D]; it is divided by its length here.
      labels: the name of the column with the identities; 0 and below are nobody.
      alpha: how steep the loss of the positives is, above 0.
      beta: how steep the loss of the negatives is, above 0.
      threshold: the cosine that positives should be above and negatives below, -1 to 1.
      margin: how far from hard a pair may be to be kept, as a cosine, 0 or more; 2 keeps all.

    Returns:
      The losses [N], 0 where no positive or no negative is kept; and weights [N], 1 where a row has
      both a positive and a negative, kept or not.
    """
    vectors, pids = _persons(context, features, labels)
    cosines = _cosines(vectors)
    same, other = pairs(pids)
    positives, negatives = _hard(cosines, same, other, margin)
    value = _soft_sum(-alpha * (cosines - threshold), positives) / alpha
    value += _soft_sum(beta * (cosines - threshold), negatives) / beta
    kept = jnp.any(positives, axis=1) & jnp.any(negatives, axis=1)
    known = jnp.any(same, axis=1) & jnp.any(other, axis=1)
    return jnp.where(kept, value, 0.0), known.astype(jnp.float32)


def _cosines(vectors: Array) -> Array:
    """[N, D] -> cosines of all pairs [N, N]; 0 with a vector of zeros."""
    vectors = unit_length(vectors)
    return vectors @ vectors.T


def _hard(cosines: Array, same: Array, other: Array, margin: float) -> tuple[Array, Array]:
    """The positives and the negatives that `multi_similarity` keeps: two bool [N, N]."""
    least = jnp.min(jnp.where(same, cosines, jnp.inf), axis=1, keepdims=True)
    most = jnp.max(jnp.where(other, cosines, -jnp.inf), axis=1, keepdims=True)
    return same & (cosines - margin < most), other & (cosines + margin > least)


def _soft_sum(exponents: Array, kept: Array) -> Array:
    """log(1 + the sum of exp over what is kept of each row), without overflow: [N]."""
    exponents = jnp.where(kept, exponents, -jnp.inf)
    return jax.nn.logsumexp(jnp.pad(exponents, ((0, 0), (0, 1))), axis=1)


def center(context: Context, *, features: str = "feature", labels: str = "identity") -> Values:
    """Half the squared distance of a feature from the centre of its class (Wen et al. 2016).

    The hook `centers` keeps the centres and moves them; no gradient goes through them.

    Args:
      context: the batch, the model's outputs for it, and the collection "centers".
      features: the name of the model's output [N, D].
      labels: the name of the column with the classes int [N]; unknown ones are below 0.

    Returns:
      The losses [N]; and weights [N], 1 where the label is known.

    Raises:
      InputError: nothing keeps the centres of these features.
    """
    vectors, classes = context.outputs[features], context.batch[labels]
    centers = (context.collections or {}).get("centers", {})
    if features not in centers:
        raise InputError(
            f"the loss 'center' needs the centres of {features!r}, which a hook keeps: "
            f"{{'name': 'centers', 'features': {features!r}}}"
        )
    known = context.batch["mask"] & (classes >= 0)
    gaps = vectors.astype(jnp.float32) - centers[features][jnp.maximum(classes, 0)]
    gaps = jnp.where(known[:, None], gaps, 0.0)  # padding may hold anything
    return 0.5 * jnp.sum(jnp.square(gaps), axis=1), known.astype(jnp.float32)
