"""Evaluates a run: python evaluate.py --task=attributes [--workdir=DIR]."""

import inspect
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from configs import common
from market_jax import devices, runs, tasks
from market_jax.errors import InputError
from market_jax.registry import find_module

TASK = flags.DEFINE_string("task", None, "What to evaluate: a file in market_jax/tasks.")
WORKDIR = flags.DEFINE_string("workdir", None, "Of the run; by default the newest that can.")
CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the run's data set lies now, if moved.")
CONFIG = config_flags.DEFINE_config_file("config", None, "Data for what needs no trained run.")

# of the tasks; a task takes those that its `run` has arguments for
flags.DEFINE_string("split", None, "What is judged: val, train or test.")
flags.DEFINE_string("images", None, "Judge this folder of crops instead of a split.")
flags.DEFINE_string("annotations", None, "The labels of --images, CSV or .mat.")
flags.DEFINE_string("predict", None, "Write predictions: a folder, test or query; or release.")
flags.DEFINE_string(
    "features", None, "model, predictions, model+predictions, imagenet, pixels, ..."
)
flags.DEFINE_string("retrieval", None, "ranking, or through clusters: agglomerative, kmeans, ...")
flags.DEFINE_multi_string("stage", None, 'A ranking stage: "k_reciprocal k1=20"; in order.')
flags.DEFINE_enum("metric", None, ["cosine", "euclidean"], "Between features.")
flags.DEFINE_bool("flip", None, "Average over an image and its mirror image.")
flags.DEFINE_integer("neighbours", None, "Average attributes over so many nearest images.")
flags.DEFINE_string("exclude", None, "A CSV with a column name: images that are left out.")
flags.DEFINE_integer("top_k", None, "Length of the lists that --predict writes.")
flags.DEFINE_bool("report", None, "Write a page with the metrics and ranked lists.")
flags.DEFINE_string("score", None, "Of junk: error or normalized.")
flags.DEFINE_float("threshold", None, "The score above which an image is flagged as junk.")
flags.DEFINE_bool("made", None, "Judge the scores on junk made from people, too.")
flags.DEFINE_bool("review", None, "Write the page on which a person decides what is junk.")
_OF_TASKS = ("split", "images", "annotations", "predict", "features", "stage", "metric", "flip")
_OF_TASKS += ("retrieval", "exclude", "top_k", "report", "score", "threshold", "made", "review")
_OF_TASKS += ("neighbours",)


def arguments(task) -> dict:
    """The flags that were given, for the task's `run`.

    Raises:
      InputError: the task has no use for one of them.
    """
    given = {name: flags.FLAGS[name].value for name in _OF_TASKS if flags.FLAGS[name].present}
    for name in given:
        if name not in inspect.signature(task.run).parameters:
            raise InputError(f"--{name} is not for --task={TASK.value}")
    return given


def main(_) -> None:
    """Reads the flags and evaluates."""
    logging.set_verbosity(logging.WARNING)
    try:
        devices.start()
        task = find_module(tasks, TASK.value, "task")
        given = arguments(task)
        if CONFIG.value:
            run = runs.without_model(CONFIG.value, WORKDIR.value)
        else:
            run = runs.restore(
                TASK.value, WORKDIR.value, CHECKPOINT.value, DATA_DIR.value, common.get_config()
            )
            print(f"run {run.workdir}, checkpoint of step {run.step} ({CHECKPOINT.value})\n")
        print(task.run(run, **given))
    except (InputError, OSError) as error:
        sys.exit(f"evaluate.py: {error}")


if __name__ == "__main__":
    flags.mark_flag_as_required("task")
    app.run(main)
