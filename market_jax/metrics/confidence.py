"""How sure a mean over queries is: intervals and a paired test, by identity.

A person's queries are alike, so identities are drawn again, not single queries.
"""

from typing import NamedTuple

import numpy as np

from market_jax.errors import InputError
from market_jax.typing import Array


class Comparison(NamedTuple):
    """How two models differ on the same queries.

    Attributes:
      difference: mean of the second minus mean of the first.
      low, high: the ends of its 95 % interval; NaN for a single identity.
      p_value: how often swapping the models at random gives a difference as large.
    """

    difference: float
    low: float
    high: float
    p_value: float


def _sums(values: np.ndarray, identities: Array) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each identity; NaN does not count."""
    known = ~np.isnan(values)
    if len(values) != len(identities) or not known.any():
        raise InputError(f"{known.sum()} values of {len(values)}, {len(identities)} identities")
    _, group = np.unique(np.asarray(identities)[known], return_inverse=True)
    return np.bincount(group, values[known]), np.bincount(group)


def _resampled_means(sums, counts, resamples: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    size = len(sums)
    drawn = rng.multinomial(size, np.full(size, 1 / size), size=resamples)
    return (drawn @ sums) / (drawn @ counts)


def interval(
    values: Array, identities: Array, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """The bootstrap interval (low, high) of the mean; identities are drawn with replacement.

    None where all values are of one identity, which says nothing about others.

    Args:
      values: a value of each query, [Q]; NaN is left out.
      identities: who each query shows, [Q].
      level: the confidence level, between 0 and 1.
      resamples: the number of draws.
      seed: seeds the draws.

    Raises:
      InputError: lengths differ, or all values are NaN.
    """
    sums = _sums(np.asarray(values, np.float64), identities)
    if len(sums[0]) < 2:
        return None
    tail = (1 - level) / 2
    low, high = np.quantile(_resampled_means(*sums, resamples, seed), [tail, 1 - tail])
    return float(low), float(high)


def compare(
    first: Array, second: Array, identities: Array, *, resamples: int = 2000, seed: int = 0
) -> Comparison:
    """Compares two models on the same queries, by identity.

    The interval is as from `interval`; the p value comes from a permutation test that swaps the two
    models for each identity at random.

    Args:
      first: a value of each query by the first model, [Q]; NaN is left out.
      second: a value of each query by the second model, [Q]; NaN is left out.
      identities: who each query shows, [Q].
      resamples: the number of draws of identities, and of swaps.
      seed: seeds the draws.

    Raises:
      InputError: lengths differ, or all differences are NaN.
    """
    difference = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    found = interval(difference, identities, resamples=resamples, seed=seed)
    low, high = found or (np.nan, np.nan)
    sums, counts = _sums(difference, identities)
    signs = np.random.default_rng(seed).choice([-1, 1], size=(resamples, len(sums)))
    exchanged = np.abs(signs @ sums)
    extreme = np.sum(exchanged >= abs(sums.sum()) * (1 - 1e-12))
    return Comparison(
        float(sums.sum() / counts.sum()), low, high, float((1 + extreme) / (1 + resamples))
    )
