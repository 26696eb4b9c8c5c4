"""Where a person can be when: camera pairs and the time between them.

Wang, Lai, Huang, Xie, "Spatial-Temporal Person Re-identification", AAAI 2019 (st-ReID). It knows
camera and frame of the query, which plain re-identification does not use: its results stand in a
table of their own.
"""

from typing import Annotated, Literal, NamedTuple

import numpy as np
from scipy import ndimage

from market_jax.errors import InputError
from market_jax.retrieval.training import Training, need
from market_jax.typing import Array, Columns, NonNegative, PositiveInt, Range

__all__ = ["spatio_temporal"]


# the last frame of each sequence of Market-1501, by camera, as the authors' program has them
LAST_FRAMES = {
    "market1501": {
        1: (72681, 74546, 74881, 74661, 74891, 54346),
        2: (163691, 164677, 98102),
        3: (161708, 161769, 104469),
        4: (72107, 72373, 74810, 74541, 74910, 50616),
        5: (161095, 161724, 103487),
        6: (87551, 131268, 95817, 30952),
    }
}


class TravelTimes(NamedTuple):
    """How long people take from camera to camera.

    Attributes:
      share: [later camera, earlier camera, bins], of a pair's people; sums to 1 or is all 0.
      bin_frames: frames of a bin.
      start: [camera, sequence], what is added to a frame number to count through a camera's
        sequences.
    """

    share: np.ndarray
    bin_frames: int
    start: np.ndarray


def _check(columns: Columns) -> None:
    for name in ("camid", "frame"):
        if len(columns[name]) and np.min(columns[name]) < 0:
            raise InputError(f"spatio-temporal scores need every image's {name}; some have none")


def _starts(columns: Columns, lengths: str) -> np.ndarray:
    """Frames of a camera's sequences before each: [camera, sequence].

    Args:
      columns: "camid", "sequence", "frame" of images, for the last frame that was seen of each.
      lengths: "seen", or a name in `LAST_FRAMES`.
    """
    if lengths == "seen":
        cameras, sequences = (int(np.max(columns[name])) + 1 for name in ("camid", "sequence"))
        last = np.zeros((cameras, max(sequences, 1)), np.int64)
        at = (columns["camid"], np.maximum(columns["sequence"], 0))
        np.maximum.at(last, at, columns["frame"])
    else:
        known = LAST_FRAMES[lengths]  # cameras and sequences are counted from 1
        last = np.zeros((max(known) + 1, max(map(len, known.values())) + 1), np.int64)
        for camera, frames in known.items():
            last[camera, 1 : len(frames) + 1] = frames
    return np.cumsum(last, axis=1) - last


def continuous_frames(columns: Columns, start: np.ndarray) -> np.ndarray:
    """Frame numbers that go on from one sequence of a camera to the next: int64 [M].

    Raises:
      InputError: a camera or sequence was not in what was fitted.
    """
    sequence = np.maximum(columns["sequence"], 0)
    for name, ids, size in zip(
        ("camid", "sequence"), (columns["camid"], sequence), start.shape, strict=True
    ):
        if len(ids) and np.max(ids) >= size:
            raise InputError(f"{name} {np.max(ids)} does not occur in the training images")
    return columns["frame"] + start[columns["camid"], sequence]


