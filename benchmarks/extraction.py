"""Pictures on disk to features in memory, beside the network alone.

python -m data_prep --dataset=synthetic --identities=64 --output_dir=synthetic
python -m benchmarks.extraction --data_dir=synthetic [--network=resnet] [--images=512]

`Predictor` is run as an evaluation runs it, over the columns of a split: pictures are read, decoded
and resized on the way ("from disk"). The same `Predictor` is given the same
pictures as an array ("in memory"), which is the network alone; and the pictures are read without
a network ("decoding alone"). The cases alternate. Prints medians over the rounds: images/s, and the
ratio to the speed in memory within a round; 1 says that decoding costs nothing. After the first
round, the system has the files in its memory. The weights are random.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import app, flags

from market_jax import build, devices, inference
from market_jax.data import columns as columns_
from market_jax.data import datasets, samplers
from market_jax.files import write_atomically
from market_jax.kernels import convolution
from market_jax.report import tables
from market_jax.training.state import init_variables
from market_jax.typing import Columns

DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder that data_prep has written.", required=True
)
SPLIT = flags.DEFINE_string("split", "test", "Which split.")
IMAGES = flags.DEFINE_integer("images", 512, "Its first so many pictures, or fewer.", 1)
NETWORK = flags.DEFINE_string("network", "efficientnet_lite", "Backbone; its feature is computed.")
CONVOLUTION = flags.DEFINE_enum("convolution", "auto", convolution.IMPLEMENTATIONS, "By what.")
IMAGE_SIZE = flags.DEFINE_list("image_size", ["256", "128"], "Height, width.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images at a time.", 1)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds; the first one warms up and is left out.", 2)
JSON = flags.DEFINE_string("json", None, "Where to keep every measured speed.")


def open_columns(image_size: tuple[int, int]) -> Columns:
    """The columns that the flags name, their pictures on disk.

    Args:
      image_size: (height, width).
    """
    dataset = datasets.open_dataset([Path(DATA_DIR.value)], image_size=image_size)
    columns = dataset.open(SPLIT.value)
    return columns_.select(columns, np.arange(min(IMAGES.value, len(columns["name"]))))


def cases(columns: Columns, image_size: tuple[int, int]) -> dict[str, Callable[[], object]]:
    """Case -> what is timed.

    Args:
      columns: of the pictures, which are on disk.
      image_size: (height, width).
    """
    model = build.model({"name": NETWORK.value})
    variables = init_variables(model, image_size, seed=0)
    apply = convolution.applying(CONVOLUTION.value, model.apply)
    predict = inference.Predictor(apply, variables, model=model, batch_size=BATCH_SIZE.value)
    loaded = columns_.in_memory(columns)

    def decode():
        order = samplers.sequential(len(columns["name"]), BATCH_SIZE.value)
        return [None for _ in inference.batches(columns["image"], order)]

    return {
        "in memory": lambda: predict(loaded, ("feature",)),
        "from disk": lambda: predict(columns, ("feature",)),
        "decoding alone": decode,
    }


def main(_) -> None:
    """Measures and prints a table."""
    devices.start()
    height, width = map(int, IMAGE_SIZE.value)
    columns = open_columns((height, width))
    timed = cases(columns, (height, width))
    speeds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(ROUNDS.value):
        for name, run in timed.items():
            start = time.perf_counter()
            run()
            speeds[name].append(len(columns["name"]) / (time.perf_counter() - start))
    speeds = {name: values[1:] for name, values in speeds.items()}
    if JSON.value:
        write_atomically(Path(JSON.value), json.dumps(speeds, indent=1) + "\n")
    reference = np.array(speeds["in memory"])
    lines = [
        (name, f"{statistics.median(values):.1f}", f"{np.median(np.array(values) / reference):.3f}")
        for name, values in speeds.items()
    ]
    print(tables.align(("case", "images/s", "of in memory"), lines))


if __name__ == "__main__":
    app.run(main)
