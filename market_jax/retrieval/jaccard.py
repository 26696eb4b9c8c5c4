"""Jaccard distances of k-reciprocal neighbours, sparse.

Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.
An image is encoded by weights for the images that are among its first k, and it among theirs.
"""

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from market_jax.errors import InputError
from market_jax.registry import choose
from market_jax.retrieval import distances, search
from market_jax.typing import Array

_EPSILON, _TINY = np.finfo(np.float32).eps, np.finfo(np.float32).tiny
_ROWS = 8192  # pairs of features at a time


def _reciprocal(ranked: np.ndarray, k: int) -> sparse.csr_array:
    """[n, n] boolean: which images are among each other's first k; of equal ones, itself too."""
    n = len(ranked)
    rows = np.repeat(np.arange(n), k)
    ones = np.ones(n * k, bool)
    near = sparse.csr_array((ones, (rows, ranked[:, :k].ravel())), shape=(n, n))
    return (near.multiply(near.T) + sparse.eye_array(n, dtype=bool)).tocsr()


def _expand(near: sparse.csr_array, half: sparse.csr_array) -> sparse.csr_array:
    """Adds a neighbour's neighbours where more than two thirds of them are neighbours already."""
    shared = (near.astype(np.float32) @ half.T.astype(np.float32)).multiply(near).tocoo()
    enough = shared.data > 2 / 3 * np.diff(half.indptr)[shared.coords[1]]
    rows, columns = (c[enough] for c in shared.coords)
    chosen = sparse.csr_array((np.ones(len(rows), bool), (rows, columns)), shape=near.shape)
    return (near + chosen @ half).tocsr()


def _pair_distances(features: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Squared distances of pairs of rows of features."""
    result = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _ROWS):
        at = slice(start, start + _ROWS)
        difference = features[rows[at]] - features[columns[at]]
        result[at] = np.einsum("nd,nd->n", difference, difference)
    return result


def encode(
    features: np.ndarray,
    *,
    k1: int,
    half: int,
    k2: int,
    among: np.ndarray | None = None,
    relative: bool = True,
    squared: bool = False,
) -> tuple[sparse.csr_array, np.ndarray]:
    """Weights of every image for its k-reciprocal neighbours, the nearer the larger.

    Args:
      features: float32 [n, D].
      k1: the number of neighbours that are looked at, the image itself among them.
      half: the number of neighbours of a neighbour that are looked at, at most k1.
      k2: the number of neighbours that an encoding is averaged over.
      among: [n, n], distances that are more than the features say; None is these' squared ones.
      relative: weigh by distances over that of the farthest image, else as they are.
      squared: square the distances, which are squared already, once more.

    Returns:
      The weights [n, n], which add up to 1 in each row; and the distance of each image's farthest
      [n].
    """
    n, k = len(features), max(k1, k2)
    if among is None:
        _, ranked, farthest = search.top_k(features, features, k, metric="euclidean", farthest=True)
        ranked = ranked.astype(np.int32)
    else:
        ranked = np.stack([np.argsort(row, kind="stable")[:k].astype(np.int32) for row in among])
        farthest = np.max(among, axis=1)
    encoding = _expand(_reciprocal(ranked, k1), _reciprocal(ranked, half))
    rows = np.repeat(np.arange(n, dtype=np.int32), np.diff(encoding.indptr))
    # of equal images all are 0 apart, to rounding
    largest = np.max(np.einsum("nd,nd->n", features, features))
    farthest = np.maximum(farthest, max(_EPSILON * (largest or 1), _TINY))
    if among is None:
        weighed = _pair_distances(features, rows, encoding.indices)
    else:
        weighed = among[rows, encoding.indices]
    if relative:
        weighed = np.minimum(weighed / farthest[rows], 1)
    weights = np.exp(-(weighed**2 if squared else weighed))
    weights /= np.bincount(rows, weights, minlength=n)[rows].astype(np.float32)
    encoding = sparse.csr_array((weights, encoding.indices, encoding.indptr), shape=(n, n))
    if k2 > 1:  # local query expansion: the mean over the k2 nearest
        shares = np.full(n * k2, 1 / k2, np.float32)
        pointers = np.arange(0, n * k2 + 1, k2)
        mean = sparse.csr_array((shares, ranked[:, :k2].ravel(), pointers), shape=(n, n))
        encoding = (mean @ encoding).tocsr()
    return encoding, farthest


def smallest_sums(query: sparse.csr_array, gallery: sparse.csr_array) -> Iterator[np.ndarray]:
    """Yields for each query the sums, over columns, of the smaller of its and an image's weight.

    Args:
      query: weights [Q, n].
      gallery: weights [G, n].

    Yields:
      [G], 0 where two have no neighbour in common.
    """
    size, gallery = gallery.shape[0], gallery.tocsc()
    pointers, rows, values = gallery.indptr, gallery.indices, gallery.data
    for i in range(query.shape[0]):
        entries = slice(query.indptr[i], query.indptr[i + 1])
        columns = query.indices[entries]
        first, length = pointers[columns], pointers[columns + 1] - pointers[columns]
        ends = np.cumsum(length)
        at = np.arange(ends[-1]) + np.repeat(first - ends + length, length)
        smaller = np.minimum(values[at], np.repeat(query.data[entries], length))
        yield np.bincount(rows[at], smaller, minlength=size)


def jaccard(
    features: Array,
    *,
    k1: int = 30,
    k2: int = 6,
    below: float = 1.0,
    metric: str = "cosine",
) -> sparse.csr_array:
    """Jaccard distances of all pairs of images, where they are near.

    As in the programs of SpCL and Cluster Contrast: of a neighbour k1 / 2 + 1 neighbours are looked
    at, and squared distances are weighed as they are.

    Args:
      features: [M, D].
      k1: the number of neighbours that are looked at, the image itself among them.
      k2: the number of neighbours that an image's encoding is averaged over.
      below: larger distances are left out; 1 leaves out only what has no neighbour in common.
      metric: "cosine" or "euclidean", of the neighbours.

    Returns:
      [M, M] float32, 0 to 1 where there is an entry. One of 0 is an entry too, as on the diagonal:
      what is missing is 1 or `below`.

    Raises:
      InputError: there are fewer images than neighbours, or the features are not finite.
    """
    features = np.asarray(features, np.float32)
    for name, k in (("k1", k1), ("k2", k2)):
        if not 1 <= k <= len(features):
            raise InputError(f"{name} is {k}; it must be 1 to {len(features)}, the images")
    if choose(metric, {"cosine": True, "euclidean": False}, "metric"):
        features = distances.normalize(features)
    half = min(int(np.around(k1 / 2)) + 1, k1)
    encoding, _ = encode(features, k1=k1, half=half, k2=k2, relative=False)
    least = 2 * (1 - below) / (2 - below)  # of the sums s, whose distance is 1 - s / (2 - s)
    counts, at, found = [0], [], []
    for i, sums in enumerate(smallest_sums(encoding, encoding)):
        sums[i] = 1.0  # but for rounding
        near = np.flatnonzero((sums > 0) & (sums >= least))
        value = np.minimum(sums[near], 1)
        counts.append(len(near))
        at.append(near.astype(np.int32))
        found.append((1 - value / (2 - value)).astype(np.float32))
    shape = (len(features), len(features))
    pointers = np.cumsum(counts)
    return sparse.csr_array((np.concatenate(found), np.concatenate(at), pointers), shape=shape)
