"""What the networks of the package market_jax_weights say of drawn people.

python -m tests.weights.golden_published    # writes golden_published.json
"""

import json
from pathlib import Path

import numpy as np

from market_jax import runs
from market_jax.tasks import export
from market_jax.weights import published

FOLDER = Path(__file__).parents[2] / "weights" / published.PACKAGE
FILE = Path(__file__).with_suffix(".json")
PEOPLE, TOP = 4, 8  # drawn people; numbers of each embedding that are compared


def measure(path: Path) -> dict[str, list]:
    """The cosines between drawn people, and the first numbers of their embeddings."""
    run = runs.published(path, cache=False)
    people = export.draw_people(PEOPLE, run.config.data.image_size)
    found = run.predict(people, ["embedding"])["embedding"]
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    return {"cosines": (unit @ unit.T).tolist(), "embeddings": found[:, :TOP].tolist()}


def main() -> None:
    """Writes the values of all networks."""
    paths = sorted(FOLDER.glob(f"*{published.SUFFIX}"))
    FILE.write_text(json.dumps({path.stem: measure(path) for path in paths}, indent=1) + "\n")


if __name__ == "__main__":
    main()
