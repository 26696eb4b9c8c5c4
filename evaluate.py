"""Evaluates a run: python evaluate.py --task=attributes [--workdir=DIR]."""

import sys

from absl import app, flags, logging

from market_jax import devices, experiment, runs, tasks
from market_jax.typing import InputError

TASK = flags.DEFINE_string("task", None, "What to evaluate: a file in market_jax/tasks.")
WORKDIR = flags.DEFINE_string("workdir", None, "Of the run; by default the newest that can.")
CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint.")
SPLIT = flags.DEFINE_string("split", "val", "What is judged: val, train, test or query.")
IMAGES = flags.DEFINE_string("images", None, "Judge this folder of crops instead of a split.")
ANNOTATIONS = flags.DEFINE_string("annotations", None, "The labels of --images, CSV or .mat.")
PREDICT = flags.DEFINE_string("predict", None, "Write predictions: a folder, or test or query.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the run's data set lies now, if moved.")


def main(_) -> None:
    """Reads the flags and evaluates."""
    logging.set_verbosity(logging.WARNING)
    try:
        devices.start()
        task = experiment.find_module(tasks, TASK.value, "task")
        run = runs.restore(TASK.value, WORKDIR.value, CHECKPOINT.value, DATA_DIR.value)
        print(f"run {run.workdir}, checkpoint of step {run.step} ({CHECKPOINT.value})\n")
        print(
            task.run(
                run,
                split=SPLIT.value,
                images=IMAGES.value,
                annotations=ANNOTATIONS.value,
                predict_for=PREDICT.value,
            )
        )
    except (InputError, OSError) as error:
        sys.exit(f"evaluate.py: {error}")


if __name__ == "__main__":
    flags.mark_flag_as_required("task")
    app.run(main)
