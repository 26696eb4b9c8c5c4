"""--task=oracle: what retrieval would gain by centroids of the gallery's true persons (CTL)."""

from market_jax.evaluators import oracle
from market_jax.runs import Run
from market_jax.tasks import inputs

NEEDS = "reid"  # what the newest run must be able to do
FILE = "oracle.json"


def run(run: Run, *, split: str = "val", flip: bool = False, metric: str = "cosine") -> str:
    """Judges centroids of the true persons beside single images, by the protocol market.

    Args:
      run: the run.
      split: What is judged: val, holdout, train, or test with the data set's own queries.
      flip: Average the features of an image and its mirror image.
      metric: cosine or euclidean, between features.

    Returns:
      The text for the terminal.
    """
    return inputs.judge_split(run, oracle.evaluate, FILE, split=split, flip=flip, metric=metric)
