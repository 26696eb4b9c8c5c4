"""python -m data_prep --dataset=synthetic|unitn|market1501 --source_dir=DIR --output_dir=DIR."""

import sys
from pathlib import Path

from absl import app, flags, logging

from data_prep import BUILDERS, draw, prepare, progress_bar, summary
from market_jax.errors import InputError
from market_jax.registry import find

DATASET = flags.DEFINE_string(
    "dataset", None, f"{', '.join(BUILDERS)}, or package.module:Builder of your own."
)
SOURCE = flags.DEFINE_string(
    "source_dir", None, "The raw folder; synthetic draws it here, by default in --output_dir."
)
OUTPUT = flags.DEFINE_string("output_dir", "data", "Where the prepared data set goes.")
SKIP_BAD = flags.DEFINE_bool("skip_bad", False, "Leave bad files and rows out and list them.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a prepared data set.")
SEED = flags.DEFINE_integer("seed", 0, "Of the synthetic drawing.")
IDENTITIES = flags.DEFINE_integer("identities", 64, "Of the synthetic drawing.")


def _source() -> Path:
    """The raw folder; a synthetic one that is not there yet is drawn."""
    if DATASET.value != "synthetic":
        if not SOURCE.value:
            raise InputError(f"--source_dir must name the raw folder of {DATASET.value}")
        return Path(SOURCE.value)
    source = Path(SOURCE.value or Path(OUTPUT.value) / "synthetic-raw")
    if not source.exists():
        draw(source, seed=SEED.value, identities=IDENTITIES.value, progress=progress_bar)
    elif SEED.present or IDENTITIES.present:
        raise InputError(f"{source}: drawn already; --seed and --identities need a new folder")
    return source


def main(_) -> None:
    """Reads the flags and prepares the data set."""
    logging.set_verbosity(logging.WARNING)  # TFDS tells of each of its steps
    try:
        directory, records, report = prepare(
            DATASET.value,
            _source(),
            Path(OUTPUT.value),
            skip_bad=SKIP_BAD.value,
            overwrite=OVERWRITE.value,
        )
    except (InputError, OSError) as error:
        sys.exit(f"data_prep: {error}")
    labels = find(DATASET.value, BUILDERS, "data set").LABELS
    print(f"{summary.table(records, report, labels)}\n\nwritten to {directory}")


if __name__ == "__main__":
    flags.mark_flag_as_required("dataset")
    app.run(main)
