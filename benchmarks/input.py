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

from market_jax import devices, experiment
from market_jax.data import pipeline
from market_jax.report import tables

CONFIG = config_flags.DEFINE_config_file("config", "configs/attributes_cnn.py", "The experiment.")
STEPS = flags.DEFINE_integer("steps", 8, "Steps of each case in a round.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds; the first one warms up and is left out.")


def cases(config, mesh) -> tuple[dict[str, Iterator], experiment.Plan]:
    """Case -> an endless iterator over batches."""
    place = functools.partial(devices.place_batch, mesh)
    feeds = {}
    for name, in_memory in (("in memory", True), ("from disk", False)):
        config.data.in_memory = in_memory
        columns = experiment.open_split(config, "train")
        plan = experiment.make_plan(config, columns["pid"])
        feeds[name] = map(place, pipeline.batches(columns, plan.sampler))
    fixed = jax.block_until_ready(next(feeds["in memory"]))
    return {"fixed batch": itertools.repeat(fixed), **feeds}, plan


def main(_) -> None:
    """Measures and prints a table."""
    devices.start()
    devices.keep_memory()
    config, mesh = CONFIG.value, devices.make_mesh()
    feeds, plan = cases(config, mesh)
    model = experiment.make_model(config)
    tx = experiment.make_optimizer(config, plan)
    state = devices.replicate(mesh, experiment.fresh_state(config, model, tx))
    apply, loss = experiment.make_apply(config, model), experiment.make_loss(config)
    train = experiment.make_train_step(config, apply, loss, tx)
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
