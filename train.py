"""Trains an experiment: python train.py --config=configs/attributes_cnn.py [--workdir=DIR]."""

import importlib.util
import sys
from logging import INFO
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from market_jax import scripts

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment: a file in configs/, and :ARGUMENTS."
)
WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run; else runs/<config name>.")


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; see `scripts.parse`."""
    rest = scripts.parse("train.py", argv)
    if not config_file()[0].is_file():
        sys.exit(f"train.py: --config={config_file()[0]}: there is no such file")
    return rest


def config_file() -> tuple[Path, list[str]]:
    """The file that --config names, and its arguments after a colon."""
    name, *arguments = config_flags.get_config_filename(flags.FLAGS["config"]).split(":", 1)
    return Path(name), arguments


def default_workdir() -> Path:
    """runs/, and the name of the config with its arguments."""
    path, arguments = config_file()
    name = "-".join([path.stem, *arguments])
    return Path("runs", name.replace(",", "-").replace("/", "-"))


def defaults() -> ConfigDict:
    """The config as its file has it, without what the other flags change."""
    path, arguments = config_file()
    spec = importlib.util.spec_from_file_location("config_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*arguments)


def main(_) -> None:
    """Reads the flags and trains."""
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(None)  # the message alone
    handler.addFilter(lambda r: r.levelno > INFO or "market_jax" in Path(r.pathname).parts)
    with scripts.messages("train.py", "the same command goes on from the latest checkpoint"):
        from market_jax import devices, recipes, registry  # once the flags are right

        devices.start()
        devices.keep_memory()
        fit = registry.find_file(recipes, CONFIG.value.recipe, "recipe", "fit")
        fit(CONFIG.value, Path(WORKDIR.value or default_workdir()), defaults())


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse)
