"""Ranking metrics of person re-identification: CMC, two kinds of mAP, mINP.

All of them follow from the ranks of a query's true matches, and a rank is a count of the gallery
images before it, so that nothing is sorted. Ties are always broken by gallery order.

Which images count follows Market-1501 (Zheng et al. 2015): gallery images of pid -1 (junk) are left
out and those of pid 0 (distractors) match nobody; for each query, those of the same pid and the
same camera are left out too.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from market_jax.data.filenames import JUNK
from market_jax.errors import InputError
from market_jax.metrics import counting
from market_jax.retrieval import distances as distances_
from market_jax.typing import Array

_ABSENT = -1  # fills up the rows of a padded table of gallery positions


@dataclasses.dataclass(frozen=True)
class Ranking:
    """How well queries find their matches; metrics are fractions.

    Attributes:
      mAP: mean over queries of the average precision, the mean over a query's matches of
        the precision at each one's rank.
      mAP_trapezoid: as `mAP`, but each precision is averaged with the one just before the match, as
        in Oxford5k's and Market-1501's own programs; never larger.
      mINP: mean of matches / rank of the last match (Ye et al. 2021).
      cmc: [max_rank], the share of queries with a match among the first 1, 2, ... of the gallery.
      average_precision: [Q], the average precision of each query; NaN without a match.
      inverse_penalty: [Q], matches / rank of the last match of each query; NaN without a match.
      first_rank: [Q], the rank of each query's first match, from 1; 0 without a match.
      queries: the number of queries with a match; the others are left out of the means.
      without_match: the number of queries without a match.
    """

    mAP: float
    mAP_trapezoid: float
    mINP: float
    cmc: np.ndarray
    average_precision: np.ndarray
    inverse_penalty: np.ndarray
    first_rank: np.ndarray
    queries: int
    without_match: int

    def to_dict(self) -> dict:
        """The numbers for a JSON file: means, ranks 1, 5, 10 and 20, and counts."""
        ranks = {f"rank{k}": float(self.cmc[k - 1]) for k in (1, 5, 10, 20) if k <= len(self.cmc)}
        means = {key: getattr(self, key) for key in ("mAP", "mAP_trapezoid", "mINP")}
        return means | ranks | {"queries": self.queries, "without_match": self.without_match}


@dataclasses.dataclass(frozen=True)
class Matches:
    """Which gallery images match each query, and which are left out.

    Attributes:
      kept: [G'], positions of the gallery images that are not junk, ascending.
      true: [Q, P], each query's true matches as positions in `kept`, ascending, then -1.
      removed: [Q, E], positions of images of the same pid and camera, likewise.
    """

    kept: np.ndarray
    true: np.ndarray
    removed: np.ndarray


def _check_lengths(**arrays: Array | None) -> None:
    sizes = {name: np.shape(a) for name, a in arrays.items() if a is not None}
    if any(len(s) != 1 for s in sizes.values()) or len(set(sizes.values())) > 1:
        raise InputError(f"one entry for each image is needed: {sizes}")


def find_matches(
    *,
    query_pids: Array,
    gallery_pids: Array,
    query_camids: Array | None = None,
    gallery_camids: Array | None = None,
) -> Matches:
    """Finds each query's true matches, and the images that are left out for it.

    Args:
      query_pids: the queries' identities, int [Q].
      gallery_pids: the gallery images' identities, int [G]; -1 is junk, 0 a distractor.
      query_camids: the queries' cameras, int [Q]; without cameras only junk is left out.
      gallery_camids: the gallery images' cameras, int [G].

    Raises:
      InputError: lengths differ, only one side has cameras, or a pid is below -1 (unknown).
    """
    if (query_camids is None) != (gallery_camids is None):
        raise InputError("query_camids and gallery_camids go together")
    _check_lengths(query_pids=query_pids, query_camids=query_camids)
    _check_lengths(gallery_pids=gallery_pids, gallery_camids=gallery_camids)
    query_pids, gallery_pids = np.asarray(query_pids), np.asarray(gallery_pids)
    for side, pids in (("query", query_pids), ("gallery", gallery_pids)):
        if pids.size and pids.min() < JUNK:
            raise InputError(f"a {side} image has pid {pids.min()}: who it shows is not known")
    kept = np.flatnonzero(gallery_pids != JUNK)
    pids = gallery_pids[kept]
    by_pid = np.argsort(pids, kind="stable")
    first, last = (np.searchsorted(pids[by_pid], query_pids, side) for side in ("left", "right"))
    last = np.where(query_pids > 0, last, first)
    slots = first[:, None] + np.arange(max((last - first).max(initial=0), 1))
    inside = slots < last[:, None]
    same_pid = by_pid[np.where(inside, slots, 0)] if len(pids) else np.zeros(slots.shape, int)
    same_camera = np.zeros(slots.shape, bool)
    if query_camids is not None and len(pids):
        cameras = np.asarray(gallery_camids)[kept]
        same_camera = cameras[same_pid] == np.asarray(query_camids)[:, None]
    return Matches(
        kept, _pack(same_pid, inside & ~same_camera), _pack(same_pid, inside & same_camera)
    )


def _pack(positions: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The chosen positions of each row in ascending order, filled up with -1; as few columns."""
    last = np.iinfo(positions.dtype).max
    width = chosen.sum(axis=1).max(initial=0)
    rows = np.sort(np.where(chosen, positions, last), axis=1)[:, :width]
    return np.where(rows == last, _ABSENT, rows).astype(np.int32)


def summarize(ranks: np.ndarray, max_rank: int = 50) -> Ranking:
    """Computes the metrics from the ranks of every query's true matches.

    Args:
      ranks: int [Q, P], counted from 1; rows are filled up with 0.
      max_rank: the length of `cmc`.

    Raises:
      InputError: no query has a match, or `max_rank` is below 1.
    """
    if max_rank < 1:
        raise InputError(f"max_rank is {max_rank}; it must be 1 or more")
    present = ranks > 0
    count = present.sum(axis=1)
    judged = count > 0
    if not judged.any():
        raise InputError(f"none of {len(ranks)} queries has a true match in the gallery")
    ranks = np.sort(np.where(present, ranks, np.iinfo(np.int64).max), axis=1)[judged]
    count = count[judged]
    number = np.arange(1, ranks.shape[1] + 1)
    present = number <= count[:, None]
    precision = number / ranks
    before = np.where(ranks > 1, (number - 1) / np.maximum(ranks - 1, 1), 1.0)
    average, trapezoid = (
        np.sum(np.where(present, p, 0.0), axis=1) / count
        for p in (precision, (precision + before) / 2)
    )
    last = np.take_along_axis(ranks, count[:, None] - 1, axis=1)[:, 0]

    def of_queries(values, otherwise):
        found = np.full(len(judged), otherwise)
        found[judged] = values
        return found

    return Ranking(
        mAP=float(np.mean(average)),
        mAP_trapezoid=float(np.mean(trapezoid)),
        mINP=float(np.mean(count / last)),
        cmc=np.mean(ranks[:, :1] <= np.arange(1, max_rank + 1), axis=0),
        average_precision=of_queries(average, np.nan),
        inverse_penalty=of_queries(count / last, np.nan),
        first_rank=of_queries(ranks[:, 0], 0),
        queries=int(judged.sum()),
        without_match=int((~judged).sum()),
    )


def _check_distances(distances: np.ndarray, queries: int, gallery: int) -> None:
    if distances.shape != (queries, gallery):
        raise InputError(
            f"distances are {distances.shape}; {queries} queries and {gallery} gallery images need "
            f"({queries}, {gallery})"
        )


def evaluate(distances: Array, *, query_pids: Array, gallery_pids: Array, **cameras) -> Ranking:
    """Computes the metrics of a ranking that is given as distances.

    Args:
      distances: [Q, G] of any floating or integer type; smaller is nearer. What is infinitely far
        is not in the answer and adds nothing to the average precision, as in the course's mAP of
        lists that are shorter than the gallery.
      query_pids: the queries' identities, int [Q].
      gallery_pids: the gallery images' identities, int [G].
      **cameras: `query_camids` [Q] and `gallery_camids` [G], see `find_matches`; and `max_rank`,
        the length of `cmc`, 50 by default.

    Raises:
      InputError: as for `find_matches` and `summarize`; or shapes differ, or a distance is NaN.
    """
    max_rank = cameras.pop("max_rank", 50)
    matches = find_matches(query_pids=query_pids, gallery_pids=gallery_pids, **cameras)
    distances = np.asarray(distances)
    _check_distances(distances, len(query_pids), len(gallery_pids))
    ranks = np.zeros(matches.true.shape, np.int64)
    whole = len(matches.kept) == distances.shape[1]
    for i, row in enumerate(distances):
        if np.isnan(np.min(row, initial=0)):
            raise InputError(f"the distances of query {i} hold NaN")
        row = row if whole else row[matches.kept]
        true, removed = (p[i][p[i] >= 0] for p in (matches.true, matches.removed))
        ranks[i, : len(true)] = counting.rank_row(row, true, removed)
    return summarize(ranks, max_rank)


def evaluate_features(
    query: Array,
    gallery: Array,
    *,
    query_pids: Array,
    gallery_pids: Array,
    metric: str = "cosine",
    max_rank: int = 50,
    block: int | None = None,
    **cameras,
) -> Ranking:
    """Computes the metrics from features, without ever holding all distances.

    Runs on the accelerator if there is one. Float32 rounding can change the order of distances that
    are equal to seven digits; identical features always tie.

    Args:
      query: features of the queries, [Q, D].
      gallery: features of the gallery, [G, D].
      query_pids: the queries' identities, int [Q].
      gallery_pids: the gallery images' identities, int [G].
      metric: the distance between features, "cosine" or "euclidean".
      max_rank: the length of `cmc`.
      block: queries at a time; by default so many that distances take some 32 MiB.
      **cameras: `query_camids` [Q] and `gallery_camids` [G], see `find_matches`.

    Raises:
      InputError: as for `evaluate`; or features do not fit, or are not finite.
    """
    matches = find_matches(query_pids=query_pids, gallery_pids=gallery_pids, **cameras)
    for name, features, pids in (("query", query, query_pids), ("gallery", gallery, gallery_pids)):
        if len(features) != len(pids):
            raise InputError(f"{len(features)} {name} features, but {len(pids)} pids")
    if len(matches.kept) < len(gallery_pids):
        gallery = np.asarray(gallery)[matches.kept]
    prepared = distances_.prepare(query, gallery, metric)
    ranks = counting.rank_features(*prepared, matches.true, matches.removed, block=block)
    return summarize(ranks, max_rank)


def evaluate_lists(
    predictions: Mapping[str, Sequence[str]], ground_truth: Mapping[str, Collection[str]]
) -> float:
    """Computes the course's mAP of submitted lists.

    A query's average precision is the sum of the precisions at the hits in its list, divided
    by the number of its true matches, in the list or not; a query without a list counts 0.

    Args:
      predictions: query name -> gallery names, best first.
      ground_truth: query name -> the names of its true matches.

    Raises:
      InputError: a list names an image twice, a query has no true match, or there are no queries.
    """
    if not ground_truth:
        raise InputError("there is no ground truth")
    values = []
    for query, matches in ground_truth.items():
        names, matches = predictions.get(query, ()), set(matches)
        if len(set(names)) < len(names):
            raise InputError(f"the list of {query!r} names an image twice")
        if not matches:
            raise InputError(f"{query!r} has no true match")
        hits = np.array([name in matches for name in names], bool)
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        values.append(precision[hits].sum() / len(matches))
    return float(np.mean(values))
