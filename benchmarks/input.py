"""Does the input keep up? The training step on a fixed batch, beside the step fed by the pipeline.

python -m benchmarks.input --config=configs/attributes_cnn.py [--config.KEY=VALUE ...]

Prints images/s as medians over rounds in which the cases alternate, and their ratio to the fixed
batch: images in memory, images read from disk at every step, and the pipeline alone.
"""

import functools
import itertools
import statistics
import time
from collections.abc import Iterator

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from market_jax import build, devices
from market_jax.data import columns as columns_
from market_jax.data import pipeline
from market_jax.report import tables
from market_jax.training.state import init_state, init_variables
from market_jax.training.step import make_train_step

CONFIG = config_flags.DEFINE_config_file("config", "configs/attributes_cnn.py", "The experiment.")
STEPS = flags.DEFINE_integer("steps", 8, "Steps of each case in a round.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds; the first one warms up and is left out.")


def cases(config, mesh) -> dict[str, Iterator]:
    """Case -> an endless iterator over batches."""
    place = functools.partial(devices.place_batch, mesh)
    feeds = {}
    for name, in_memory in (("in memory", True), ("from disk", False)):
        columns = build.dataset(config).open("train")
        columns = columns_.in_memory(columns) if in_memory else columns
        feeds[name] = map(place, pipeline.batches(columns, build.sampler(config, columns)))
    fixed = jax.block_until_ready(next(feeds["in memory"]))
    return {"fixed batch": itertools.repeat(fixed), **feeds}


def main(_) -> None:
    """Measures and prints a table."""
    devices.start()
    devices.keep_memory()
    config, mesh = CONFIG.value, devices.make_mesh()
    feeds = cases(config, mesh)
    model = build.model(config.model, config.dtype)
    tx = build.optimizer(config, model, steps_per_epoch=100)
    variables = init_variables(model, config.data.image_size, seed=config.seed)
    state = devices.replicate(mesh, init_state(variables, tx, seed=config.seed))
    objective, augment = build.objective(config), build.augment(config)
    train = make_train_step(build.apply(config, model), objective, augment, tx)
    speeds: dict[str, list[float]] = {name: [] for name in (*feeds, "pipeline alone")}
    for _ in range(ROUNDS.value):
        for name, feed in feeds.items():
            start = time.perf_counter()
            for batch in itertools.islice(feed, STEPS.value):
                state, metrics = train(state, batch)
            jax.block_until_ready(metrics)
            speeds[name].append(STEPS.value * config.batch_size / (time.perf_counter() - start))
        start = time.perf_counter()
        for batch in itertools.islice(feeds["in memory"], STEPS.value):
            jax.block_until_ready(batch)
        speed = STEPS.value * config.batch_size / (time.perf_counter() - start)
        speeds["pipeline alone"].append(speed)
    reference = np.array(speeds["fixed batch"][1:])
    rows = [
        (
            name,
            f"{statistics.median(values[1:]):.1f}",
            f"{np.median(np.array(values[1:]) / reference):.3f}",
        )
        for name, values in speeds.items()
    ]
    print(tables.align(("case", "images/s", "of fixed batch"), rows))


if __name__ == "__main__":
    app.run(main)
