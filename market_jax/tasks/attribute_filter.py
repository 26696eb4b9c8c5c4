"""--task=attribute_filter: searching only images whose predicted attributes agree (APR)."""

from market_jax.evaluators import attribute_filter
from market_jax.runs import Run
from market_jax.tasks import inputs

NEEDS = "attributes"  # what the newest run must be able to do
FILE = "attribute_filter.json"


def run(run: Run, *, split: str = "val", flip: bool = False, metric: str = "cosine") -> str:
    """Judges retrieval by how many attributes must agree, by the protocol market.

    Args:
      run: the run.
      split: What is judged: val, holdout, train, or test with the data set's own queries.
      flip: Average the features of an image and its mirror image.
      metric: cosine or euclidean, between features.

    Returns:
      The text for the terminal.
    """
    return inputs.judge_split(
        run, attribute_filter.evaluate, FILE, split=split, flip=flip, metric=metric
    )
