"""Features in two dimensions, to be looked at: principal components, and t-SNE.

Both see features of length 1, as retrieval by cosine does. No distance of such a picture is a
figure: t-SNE keeps who is near whom, principal components what varies most.
"""

import numpy as np

from market_jax import progress
from market_jax.errors import InputError
from market_jax.typing import Array

_PERPLEXITY = 30.0  # neighbours that t-SNE counts, fewer where there are few images
_DIMENSIONS = 50  # that t-SNE sees, as its authors advise


def _prepare(features: Array, method: str) -> np.ndarray:
    """Features of length 1 in two dimensions or more."""
    if len(features) < 4:
        raise InputError(f"{method} has {len(features)} images; it needs 4 or more")
    values = np.asarray(features, np.float64)
    values = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return np.pad(values, ((0, 0), (0, max(2 - values.shape[1], 0))))


def pca(features: Array) -> tuple[np.ndarray, tuple[float, float]]:
    """The first two principal components.

    Args:
      features: [M, D].

    Returns:
      Points [M, 2], and the share of the variance that each component has.

    Raises:
      InputError: there are fewer than 4 images.
    """
    from sklearn import decomposition  # slow to import

    found = decomposition.PCA(2, svd_solver="full").fit(values := _prepare(features, "pca"))
    first, second = np.nan_to_num(found.explained_variance_ratio_).tolist()
    return found.transform(values), (first, second)


def tsne(features: Array, *, seed: int = 0) -> np.ndarray:
    """t-SNE (van der Maaten & Hinton 2008): points [M, 2], near ones near.

    Args:
      features: [M, D].
      seed: seeds what it draws; the same seed gives the same points on one machine.

    Raises:
      InputError: there are fewer than 4 images.
    """
    from sklearn import decomposition, manifold

    values = _prepare(features, "tsne")
    size = min(_DIMENSIONS, *values.shape)
    values = decomposition.PCA(size, random_state=seed).fit_transform(values)
    perplexity = min(_PERPLEXITY, (len(values) - 1) / 3)
    method = manifold.TSNE(perplexity=perplexity, init="pca", random_state=seed)
    with progress.waiting("t-SNE"):
        return method.fit_transform(values)