def fit(
    training: Columns,
    *,
    bin_frames: int = 100,
    bins: int = 5000,
    sigma: float = 50.0,
    lengths: str = "seen",
) -> TravelTimes:
    """Histograms of the frames between a person's mean frames at two cameras, smoothed.

    Only cameras that a person passed count; the authors' program takes a camera that a person did
    not pass for frame 0.

    Args:
      training: "pid" (above 0 counts), "camid", "sequence", "frame".
      bin_frames: frames of a bin.
      bins: longer times fall into the last.
      sigma: of the Gaussian that smooths (Parzen window), in bins, cut off at three.
      lengths: of a camera's sequences: "seen", up to the last training image of each, or
        "market1501", which the authors' program knows.

    Raises:
      InputError: an image's camera or frame is not known, or no person passes two cameras.
    """
    _check(training)
    rows = np.flatnonzero(training["pid"] > 0)
    columns = {k: np.asarray(training[k])[rows] for k in ("pid", "camid", "sequence", "frame")}
    if len(rows) == 0:
        raise InputError("spatio-temporal scores need training images of persons")
    start = _starts(columns, lengths)
    frames = continuous_frames(columns, start)
    visits, index = np.unique(
        np.stack([columns["pid"], columns["camid"]], axis=1), axis=0, return_inverse=True
    )
    means = np.bincount(index, frames) / np.bincount(index)
    counts = np.zeros((len(start), len(start), bins))
    for pid in np.unique(visits[:, 0]):
        at = np.flatnonzero(visits[:, 0] == pid)
        for a in at:
            for b in at:
                if means[a] > means[b] or (means[a] == means[b] and a > b):
                    time = min(int((means[a] - means[b]) / bin_frames), bins - 1)
                    counts[visits[a, 1], visits[b, 1], time] += 1
    if not counts.any():
        raise InputError("no person passes two cameras in the training images")
    smooth = ndimage.gaussian_filter1d(counts, sigma, axis=2, mode="constant", truncate=3.0)
    total = smooth.sum(axis=2, keepdims=True)
    share = np.divide(smooth, total, out=np.zeros_like(smooth), where=total > 0)
    return TravelTimes(share.astype(np.float32), bin_frames, start)


def probabilities(model: TravelTimes, query: Columns, gallery: Columns) -> np.ndarray:
    """[Q, G], the share of people that take as long between the two cameras, in such a bin."""
    _check(query), _check(gallery)
    times = [continuous_frames(side, model.start) for side in (query, gallery)]
    result = np.empty((len(times[0]), len(times[1])), np.float32)
    bins = model.share.shape[2]
    for i, (frame, camera) in enumerate(zip(times[0], query["camid"], strict=True)):
        gap = np.minimum(np.abs(frame - times[1]) // model.bin_frames, bins - 1)
        after = frame > times[1]
        later = np.where(after, camera, gallery["camid"])
        earlier = np.where(after, gallery["camid"], camera)
        result[i] = model.share[later, earlier, gap]
    return result


def _fit_to(training: Training, **settings) -> TravelTimes:
    """`fit` to the training identities."""
    return fit(training.columns, **settings)


def spatio_temporal(
    query: Columns,
    gallery: Columns,
    distances: Array,
    *,
    training: Training | None = None,
    alpha: Annotated[float, Range(0, 80, above=True)] = 5.0,
    beta: NonNegative = 2.0,
    bin_frames: PositiveInt = 100,
    sigma: Annotated[float, Range(0.01, 5000)] = 50.0,
    lengths: Literal["seen", "market1501"] = "seen",
    metric: str = "cosine",
) -> np.ndarray:
    """Joins appearance with travel times: 1 - logistic(similarity) * logistic(probability).

    Args:
      query: "camid", "sequence", "frame".
      gallery: the same.
      distances: [Q, G], cosine: 1 - similarity, not what another re-ranker has made of it.
      training: the training identities, of which `fit` learns.
      alpha: steepness of both logistic functions, 1 / (1 + exp(-alpha x)); above 0 and at most 80,
        beyond which the exponential overflows.
      beta: factor of the second one's exponential, as published 2; 0 or more.
      bin_frames: of `fit`, 1 or more.
      sigma: of `fit`, 0.01 to 5,000.
      lengths: of `fit`, "seen" or "market1501".
      metric: of the distances; other ones are no similarities.

    Returns:
      [Q, G] float32.

    Raises:
      InputError: the metric is not "cosine"; or as `fit` and `continuous_frames`.
    """
    if metric != "cosine":
        raise InputError(f"spatio_temporal needs cosine distances, these are {metric}")
    settings = {"bin_frames": bin_frames, "sigma": sigma, "lengths": lengths}
    times = need(training, "spatio_temporal").learn(_fit_to, **settings)
    probability = probabilities(times, query, gallery)
    appearance = 1 / (1 + np.exp(-alpha * (1 - np.asarray(distances, np.float32))))
    return 1 - appearance / (1 + beta * np.exp(-alpha * probability))


spatio_temporal.must_be_first = True
