"""A memory of features that stands in for a classifier where there are no labels.

A memory has S slots: "bank" float32 [S, D], vectors of length 1, and "labels" int32 [S], the class
of each; -1 is an empty slot. Where every cluster has one slot it is a cluster memory (Cluster
Contrast, Dai et al. 2022); where the slots of a class are pictures or centroids of known persons, a
hybrid one (SpCL, Ge et al. 2020). A row of a batch has its slot in the column "slot", -1 for none.
The hook `memory` keeps and moves it; a recipe fills it at the beginning of each round.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from market_jax.errors import InputError
from market_jax.losses.context import Context
from market_jax.retrieval import distances
from market_jax.retrieval.triplets import unit_length
from market_jax.typing import Array, Positive

__all__ = ["memory"]


def memory(
    context: Context, *, features: str = "embedding", temperature: Positive = 0.05
) -> tuple[Array, Array]:
    """Cross-entropy of the cosines with a memory, over a temperature.

    The logit of a class is the mean over its slots.

    Args:
      context: the batch with "slot", the model's outputs for it, and the collection "memory".
      features: the name of the model's output [N, D]; it is divided by its length here.
      temperature: what cosines are divided by, above 0.

    Returns:
      The losses [N]; and weights [N], 1 where a row has a slot.

    Raises:
      InputError: nothing keeps a memory.
    """
    kept = (context.collections or {}).get("memory")
    if kept is None:
        raise InputError("the loss 'memory' needs a memory, which a hook keeps: {'name': 'memory'}")
    slots = _slots(context.batch)
    vectors = _unit(context.outputs[features], slots)
    cosines = jnp.matmul(vectors, kept["bank"].T, precision="highest")
    logits = _mean_over_slots(cosines / temperature, kept["labels"])
    own = kept["labels"][jnp.maximum(slots, 0)]
    known = (slots >= 0) & (own >= 0)
    true = jnp.take_along_axis(logits, jnp.maximum(own, 0)[:, None], axis=1)[:, 0]
    values = jax.nn.logsumexp(logits, axis=1) - true
    return jnp.where(known, values, 0.0), known.astype(jnp.float32)


def _slots(batch: Mapping[str, Array]) -> Array:
    """The slot of each row [N]; -1 for padding."""
    return jnp.where(batch["mask"], batch["slot"], -1)


def _unit(vectors: Array, slots: Array) -> Array:
    """[N, D] -> float32 of length 1; what has no slot is 0, for padding may hold anything."""
    return unit_length(jnp.where((slots >= 0)[:, None], vectors, 0.0))


def _mean_over_slots(logits: Array, labels: Array) -> Array:
    """Logits of slots [N, S] -> of classes [N, S]; of a class without slots -1e30."""
    size = len(labels)
    at = jnp.where(labels >= 0, labels, size)  # beyond the end: left out
    counts = jax.ops.segment_sum(jnp.ones(size), at, size)
    sums = jax.ops.segment_sum(logits.T, at, size).T
    return jnp.where(counts > 0, sums / jnp.maximum(counts, 1), -1e30)


def move(
    bank: Array, vectors: Array, batch: Mapping[str, Array], *, momentum: float, hard: bool
) -> Array:
    """The bank after a batch.

    Every row in turn moves its slot: c <- momentum c + (1 - momentum) f, divided by its length.
    With `hard`, of the rows of a slot the one does alone that is least similar to it.

    Args:
      bank: [S, D].
      vectors: the features of the rows [N, D].
      batch: with "slot" int [N] and "mask".
      momentum: how much of a slot is kept, 0 or more and below 1.
      hard: see above.
    """
    slots = _slots(batch)
    vectors = _unit(vectors, slots)
    if hard:
        slots = _hardest(bank, vectors, slots)

    def body(i, bank):
        slot = jnp.maximum(slots[i], 0)
        moved = unit_length(momentum * bank[slot] + (1 - momentum) * vectors[i])
        return bank.at[slot].set(jnp.where(slots[i] >= 0, moved, bank[slot]))

    return jax.lax.fori_loop(0, len(slots), body, bank)


def fill(features: Array, slots: Array, classes: Array, size: int) -> dict[str, np.ndarray]:
    """A memory of the features of M images.

    Args:
      features: [M, D].
      slots: the slot of each image int [M]; -1 for none. A slot is the mean of its images'
        features, of length 1 each, and has length 1.
      classes: the class of each image int [M], the same for all of a slot.
      size: S, the number of slots.

    Returns:
      "bank" float32 [S, D] and "labels" int32 [S].
    """
    known = np.flatnonzero(slots >= 0)
    bank = np.zeros((size, features.shape[1]), np.float32)
    np.add.at(bank, slots[known], distances.normalize(features[known]))
    labels = np.full(size, -1, np.int32)
    labels[slots[known]] = classes[known]
    return {"bank": distances.normalize(bank), "labels": labels}


def _hardest(bank: Array, vectors: Array, slots: Array) -> Array:
    """The slots of the rows that are least similar to theirs, the first of equals; else -1."""
    cosines = jnp.sum(bank[jnp.maximum(slots, 0)] * vectors, axis=1)
    same = slots[:, None] == slots
    earlier = jnp.tril(jnp.ones(same.shape, bool), -1)
    harder = (cosines < cosines[:, None]) | ((cosines == cosines[:, None]) & earlier)
    return jnp.where(jnp.any(same & harder, axis=1), -1, slots)
