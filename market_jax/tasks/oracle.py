"""--task=oracle: what retrieval would gain by centroids of the gallery's true persons (CTL)."""

import json

from market_jax import registry
from market_jax.evaluators import oracle
from market_jax.files import write_atomically
from market_jax.runs import Run
from market_jax.tasks import inputs

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
    registry.choose(metric, dict.fromkeys(("cosine", "euclidean")), "metric")
    dataset = run.dataset()
    caution, known = inputs.known_people(run, [dataset.open(split)], images=None)
    result = oracle.evaluate(run.predict, dataset, split=split, flip=flip, metric=metric)
    path = run.evaluation / FILE
    about = {"split": split, "flip": flip, "metric": metric, "checkpoint": run.step}
    write_atomically(path, json.dumps(about | known | dict(result.record), indent=2) + "\n")
    return inputs.as_text(result, f"written to {path}", first=caution)
