"""mAP and CMC from features, distances included, beside the peers on the same arrays.

python -m benchmarks.ranking --peer=peers/bin/python [--scales=0.25,1,4]

`benchmarks/retrieval_peers.py` says how the peers are installed. The gallery is a quarter of
Market-1501's, as large, and four times as large. Prints medians, the ratios to ours and to the
matrix product alone, the memory beyond the arrays, and whether the values agree to 1e-5.
"""

from absl import app

from benchmarks import retrieval

VARIANTS = ("fast-reid compiled", "torchreid Python", "scikit-learn", "open-metric-learning")
LARGEST = {
    "torchreid Python": 1,
    "scikit-learn": 1,
    "open-metric-learning": 1,
}  # scales; they take too long or too much memory beyond


def main(_) -> None:
    """Measures and prints a table."""
    retrieval.run("ranking", VARIANTS, LARGEST)


if __name__ == "__main__":
    app.run(main)
