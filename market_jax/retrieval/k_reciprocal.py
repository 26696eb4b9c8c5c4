"""Re-ranking by k-reciprocal encoding, sparse.

Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.
"""

import numpy as np
from scipy import sparse

from market_jax.errors import InputError
from market_jax.retrieval import distances as distances_
from market_jax.retrieval import jaccard
from market_jax.typing import Array, Columns, Fraction, PositiveInt

__all__ = ["k_reciprocal"]


def k_reciprocal(
    query: Columns,
    gallery: Columns,
    distances: Array,
    *,
    among: Array | None = None,
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
      among: distances of all images [Q + G, Q + G], the queries first, where they are more than the
        features say; None takes those of the features.
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
    k, half = k1 + one_more, min(int(np.around(k1 / 2)), k1) + one_more
    settings = {"k1": k, "half": half, "k2": k2, "squared": squared}
    encoding, farthest = jaccard.encode(features, among=among, **settings)
    result = _jaccard(encoding[:count], encoding[count:])
    result *= 1 - lambda_value
    halved = among is None and metric == "cosine"  # half the squared distance
    relative = np.asarray(distances, np.float32) / (farthest[:count, None] / (1 + halved))
    if squared:
        np.square(relative, out=relative)
    # what is infinitely far stays so
    np.multiply(relative, lambda_value, out=relative, where=np.isfinite(relative))
    return np.add(result, relative, out=result)


def _jaccard(query: sparse.csr_array, gallery: sparse.csr_array) -> np.ndarray:
    """[Q, G], of the encodings; in place, for the matrix is the largest thing here."""
    result = np.empty((query.shape[0], gallery.shape[0]), np.float32)
    for i, sums in enumerate(jaccard.smallest_sums(query, gallery)):
        result[i] = sums
    return np.subtract(1, np.divide(result, 2 - result, out=result), out=result)
