"""k-reciprocal re-ranking from features, beside the peers on the same arrays.

python -m benchmarks.reranking --peer=peers/bin/python [--scales=0.25,1,4]

`benchmarks/retrieval_peers.py` says how the peers are installed. The gallery is a quarter of
Market-1501's, as large, and four times as large. Prints medians, the ratios to ours and to the
matrix product alone, the memory beyond the arrays, and whether the values agree to 1e-5.
"""

from absl import app

from benchmarks import retrieval

VARIANTS = ("torchreid",)
# the largest scale of each: beyond it takes too long or too much memory
LARGEST = {"torchreid": 1}


def main(_) -> None:
    """Measures and prints a table."""
    retrieval.run("reranking", VARIANTS, LARGEST)


if __name__ == "__main__":
    app.run(main)
