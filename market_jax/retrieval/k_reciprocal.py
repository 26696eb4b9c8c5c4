"""Re-ranking by k-reciprocal encoding, sparse.

Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.
"""

import numpy as np
from scipy import sparse

from market_jax.errors import InputError
from market_jax.retrieval import distances as distances_
from market_jax.retrieval import search
from market_jax.typing import Array, Columns, Fraction, PositiveInt

__all__ = ["k_reciprocal"]

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


def _smallest_sums(query: sparse.csr_array, gallery: sparse.csc_array) -> np.ndarray:
    """[Q, G], the sum over columns of the smaller of a query's and a gallery image's entry."""
    result = np.zeros((query.shape[0], gallery.shape[0]), np.float32)
    pointers, rows, values = gallery.indptr, gallery.indices, gallery.data
    for i in range(query.shape[0]):
        entries = slice(query.indptr[i], query.indptr[i + 1])
        columns = query.indices[entries]
        first, length = pointers[columns], pointers[columns + 1] - pointers[columns]
        ends = np.cumsum(length)
        at = np.arange(ends[-1]) + np.repeat(first - ends + length, length)
        smaller = np.minimum(values[at], np.repeat(query.data[entries], length))
        result[i] = np.bincount(rows[at], smaller, minlength=gallery.shape[0])
    return result


def _encode(
    features: np.ndarray, *, k1: int, k2: int, one_more: bool, squared: bool
) -> tuple[sparse.csr_array, np.ndarray]:
    """Every image's weights for its k-reciprocal neighbours [n, n], and its farthest image [n]."""
    n, k = len(features), k1 + one_more
    _, ranked, farthest = search.top_k(
        features, features, max(k, k2), metric="euclidean", farthest=True
    )
    ranked = ranked.astype(np.int32)
    half = _reciprocal(ranked, min(int(np.around(k1 / 2)) + one_more, k))
    encoding = _expand(_reciprocal(ranked, k), half)
    # nearer neighbours weigh more; the weights of an image sum to 1
    rows = np.repeat(np.arange(n, dtype=np.int32), np.diff(encoding.indptr))
    # of equal images all are 0 apart, to rounding
    largest = np.max(np.einsum("nd,nd->n", features, features))
    farthest = np.maximum(farthest, max(_EPSILON * (largest or 1), _TINY))
    relative = np.minimum(_pair_distances(features, rows, encoding.indices) / farthest[rows], 1)
    weights = np.exp(-(relative**2 if squared else relative))
    weights /= np.bincount(rows, weights, minlength=n)[rows].astype(np.float32)
    encoding = sparse.csr_array((weights, encoding.indices, encoding.indptr), shape=(n, n))
    if k2 > 1:  # local query expansion: the mean over the k2 nearest
        shares = np.full(n * k2, 1 / k2, np.float32)
        pointers = np.arange(0, n * k2 + 1, k2)
        mean = sparse.csr_array((shares, ranked[:, :k2].ravel(), pointers), shape=(n, n))
        encoding = (mean @ encoding).tocsr()
    return encoding, farthest


def k_reciprocal(
    query: Columns,
    gallery: Columns,
    distances: Array,
    *,
    k1: PositiveInt = 20,
    k2: PositiveInt = 6,
    lambda_value: Fraction = 0.3,
    metric: str = "cosine",
    one_more: bool = False,
    squared: bool = False,
) -> np.ndarray:
    """Mixes the distances with the Jaccard distance of k-reciprocal neighbours.

    Args:
      query: with "feature" [Q, D].
      gallery: with "feature" [G, D].
      distances: [Q, G].
      k1: the number of neighbours that are looked at, the image itself among them; 1 to the number
        of images, less one with `one_more`.
      k2: the number of neighbours that an image's encoding is averaged over, 1 to the number of
        images.
      lambda_value: share of the original distance, 0 to 1.
      metric: "cosine" or "euclidean" (squared), of the neighbours.
      one_more: look at k1 + 1 neighbours, as the authors' code does.
      squared: square the distances, as torchreid's and fast-reid's code does to ones that are
        squared already. Neighbours stay the same; weights and the mixture change.

    Returns:
      [Q, G] float32. Every distance is relative to the farthest image of its row, as in the
      authors' code; where all images are equal it is 0.

    Raises:
      InputError: there are fewer images than k1 or k2.
    """
    features = np.concatenate([query["feature"], gallery["feature"]])
    count, n = len(query["feature"]), len(features)
    for name, k, most in (("k1", k1, n - one_more), ("k2", k2, n)):
        if k > most:
            raise InputError(
                f"re-ranker 'k_reciprocal': {name} is {k}; it must be 1 to {most}, with {n} images "
                "of query and gallery"
            )
    if metric == "cosine":
        features = distances_.normalize(features)
    encoding, farthest = _encode(features, k1=k1, k2=k2, one_more=one_more, squared=squared)
    # Jaccard distance of the encodings, in place: the matrix is the largest thing here
    result = _smallest_sums(encoding[:count], encoding[count:].tocsc())
    np.divide(result, 2 - result, out=result)
    np.subtract(1, result, out=result)
    result *= 1 - lambda_value
    scale = farthest[:count, None] / (2 if metric == "cosine" else 1)  # of `distances`
    relative = np.asarray(distances, np.float32) / scale
    if squared:
        np.square(relative, out=relative)
    # what is infinitely far stays so
    np.multiply(relative, lambda_value, out=relative, where=np.isfinite(relative))
    return np.add(result, relative, out=result)
