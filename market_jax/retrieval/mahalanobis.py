"""A learned weighting of features (the third improvement of Cunegatti, Diprima & Farina).

The distance is the root of (q - g)^T (diag(w) + L^T L) (q - g); w and L are learned from triplets
of the training identities, and nothing else.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from market_jax.data import samplers
from market_jax.errors import InputError
from market_jax.retrieval import distances as distances_
from market_jax.retrieval.training import Training, need
from market_jax.retrieval.triplets import hardest, squared_distances
from market_jax.typing import Array, Columns, NonNegativeInt, Seed, WidthOrNone

__all__ = ["mahalanobis"]

_IDENTITIES, _INSTANCES = 24, 4  # of a batch, and images of each
_HELD_OUT = 0.2  # of the training identities, which say when to stop
_EVERY = 25  # steps between looks at them


def _scaled(features: Array, metric: str) -> np.ndarray:
    features = np.asarray(features, np.float32)
    return distances_.normalize(features) if metric == "cosine" else features


def transform(weights: dict, features: Array) -> jax.Array:
    """[M, D] -> [M, D + rank], whose Euclidean distances are the learned ones."""
    diagonal = features * jnp.sqrt(jax.nn.softplus(weights["diagonal"]))
    return jnp.concatenate([diagonal, features @ weights["low_rank"].T], axis=1)


def _triplet_loss(weights: dict, features: Array) -> jax.Array:
    """Soft margin of the hardest triplets; features [people * each, D], a person's in a row."""
    distances = squared_distances(transform(weights, features))
    farthest, nearest = hardest(distances, 1 + jnp.arange(len(distances)) // _INSTANCES)
    return jnp.mean(jax.nn.softplus(4 * (farthest - nearest) / jnp.mean(distances)))


def _drawer(features: Array, pids: Array, known: Array, seed: int) -> Callable[[int], Array]:
    """From the step to features of a batch of the known persons, a person's in a row."""
    pids = np.where(np.isin(pids, known), pids, 0)
    batch_size = _INSTANCES * min(_IDENTITIES, len(known))
    sampler = samplers.by_identity(pids, batch_size, num_instances=_INSTANCES, seed=seed)
    return lambda step: features[sampler.indices(step)]


def learn(
    features: Array, pids: Array, *, rank: int = 0, steps: int = 500, seed: int = 0
) -> dict[str, np.ndarray]:
    """Learns the weights; a part of the identities is held out and says after which step.

    Args:
      features: [M, D].
      pids: int [M]; 0 and below are nobody.
      rank: rows of L.
      steps: at most.
      seed: of the batches and of L's beginning.

    Returns:
      {"diagonal": [D], "low_rank": [rank, D]}, for `transform`.

    Raises:
      InputError: fewer than ten persons have four images.
    """
    rng = np.random.default_rng(seed)
    known, counts = np.unique(pids[pids > 0], return_counts=True)
    known = known[counts >= _INSTANCES]
    if len(known) < 10:
        raise InputError(
            f"mahalanobis learns from persons with {_INSTANCES} images or more; "
            f"only {len(known)} of the training identities have so many, and 10 are needed"
        )
    order = rng.permutation(known)
    cut = max(round(_HELD_OUT * len(known)), 2)
    draw, draw_judged = (_drawer(features, pids, part, seed) for part in (order[cut:], order[:cut]))
    dimensions = features.shape[1]
    # softplus(0.5413) is 1: it begins as the plain distance
    weights = {
        "diagonal": jnp.full(dimensions, 0.5413),
        "low_rank": jnp.asarray(0.1 * rng.normal(size=(rank, dimensions)), jnp.float32),
    }
    optimizer = optax.adam(0.02)
    state, loss = optimizer.init(weights), jax.jit(_triplet_loss)

    @jax.jit
    def step(weights, state, batch):
        gradients = jax.grad(_triplet_loss)(weights, batch)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(weights, updates), state

    judged = [draw_judged(i) for i in range(20)]
    best, least = weights, np.inf
    for i in range(steps + 1):
        if i % _EVERY == 0:
            value = float(np.mean([loss(weights, batch) for batch in judged]))
            if value < least:
                best, least = weights, value
        weights, state = step(weights, state, draw(i))
    return jax.device_get(best)


def _learn_from(
    training: Training, *, rank: int, steps: int, seed: int, metric: str
) -> dict[str, np.ndarray]:
    """`learn` from the training identities' features."""
    feature = _scaled(training.features["feature"], metric)
    pids = np.asarray(training.features["pid"])
    return learn(feature, pids, rank=rank, steps=steps, seed=seed)


def mahalanobis(
    query: Columns,
    gallery: Columns,
    *,
    training: Training | None = None,
    rank: WidthOrNone = 0,
    steps: NonNegativeInt = 500,
    seed: Seed = 0,
    metric: str = "cosine",
) -> tuple[Columns, Columns]:
    """Features whose Euclidean distances weigh dimensions as learned on the training identities.

    Args:
      query: "feature" [Q, D].
      gallery: "feature" [G, D].
      training: what is learned from.
      rank: 0 weighs each dimension; above it, so many directions too.
      steps: of the learning, at most.
      seed: of the learning.
      metric: "cosine" takes features of length one.

    Raises:
      InputError: there are too few training identities.
    """
    settings = {"rank": rank, "steps": steps, "seed": seed, "metric": metric}
    weights = need(training, "mahalanobis").learn(_learn_from, **settings)
    return tuple(
        side | {"feature": np.asarray(transform(weights, _scaled(side["feature"], metric)))}
        for side in (query, gallery)
    )


mahalanobis.metric_after = "euclidean"
