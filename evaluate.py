"""Evaluates a run: python evaluate.py --task=attributes [--workdir=DIR].

--model=NAME instead of --workdir evaluates a published network (`pip install ./weights`), and a
task that compares takes --workdirs=DIR,DIR. The flags of a task are the keyword arguments of its
function; `--task=NAME --help` lists them.
"""

import inspect
import itertools
import re
import sys
import typing
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import config_flags

from market_jax import registry, scripts, tasks
from market_jax.errors import InputError

TASK = flags.DEFINE_string("task", None, "What to evaluate: a file in market_jax/tasks.")
WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run; else the newest that can.")
WORKDIRS = flags.DEFINE_string(
    "workdirs", None, "Of a task that compares: folders of runs or files of their scores: A,B.json."
)
MODEL = flags.DEFINE_string(
    "model", None, "A published network, or its .safetensors file, here or hf:OWNER/NAME/FILE."
)
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "Which one: best, latest or its step.")
DATA_NAME = flags.DEFINE_string("data_name", "", "Judge on another data set than the run's own.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "Where the data set lies, if it has moved.")
IMPORTS = flags.DEFINE_bool("allow_imports", False, "Import the outside code that a run names.")
CONFIG = config_flags.DEFINE_config_file("config", None, "Data for what needs no trained run.")

OF_RUNS = (CHECKPOINT, DATA_NAME, DATA_DIR, IMPORTS)

_DEFINE = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    list[str]: flags.DEFINE_multi_string,
}


def _kind(hint):
    """The kind of a flag: `str | None` is a text."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return kinds[0] if type(None) in typing.get_args(hint) else hint


def _helps(function: Callable) -> dict[str, str]:
    """Argument -> what the function's docstring says of it."""
    text = inspect.getdoc(function).partition("Args:")[2].partition("\n\n")[0]
    found = re.findall(r"^ {2}(\w+): (.*(?:\n {4}.*)*)", text, flags=re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in found}


def task_arguments(task: Callable) -> dict[str, type]:
    """The keyword arguments of a task's function, which are its flags: name -> kind."""
    hints = typing.get_type_hints(task)
    parameters = inspect.signature(task).parameters.values()
    names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    return {name: _kind(hints[name]) for name in names}


def define_flags(task: Callable) -> None:
    """Defines the flags of a task."""
    helps = _helps(task)
    for name, kind in task_arguments(task).items():
        _DEFINE[kind](name, None, helps.get(name, ""))


def find_task(name: str) -> Callable:
    """The function of a task: of a file in `market_jax/tasks`, or `package.module:function`."""
    if name == "inputs":  # what the tasks share
        registry.choose(name, dict.fromkeys(set(registry.files_of(tasks)) - {"inputs"}), "task")
    return registry.find_file(tasks, name, "task", "run")


def parse(argv: list[str]) -> list[str]:
    """Parses as absl does, once the task's own flags are known."""
    named = [word.partition("=")[2] for word in argv if re.match(r"--?task=", word)]
    if not named:
        pairs = itertools.pairwise(argv)
        named = [value for word, value in pairs if word in ("--task", "-task")]
    hint = f"; --task={named[-1] if named else 'NAME'} --help lists the flags of the task"
    try:
        if named:
            define_flags(find_task(named[-1]))
    except InputError as error:
        sys.exit(f"evaluate.py: {error}")
    return scripts.parse("evaluate.py", argv, hint)


def refuse(chosen, why: str) -> None:
    """Refuses flags that would do nothing beside the others."""
    for flag in chosen:
        if flag.present:
            raise InputError(f"--{flag.name} {why}")


def judged_data():
    """The data set that the flags name."""
    from market_jax import runs

    if DATA_NAME.value and not (DATA_DIR.value or DATA_NAME.value == "synthetic"):
        raise InputError("--data_name needs --data_dir, the folder of that data set")
    return runs.Data(DATA_NAME.value, DATA_DIR.value)


def takes_several(task: Callable) -> bool:
    """Whether a task compares: its first argument, `rows`, has several runs."""
    return next(iter(inspect.signature(task).parameters), "") == "rows"


def restore(workdir, data):
    """Restores a run as the flags say, and says which one."""
    from market_jax import runs

    run = runs.restore(workdir, CHECKPOINT.value, data, allow_imports=IMPORTS.value)
    print(f"run {run.workdir}, checkpoint of step {run.step} ({CHECKPOINT.value})")
    return run


def find_several():
    """The runs or scores of --workdirs: rows, in which those that + joins are seeds."""
    from market_jax.evaluators import scores

    refuse((WORKDIR, MODEL, CONFIG), "is of one run; this task compares those of --workdirs")
    names = [row.split("+") for row in (WORKDIRS.value or "").split(",")]
    if len(names) < 2 or not all(name for row in names for name in row):
        raise InputError(
            f"--workdirs is {WORKDIRS.value!r}; it must be two folders of runs or more: A,B,C, and "
            "A+A2,B where several seeds make a row; files of scores may stand in their place"
        )
    if all(name.endswith(scores.ENDING) for row in names for name in row):
        refuse(OF_RUNS, "is of runs; --workdirs has files of scores alone")
    data = judged_data()

    def find_one(name):
        if name.endswith(scores.ENDING):
            print(f"scores {name}")
            return scores.read(name)
        return restore(name, data)

    rows = [[find_one(name) for name in row] for row in names]
    print()
    return rows


def find_published():
    """The published network that the flags name."""
    from market_jax import runs, seen

    refuse((WORKDIR, CHECKPOINT, CONFIG), "is of a run; --model names a published network")
    run = runs.published(MODEL.value, judged_data(), allow_imports=IMPORTS.value)
    people = seen.in_words(run.extra["trained_on"])
    print(f"published network {run.extra['name']}, trained on {people}\n")
    return run


def find(task: str):
    """The run or published network that the flags name, restored; or one without a model.

    Args:
      task: what the newest run must be able to do, where the flags name none.
    """
    from market_jax import runs

    if MODEL.value:
        return find_published()
    if CONFIG.value:
        refuse(OF_RUNS, "is of a trained run; --config names none")
        return runs.without_model(CONFIG.value, WORKDIR.value)
    data = judged_data()
    run = restore(WORKDIR.value or runs.find_run(task), data)
    print()
    return run


def main(_) -> None:
    """Reads the flags and evaluates."""
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().setFormatter(None)  # the message alone
    with scripts.messages("evaluate.py", "what it was writing is as it was before"):
        from market_jax import devices  # once the command is known to be right

        devices.start()
        task = find_task(TASK.value)
        given = {n: flags.FLAGS[n].value for n in task_arguments(task) if flags.FLAGS[n].present}
        if takes_several(task):
            print(task(find_several(), **given))
        elif WORKDIRS.present:
            raise InputError(f"--task={TASK.value} is of one run: --workdir instead of --workdirs")
        else:
            needs = getattr(sys.modules.get(task.__module__), "NEEDS", TASK.value)
            print(task(find(needs), **given))


if __name__ == "__main__":
    flags.mark_flag_as_required("task")
    app.run(main, flags_parser=parse)
