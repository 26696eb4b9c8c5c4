"""How well clusters agree with who is who."""

import numpy as np


def agreement(labels: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Coverage, normalised mutual information (NMI) and adjusted Rand index (ARI) of clusters.

    NMI and ARI are of the pictures in clusters alone, and rise where hard ones are left out; so
    they are read beside the coverage: the share of the pictures of known persons in a cluster.

    Args:
      labels: the cluster of each picture int [M]; below 0 is none.
      truth: the person on each picture int [M]; below 1 is not known, and does not count.

    Returns:
      "coverage" where a person is known; "nmi" and "ari" where one is in a cluster.
    """
    from sklearn import metrics  # slow to import

    known = truth > 0
    judged = known & (labels >= 0)
    found = {"coverage": np.sum(judged) / np.sum(known)} if known.any() else {}
    if judged.any():
        pair = truth[judged], labels[judged]
        found["nmi"] = metrics.normalized_mutual_info_score(*pair)
        found["ari"] = metrics.adjusted_rand_score(*pair)
    return {name: float(value) for name, value in found.items()}
