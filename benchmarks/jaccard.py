"""Jaccard distances of k-reciprocal neighbours, beside fast-reid's on the same arrays.

python -m benchmarks.jaccard --peer=peers/bin/python [--scales=0.25,1.2367]

`benchmarks/retrieval_peers.py` says how the peers are installed. 1.2367 of Market-1501's gallery
are 19,679 images, the course release's without labels. Prints medians, the ratios to ours and to
the matrix product alone, the memory beyond the arrays, and whether the values agree to 1e-5: how
many near pairs (below 0.6) an image has, and how far they are.
"""

from absl import app

from benchmarks import retrieval

VARIANTS = ("fast-reid",)


def main(_) -> None:
    """Measures and prints a table."""
    retrieval.run("jaccard", VARIANTS, {})


if __name__ == "__main__":
    app.run(main)
