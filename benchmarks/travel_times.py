"""What travel times add to appearance, on Market-1501's official lists with made appearance.

python -m benchmarks.travel_times --lists=FOLDER [--seeds=3]

The lists (`market_train.csv`, `market_val.csv`, `market_test.csv` of the attribute annotations)
name every training, query and gallery picture, with its real camera, sequence and frame. Of
pictures nothing is known: a person's feature is a random direction, and a picture's is that and
noise, of as much as each mAP in the table needs. So the table says what the joint score of st-ReID
adds to a network of such a mAP, and not how good any network is.
"""

from pathlib import Path

import numpy as np
from absl import app, flags

from market_jax import scripts
from market_jax.data import filenames
from market_jax.errors import InputError
from market_jax.evaluators.protocols import Protocol
from market_jax.metrics import ranking
from market_jax.report import tables
from market_jax.retrieval import distances
from market_jax.retrieval.spatio_temporal import spatio_temporal
from market_jax.retrieval.training import Training

LISTS = flags.DEFINE_string("lists", None, "The folder with the lists.", required=True)
SEEDS = flags.DEFINE_integer("seeds", 3, "Appearances that are averaged.", lower_bound=1)

NAMES = ("pid", "camid", "sequence", "frame")
NOISE = (0.8, 0.95, 1.1)  # lengths of the noise; a person's direction has length 1
DIMENSIONS = 64
HEADER = ("noise", "appearance alone", "and seen sequences", "and their known lengths")


def read(path: Path) -> dict[str, np.ndarray]:
    """Identities, cameras, sequences and frames of a list's pictures.

    Args:
      path: a CSV whose first column names pictures.

    Raises:
      InputError: there is no such file, or a name is not Market-1501's.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such list")
    names = [line.split(",")[0].rsplit("/")[-1] for line in path.read_text().splitlines()[1:]]
    rows = [filenames.parse(name, "market1501") for name in names]
    wrong = [name for name, row in zip(names, rows, strict=True) if row is None]
    if wrong:
        raise InputError(f"{path}: {wrong[0]!r} is no name of Market-1501")
    return {key: np.array([row[key] for row in rows]) for key in NAMES}


def features(pids: np.ndarray, noise: float, rng: np.random.Generator, people: dict) -> np.ndarray:
    """A made feature of each picture: [M, DIMENSIONS] float32.

    Args:
      pids: who the pictures show; distractors (0) are each somebody else.
      noise: the length of the noise.
      rng: draws directions and noise.
      people: pid -> direction, to which new persons are added.
    """

    def draw():
        return rng.normal(size=DIMENSIONS) / np.sqrt(DIMENSIONS)

    rows = [people.setdefault(pid, draw()) if pid > 0 else draw() for pid in pids.tolist()]
    return np.array([row + noise * draw() for row in rows], np.float32)


def measure(sides: dict, noise: float, seed: int) -> tuple[ranking.Ranking, ...]:
    """Appearance alone, with the sequences that were seen, and with their known lengths.

    Args:
      sides: side -> columns of its pictures, see `read`.
      noise: the length of the noise.
      seed: of the appearances.
    """
    rng, people = np.random.default_rng(seed), {}
    query, gallery = (
        sides[side] | {"feature": features(sides[side]["pid"], noise, rng, people)}
        for side in ("val", "test")
    )
    labels = Protocol(query, gallery, by_camera=True).labels
    near = distances.compute(query["feature"], gallery["feature"])
    training = Training(lambda: sides["train"], None)
    joint = (
        spatio_temporal(query, gallery, near, training=training, lengths=lengths)
        for lengths in ("seen", "market1501")
    )
    return tuple(ranking.evaluate(each, **labels) for each in (near, *joint))


def main(_) -> None:
    """Measures and prints a table of mAP and rank 1."""
    with scripts.messages("travel_times", "nothing was kept"):
        folder = Path(LISTS.value)
        sides = {side: read(folder / f"market_{side}.csv") for side in ("train", "val", "test")}
        rows = []
        for noise in NOISE:
            found = [measure(sides, noise, seed) for seed in range(SEEDS.value)]
            cells = [
                f"{tables.percent(np.mean([r.mAP for r in column]))} / "
                f"{tables.percent(np.mean([r.cmc[0] for r in column]))}"
                for column in zip(*found, strict=True)
            ]
            rows.append((f"{noise:.2f}", *cells))
        print(tables.align(HEADER, rows))


if __name__ == "__main__":
    app.run(main)
