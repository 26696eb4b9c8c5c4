"""Ranking metrics of person re-identification: CMC, mAP in both readings, mINP.

All of them follow from the ranks of a query's true matches, and a rank is a count: how many of the
gallery come before. So nothing is sorted. Ties are broken by gallery order, always.

Who counts, as on Market-1501 (Zheng et al. 2015): gallery images of pid -1 (junk) are left out
and those of pid 0 (distractors) match nobody; for each query, those of the same pid and the same
camera are left out too.
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
    """How well queries find their matches; fractions.

    Attributes:
      mAP: mean over queries of the average precision, the mean over a query's matches of
        the precision at each one's rank.
      mAP_trapezoid: the same with each precision averaged with the one just before the match, as
        Oxford5k's and Market-1501's own programs do; never larger.
      mINP: mean of matches / rank of the last match (Ye et al. 2021).
      cmc: [max_rank], the share of queries with a match among the first 1, 2, ... of the gallery.
      average_precision: [Q], of each query; NaN where it has no match.
      first_rank: [Q], of each query's first match, from 1; 0 where it has none.
      queries: with a match; the others are left out of the means.
      without_match: the number of the others.
    """

    mAP: float
    mAP_trapezoid: float
    mINP: float
    cmc: np.ndarray
    average_precision: np.ndarray
    first_rank: np.ndarray
    queries: int
    without_match: int

    def to_dict(self) -> dict:
        """The numbers for a JSON file: the means, ranks 1, 5, 10 and 20, the counts."""
        ranks = {f"rank{k}": float(self.cmc[k - 1]) for k in (1, 5, 10, 20) if k <= len(self.cmc)}
        means = {key: getattr(self, key) for key in ("mAP", "mAP_trapezoid", "mINP")}
        return means | ranks | {"queries": self.queries, "without_match": self.without_match}


@dataclasses.dataclass(frozen=True)
class Matches:
    """Who counts for whom.

    Attributes:
      kept: [G'], positions in the gallery of what is not junk, ascending.
      true: [Q, P], each query's true matches as positions in `kept`, ascending, then -1.
      removed: [Q, E], those of the same pid and camera, likewise.
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
    """Finds every query's true matches, and what is left out for it.

    Args:
      query_pids: [Q].
      gallery_pids: [G]; -1 junk, 0 distractor.
      query_camids: [Q]; without cameras nothing but junk is left out.
      gallery_camids: [G].

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
    """The metrics, from the ranks of every query's true matches.

    Args:
      ranks: int [Q, P], from 1; rows are filled up with 0.
      max_rank: length of `cmc`.

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
    of_query, first_rank = np.full(len(judged), np.nan), np.zeros(len(judged), np.int64)
    of_query[judged], first_rank[judged] = average, ranks[:, 0]
    last = np.take_along_axis(ranks, count[:, None] - 1, axis=1)[:, 0]
    return Ranking(
        mAP=float(np.mean(average)),
        mAP_trapezoid=float(np.mean(trapezoid)),
        mINP=float(np.mean(count / last)),
        cmc=np.mean(ranks[:, :1] <= np.arange(1, max_rank + 1), axis=0),
        average_precision=of_query,
        first_rank=first_rank,
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
    """Judges a ranking that is given as distances.

    Args:
      distances: [Q, G], smaller is nearer, of any floating or integer type. What is infinitely
        far is not in the answer: it adds nothing to the average precision, which then is the
        course's, of a list that ends before the gallery does.
      query_pids: [Q].
      gallery_pids: [G].
      **cameras: query_camids [Q] and gallery_camids [G], see `find_matches`; max_rank (50).

    Raises:
      InputError: as `find_matches` and `summarize`; or shapes differ, or a distance is NaN.
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
    """`evaluate` from features, without ever holding the matrix of distances.

    Runs on the accelerator where there is one. Float32 rounding can order distances otherwise
    that are equal to seven digits; identical features always tie.

    Args:
      query: [Q, D].
      gallery: [G, D].
      query_pids: [Q].
      gallery_pids: [G].
      metric: "cosine" or "euclidean".
      max_rank: length of `cmc`.
      block: queries at a time; by default some 32 MiB of distances.
      **cameras: query_camids [Q] and gallery_camids [G], see `find_matches`.

    Raises:
      InputError: as `evaluate`; or features do not fit, or are not finite.
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
    """The course's mAP of submitted lists.

    A query's average precision is the sum of the precisions at the hits in its list, over the
    number of its true matches, in the list or not; a query without a list counts 0.

    Args:
      predictions: query name -> gallery names, best first.
      ground_truth: query name -> the names of its true matches.

    Raises:
      InputError: a list names an image twice, or a query has no true match, or there is none.
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
