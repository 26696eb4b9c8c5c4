"""python -m data_prep --dataset=NAME --source_dir=DIR --output_dir=DIR."""

from pathlib import Path

from absl import app, flags, logging

from data_prep import BUILDERS, draw_once, prepare, summary
from market_jax import scripts
from market_jax.errors import InputError

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
    given = {flag.name: flag.value for flag in (SEED, IDENTITIES) if flag.present}
    if DATASET.value == "synthetic":
        source = Path(SOURCE.value or Path(OUTPUT.value) / "synthetic-raw").expanduser()
        draw_once(source, **given)
        return source
    if given:
        raise InputError(f"--{min(given)} is of --dataset=synthetic alone")
    if not SOURCE.value:
        raise InputError(f"--source_dir must name the raw folder of {DATASET.value}")
    return Path(SOURCE.value).expanduser()


def main(_) -> None:
    """Reads the flags and prepares the data set."""
    logging.set_verbosity(logging.WARNING)  # TFDS tells of each of its steps
    with scripts.messages("data_prep", "nothing was written; the same command begins again"):
        done = prepare(
            DATASET.value,
            _source(),
            Path(OUTPUT.value).expanduser(),
            skip_bad=SKIP_BAD.value,
            overwrite=OVERWRITE.value,
        )
        text = summary.table(done.records, done.report, done.labels)
        print(f"{text}\n\nwritten to {done.directory}")


if __name__ == "__main__":
    flags.mark_flag_as_required("dataset")
    app.run(main, flags_parser=lambda argv: scripts.parse("data_prep", argv))
