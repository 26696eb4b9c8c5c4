"""Are two pictures the same person? Error rates over pairs, and a threshold.

Pairs are counted by distance: how many pairs of the same person, and of different persons, have
each value. A pair is taken for the same person if its distance is at most a threshold.
"""

from typing import NamedTuple

import numpy as np

from market_jax.errors import InputError
from market_jax.metrics.ranking import find_matches
from market_jax.retrieval import distances as distances_
from market_jax.typing import Array

_BINS = 2**18
_ROWS = 256  # queries at a time


class Pairs(NamedTuple):
    """Numbers of pairs at ascending distances.

    Attributes:
      distance: the distances, [n].
      same: the number of pairs of the same person at each distance, [n].
      different: the number of pairs of different persons at each distance, [n].
    """

    distance: np.ndarray
    same: np.ndarray
    different: np.ndarray


class Threshold(NamedTuple):
    """A distance up to which two pictures are taken for the same person.

    Attributes:
      distance: the threshold.
      precision: the share of the pairs taken for the same person that really are.
      recall: the share of the pairs of the same person that is found.
      false_positive_rate: the share of the pairs of different persons taken for the same person.
    """

    distance: float
    precision: float
    recall: float
    false_positive_rate: float


def from_distances(same: Array, different: Array) -> Pairs:
    """Counts pairs from the distances of each kind, exactly.

    Args:
      same: distances of the pairs of the same person.
      different: distances of the pairs of different persons.
    """
    same, different = np.asarray(same), np.asarray(different)
    values, index = np.unique(np.concatenate([same, different]), return_inverse=True)
    counts = (np.bincount(i, minlength=len(values)) for i in np.split(index, [len(same)]))
    return Pairs(values, *counts)


def count_pairs(
    query: Array, gallery: Array, *, query_pids: Array, gallery_pids: Array, metric: str, **cameras
) -> Pairs:
    """Counts, by distance, the pairs of a query and a gallery image that ranking would count.

    Distances are rounded up to a 2**18th of their range, a few float32 rounding errors.

    Args:
      query: features of the queries, [Q, D].
      gallery: features of the gallery, [G, D].
      query_pids: the queries' identities, int [Q].
      gallery_pids: the gallery images' identities, int [G]; junk (-1) is left out.
      metric: the distance between features, "cosine" or "euclidean".
      **cameras: `query_camids` [Q] and `gallery_camids` [G]; pairs of the same person and camera
        are left out.

    Raises:
      InputError: as for `ranking.find_matches`.
    """
    matches = find_matches(query_pids=query_pids, gallery_pids=gallery_pids, **cameras)
    query, gallery = np.asarray(query), np.asarray(gallery)[matches.kept]
    if metric == "cosine":
        query, gallery, top = distances_.normalize(query), distances_.normalize(gallery), 2.0
    else:
        squares = [np.sum(np.square(side), axis=1) for side in (query, gallery)]
        top = sum(np.sqrt(np.max(each, initial=0)) for each in squares) ** 2 or 1.0
    edges = np.linspace(0, top, _BINS + 1)
    same, everyone = np.zeros((2, _BINS + 1), np.int64)
    for start in range(0, len(query), _ROWS):
        rows = slice(start, start + _ROWS)
        block = distances_.compute(query[rows], gallery, metric)
        bins = np.minimum(np.ceil(block * (_BINS / top)).astype(np.int32), _BINS)
        everyone += np.bincount(bins.ravel(), minlength=_BINS + 1)
        for kind, sums, factor in ((matches.true, same, 1), (matches.removed, everyone, -1)):
            i, j = np.nonzero(kind[rows] >= 0)
            sums += factor * np.bincount(bins[i, kind[rows][i, j]], minlength=_BINS + 1)
    return Pairs(edges, same, everyone - same)


def _rates(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """(true positive rate, false positive rate) at each distance as the threshold."""
    totals = pairs.same.sum(), pairs.different.sum()
    if not all(totals):
        raise InputError(f"{totals[0]} pairs of the same person, {totals[1]} of different ones")
    return np.cumsum(pairs.same) / totals[0], np.cumsum(pairs.different) / totals[1]


def roc(pairs: Pairs) -> dict[str, float]:
    """True positive rates at false positive rates of 1e-3 and 1e-4, and the equal error rate.

    Args:
      pairs: numbers of pairs by distance.

    Raises:
      InputError: there are no pairs of one kind.
    """
    true, false = (np.concatenate([[0.0], rate]) for rate in _rates(pairs))
    result = {
        f"tpr_at_fpr_{rate:.0e}": float(np.max(true, where=false <= rate, initial=0.0))
        for rate in (1e-3, 1e-4)
    }
    missed = 1 - true
    after = int(np.argmax(false >= missed))  # the curve crosses on the way to this point
    gap = [missed[i] - false[i] for i in (after - 1, after)]
    share = gap[0] / (gap[0] - gap[1])
    result["equal_error_rate"] = float(false[after - 1] + share * (false[after] - false[after - 1]))
    return result


def judge(pairs: Pairs, distance: float) -> Threshold:
    """Judges a threshold on pairs.

    Args:
      pairs: numbers of pairs by distance.
      distance: the threshold: the largest distance at which a pair is taken for the same person.

    Raises:
      InputError: there are no pairs of one kind.
    """
    chosen = pairs.distance <= distance
    same, different = pairs.same[chosen].sum(), pairs.different[chosen].sum()
    _rates(pairs)
    precision = same / (same + different) if same + different else 1.0
    return Threshold(
        float(distance),
        float(precision),
        float(same / pairs.same.sum()),
        float(different / pairs.different.sum()),
    )


def calibrate(pairs: Pairs) -> Threshold:
    """Finds the threshold with the best F1 on pairs.

    Its precision holds for pairs like these, with as many pairs of different persons for each pair
    of the same. Use identities that the model was not trained on.

    Args:
      pairs: numbers of pairs by distance.

    Raises:
      InputError: there are no pairs of one kind.
    """
    _rates(pairs)
    same, different = np.cumsum(pairs.same), np.cumsum(pairs.different)
    f1 = 2 * same / (same + different + pairs.same.sum())
    return judge(pairs, float(pairs.distance[np.argmax(f1)]))
