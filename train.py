"""Trains an experiment: python train.py --config=configs/attributes_cnn.py [--workdir=DIR]."""

import sys
from logging import INFO
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from market_jax import devices, experiment
from market_jax.errors import InputError

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment: a file in configs/, and :VARIANT."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Of the run; by default runs/<config name>.")


def parse(argv: list[str]) -> list[str]:
    """Parses as absl does; a wrong key or a missing file ends in a message, not in a traceback."""
    try:
        rest = flags.FLAGS(argv)
    except (KeyError, AttributeError, TypeError, ValueError, flags.Error) as error:
        message = str(error.args[0] if error.args else error)  # quoted twice by ml_collections
        if "Traceback" in message:  # of the config's own file
            message = message.strip().splitlines()[-1]
        sys.exit("train.py: " + message.replace("\\n", ": ").replace("\\'", "'").strip("'"))
    if not config_file().is_file():
        sys.exit(f"train.py: --config={config_file()}: there is no such file")
    return rest


def config_file() -> Path:
    """The file that --config names, without the variant after a colon."""
    return Path(config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0])


def default_workdir() -> Path:
    """runs/, and the names of the config and its variant."""
    _, *variant = config_flags.get_config_filename(flags.FLAGS["config"]).split(":")
    return Path("runs", "-".join([config_file().stem, *variant]))


def main(_) -> None:
    """Reads the flags and trains."""
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(None)  # the message alone
    handler.addFilter(lambda r: r.levelno > INFO or "market_jax" in Path(r.pathname).parts)
    try:
        devices.start()
        devices.keep_memory()
        experiment.fit(CONFIG.value, Path(WORKDIR.value or default_workdir()))
    except (InputError, OSError) as error:
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:
        sys.exit("train.py: interrupted; the same command goes on from the latest checkpoint")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse)
