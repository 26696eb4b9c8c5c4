"""Linkages of a gallery, beside the peers on the same arrays.

python -m benchmarks.clustering --peer=peers/bin/python [--scales=0.25,1.25] [--method=average]

`benchmarks/retrieval_peers.py` says how the peers are installed. Scale 1.25: 19,891 images. Prints
medians, the ratios to ours and to the matrix product alone, the memory beyond the arrays, and
whether the trees have the same mean height to 1e-5; and how far Ward's linkage of nearest
neighbours agrees with the exact one (adjusted Rand index of 750 clusters).
"""

from absl import app, flags

from benchmarks import retrieval

METHOD = flags.DEFINE_enum("method", "ward", ["ward", "average", "complete"], "The linkage.")


def main(_) -> None:
    """Measures and prints a table."""
    method = METHOD.value
    variants = ["scipy", "fastcluster", "scikit-learn tree"]
    if method == "ward":
        variants += ["market_jax neighbours", "fastcluster vectors"]
    retrieval.run(method, variants, {})


if __name__ == "__main__":
    app.run(main)
