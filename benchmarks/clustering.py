"""Linkages of a gallery, beside the peers on the same arrays.

python -m benchmarks.clustering --peer=peers/bin/python [--scales=0.25,1.25] [--method=average]
python -m benchmarks.clustering --features=runs/DIR/evaluation/outputs-HASH.npz

`benchmarks/retrieval_peers.py` says how the peers are installed. Scale 1.25: 19,891 images. Prints
medians, the ratios to ours and to the matrix product alone, the memory beyond the arrays, and
whether the trees have the same mean height to 1e-5; and how far Ward's linkage of nearest
neighbours agrees with the exact one (adjusted Rand index of 750 clusters). The second form takes
the features that evaluate.py left, and says that agreement on them.
"""

import time
from pathlib import Path

import numpy as np
from absl import app, flags
from scipy.cluster import hierarchy
from sklearn.metrics import adjusted_rand_score

from benchmarks import retrieval
from market_jax.retrieval import clustering, distances

METHOD = flags.DEFINE_enum("method", "ward", ["ward", "average", "complete"], "The linkage.")
FEATURES = flags.DEFINE_string("features", None, "A features file of evaluate.py.")
IMAGES = 13  # of a cluster, about as many as people have on Market-1501
MOVED = 0.01  # of the features' deviation: what the exact linkage is compared with


def agreement(path: Path, method: str) -> list[str]:
    """How far the linkage of neighbours agrees with the exact one on a file's features."""
    with np.load(path) as file:
        features = distances.normalize(file["embedding"])
    noise = np.random.default_rng(0).normal(size=features.shape) * features.std(axis=0)
    clusters = max(len(features) // IMAGES, 1)

    def cut(make, features):
        start = time.perf_counter()
        tree = make(features, method)
        seconds = time.perf_counter() - start
        return hierarchy.cut_tree(tree, n_clusters=clusters)[:, 0], seconds

    exact, seconds = cut(clustering.linkage, features)
    lines = [f"{features.shape} into {clusters} clusters; exact: {seconds:.1f} s"]
    for name, make, moved in (
        ("neighbours", clustering.neighbour_linkage, features),
        (f"exact, moved by {MOVED}", clustering.linkage, features + MOVED * noise),
    ):
        labels, seconds = cut(make, moved)
        index = adjusted_rand_score(exact, labels)
        lines.append(f"{name}: {seconds:.1f} s, adjusted Rand index {index:.3f}")
    return lines


def main(_) -> None:
    """Measures and prints a table."""
    method = METHOD.value
    if FEATURES.value:
        print(*agreement(Path(FEATURES.value), method), sep="\n")
        return
    variants = ["scipy", "fastcluster", "scikit-learn tree"]
    if method == "ward":
        variants += ["market_jax neighbours", "fastcluster vectors"]
    retrieval.run(method, variants, {})


if __name__ == "__main__":
    app.run(main)
