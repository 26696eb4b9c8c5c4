"""Prepares a raw folder: reads and checks all of it, and only then writes the data set."""

import contextlib
import hashlib
import io
import os
import shutil
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging
from tqdm import tqdm

from data_prep.builders import Market1501, PersonCrops, Records, Source, Synthetic, Unitn
from data_prep.synthetic import draw
from market_jax import registry
from market_jax.data.columns import find_dataset
from market_jax.data.folders import Report
from market_jax.errors import InputError

BUILDERS: dict[str, type[PersonCrops]] = {
    "synthetic": Synthetic,
    "unitn": Unitn,
    "market1501": Market1501,
}


def prepare(
    dataset: str,
    source_dir: Path,
    output_dir: Path,
    *,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> tuple[Path, dict[str, list[dict]], Report]:
    """Prepares a raw folder as a TFDS data set.

    Everything is read and checked before anything is written, and the data set appears whole, by a
    rename.

    Args:
      dataset: the name of the data set, "unitn", "market1501", "synthetic" or
        `package.module:Builder`.
      source_dir: the raw folder.
      output_dir: the data set is written to `output_dir/<dataset>/<version>`.
      skip_bad: leave bad files and rows out and list them, instead of raising an error.
      overwrite: replace the data set if it exists.

    Returns:
      The folder of the data set, the records of each split, and a report of what was left out.

    Raises:
      InputError: see `folders.scan`, `folders.annotate` and `attributes.read`; or the name is
        unknown, a split is empty, or the data set exists and `overwrite` is not set.
    """
    cls = registry.find(dataset, BUILDERS, "data set")
    source_dir, output_dir = Path(source_dir), Path(output_dir)
    existing = output_dir / cls.name
    if find_dataset(existing) and not overwrite:
        raise InputError(f"{existing}: already prepared; --overwrite replaces it")
    if not source_dir.is_dir():
        raise InputError(f"{source_dir}: there is no such folder")
    report = Report(skip_bad=skip_bad)
    records = cls.read(Source(source_dir, report, progress_bar))
    for split, rows in records.items():
        if not rows:
            raise InputError(f"{source_dir}: no picture of the split {split!r} could be used")
    return _write(cls, records, output_dir), records, report


def _write(cls: type[PersonCrops], records: Records, output_dir: Path) -> Path:
    """Builds the dataset aside and moves it to its place; returns its folder."""
    tfds.disable_progress_bar()  # ours is shown instead
    aside = output_dir / f".{cls.name}.{os.getpid()}"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder = cls(records, progress_bar, data_dir=str(aside))
            builder.download_and_prepare(download_dir=str(aside / "downloads"))
        final = output_dir / cls.name
        if final.exists():
            os.replace(final, aside / "replaced")
        os.replace(aside / cls.name, final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final / str(cls.VERSION)


def progress_bar(items, desc: str):
    """Shows on the terminal how far an iteration is; returns the iterable to use.

    Args:
      items: the iterable.
      desc: a text before the bar.
    """
    return tqdm(items, desc=desc, unit=" images", mininterval=1, dynamic_ncols=True)


def fingerprint(source_dir: Path) -> str:
    """A digest of the names, sizes and times of all files in a folder; it differs when one changes.

    Args:
      source_dir: the folder, with all folders in it.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in source_dir.rglob("*") if p.is_file()):
        stat = path.stat()
        line = f"{path.relative_to(source_dir)} {stat.st_size} {stat.st_mtime_ns}\n"
        digest.update(line.encode())
    return digest.hexdigest()[:12]


def prepare_once(dataset: str, source_dir: Path, cache_dir: Path) -> Path:
    """Prepares a raw folder at the first call, and finds the result at later ones.

    Args:
      dataset: the name of the data set, see `prepare`.
      source_dir: the raw folder.
      cache_dir: the data set is written to `cache_dir/<dataset>-<fingerprint of the raw folder>`.

    Returns:
      The folder of the prepared data set.

    Raises:
      InputError: as for `prepare`.
    """
    name = dataset.replace(":", ".")  # of a builder outside
    output_dir = Path(cache_dir) / f"{name}-{fingerprint(Path(source_dir))}"
    found = find_dataset(output_dir)
    return found or prepare(dataset, source_dir, output_dir)[0]


def find_or_prepare(name: str, directory: str, cache_dir: Path = Path("data")) -> Path:
    """Finds the folder of a prepared data set; a raw folder is prepared first, once.

    Args:
      name: "unitn", "market1501", "synthetic" or `package.module:Builder`.
      directory: the folder of a prepared data set, or a raw folder; "" draws the synthetic one.
      cache_dir: where raw folders are prepared.

    Raises:
      InputError: the name is unknown, or the folder is missing or holds another data set; or
        `prepare` fails.
    """
    cls = registry.find(name, BUILDERS, "data set (data.name)")
    if not directory and name != "synthetic":
        raise InputError(f"data.dir is empty; it must name the folder of {name}")
    source = Path(directory or cache_dir / "synthetic-raw")
    if not directory and not source.exists():
        draw(source, progress=progress_bar)
    if not source.is_dir():
        raise InputError(f"data.dir is {directory}: there is no such folder")
    if found := find_dataset(source):
        if found.parent.name != cls.name:
            raise InputError(f"data.name is {name}, but {found} is {found.parent.name}")
        return found
    logging.info("data: %s is a raw folder; its prepared form is under %s/", source, cache_dir)
    return prepare_once(name, source, cache_dir)
