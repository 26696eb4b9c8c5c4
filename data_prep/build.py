"""Prepares a raw folder: reads and checks all of it, and only then writes the data set."""

import contextlib
import hashlib
import inspect
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds
from absl import logging
from tqdm import tqdm

from data_prep import builders
from data_prep.builders import PersonCrops, Records, Source
from data_prep.synthetic import draw
from market_jax import registry
from market_jax.data import folders, prepared
from market_jax.data.folders import Report
from market_jax.data.schema import Schema
from market_jax.errors import InputError
from market_jax.files import locked

BUILDERS: dict[str, type[PersonCrops]] = {
    cls.name: cls
    for cls in (
        *(builders.Synthetic, builders.Unitn, builders.Market1501, builders.Table),
        *(builders.Dukemtmc, builders.Msmt17, builders.Cuhk03Np, builders.Veri),
    )
}


class Prepared(NamedTuple):
    """What `prepare` has done.

    Attributes:
      directory: the folder of the data set.
      records: the records of each split.
      report: what was left out.
      labels: label -> class names.
    """

    directory: Path
    records: Records
    report: Report
    labels: Mapping[str, Sequence[str]]


def prepare(
    dataset: str,
    source_dir: Path,
    output_dir: Path,
    *,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> Prepared:
    """Prepares a raw folder as a TFDS data set.

    Everything is read and checked before anything is written, and the data set appears whole, by a
    rename.

    Args:
      dataset: the name of the data set, a key of `BUILDERS` or `package.module:Builder`.
      source_dir: the raw folder.
      output_dir: the data set is written to `output_dir/<dataset>/<version>`.
      skip_bad: leave bad files and rows out and list them, instead of raising an error.
      overwrite: replace the data set if it exists; until the new one is there, the old one stays.

    Returns:
      What was prepared.

    Raises:
      InputError: see `folders.scan`, `folders.annotate` and `attributes.read`; or the name is
        unknown, a split is empty, the data set exists and `overwrite` is not set, or it cannot be
        written.
    """
    cls = registry.find(dataset, BUILDERS, "data set")
    source_dir, output_dir = Path(source_dir), Path(output_dir)
    with _place(output_dir, cls.name) as final:
        if final.exists() and not overwrite:
            raise InputError(f"{final}: already prepared; --overwrite replaces it")
        if not source_dir.is_dir():
            raise InputError(f"{source_dir}: there is no such folder")
        report = Report(skip_bad=skip_bad)
        source = Source(source_dir, report, progress_bar)
        labels = cls.labels(source)
        for name in labels:
            builders.check_label(name, f"{dataset}: label")
        records = cls.read(source)
        for split, rows in records.items():
            if not rows:
                raise InputError(f"{source_dir}: no picture of the split {split!r} could be used")
        return Prepared(_write(cls, records, labels, final), records, report, labels)


@contextlib.contextmanager
def _place(output_dir: Path, name: str) -> Iterator[Path]:
    """Where a data set goes, for one process at a time; what killed ones have left is put right."""
    final, old = output_dir / name, output_dir / f".{name}.replaced"
    with locked(output_dir / f".{name}.lock"):
        if old.exists() and not final.exists():
            os.replace(old, final)  # killed between two renames
        _remove(old)
        _remove(output_dir / f".{name}.new")
        yield final


def _write(
    cls: type[PersonCrops], records: Records, labels: Mapping[str, Sequence[str]], final: Path
) -> Path:
    """Builds the data set aside and moves it to its place; returns its folder."""
    tfds.disable_progress_bar()  # ours is shown instead
    version, aside = str(cls.VERSION), final.with_name(f".{final.name}.new")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder = cls(records, labels, progress_bar, data_dir=str(aside))
            builder.download_and_prepare(download_dir=str(aside / "downloads"))
        splits = {
            name: {
                Path(file).name: (prepared.digest_of(Path(file)), count)
                for file, count in zip(info.filepaths, info.shard_lengths, strict=True)
            }
            for name, info in builder.info.splits.items()
        }
        prepared.write(aside / cls.name / version, Schema(cls.name, labels), splits)
        old = final.with_name(f".{final.name}.replaced")
        if final.exists():
            os.replace(final, old)
        try:
            os.replace(aside / cls.name, final)
        except BaseException:
            if old.exists():
                os.replace(old, final)
            raise
        _remove(old)
    except InputError:
        raise
    except Exception as error:  # TFDS and its writers raise many kinds: a full disk, above all
        raise InputError(f"{final} cannot be written ({_reason(error)})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final / version


def _remove(path: Path) -> None:
    """Removes a folder, or a link or file in its place."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _reason(error: BaseException) -> str:
    """The first error of a chain, in one line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return (str(error).strip() or repr(error)).splitlines()[0]


def progress_bar(items, desc: str):
    """Shows on the terminal how far an iteration is; returns the iterable to use.

    Args:
      items: the iterable.
      desc: a text before the bar.
    """
    return tqdm(items, desc=desc, unit=" images", mininterval=1, dynamic_ncols=True)


def fingerprint(source_dir: Path, inputs: Sequence[str] = (".",)) -> str:
    """A digest of the names, sizes and times of files; it differs when one changes.

    Args:
      source_dir: the raw folder; links are followed.
      inputs: files and folders in it that count, all folders in these too.

    Raises:
      InputError: see `folders.walk`.
    """
    digest = hashlib.sha256(f"{prepared.FORMAT}\n".encode())  # one of an older version is not used
    for name in inputs:
        path = source_dir / name
        found = [path / below for below in folders.walk(path)] if path.is_dir() else [path]
        for file in found:
            if file.exists():
                state = file.stat()
                name = file.relative_to(source_dir)
                digest.update(f"{name} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def prepare_once(dataset: str, source_dir: Path, cache_dir: Path) -> Path:
    """Prepares a raw folder at the first call, and finds the result at later ones.

    Args:
      dataset: the name of the data set, see `prepare`.
      source_dir: the raw folder.
      cache_dir: the data set is written to `cache_dir/<dataset>-<digest>`, of the raw folder, of
        the builder's version and labels, and of the file of one from outside.

    Returns:
      The folder of the prepared data set.

    Raises:
      InputError: as for `prepare`.
    """
    cls = registry.find(dataset, BUILDERS, "data set")
    name = dataset.replace(":", ".")  # of a builder outside
    state = f"{fingerprint(Path(source_dir), cls.INPUTS)} {_code_of(cls)}"
    output_dir = Path(cache_dir) / f"{name}-{hashlib.sha256(state.encode()).hexdigest()[:12]}"
    with locked(Path(cache_dir) / f".{name}.lock"):  # of two first starts, one prepares
        found = prepared.find(output_dir)
        return found or prepare(dataset, source_dir, output_dir).directory


def _code_of(cls: type[PersonCrops]) -> str:
    """A builder's version and labels, and of one from outside the text of its classes' files."""
    classes = cls.__mro__[: cls.__mro__.index(PersonCrops)]
    outside = [each for each in classes if not each.__module__.startswith("data_prep.")]
    texts = [Path(inspect.getfile(each)).read_text() for each in outside]
    return json.dumps([str(cls.VERSION), dict(cls.LABELS), *texts])


def find_or_prepare(name: str, directory: str, cache_dir: Path = Path("data")) -> Path:
    """Finds the folder of a prepared data set; a raw folder is prepared first, once.

    Args:
      name: a key of `BUILDERS`, or `package.module:Builder`.
      directory: the folder of a prepared data set, or a raw folder; "" draws the synthetic one.
      cache_dir: where raw folders are prepared.

    Raises:
      InputError: the name is unknown, or the folder is missing or holds another data set; or
        `prepare` fails.
    """
    cls = registry.find(name, BUILDERS, "data set (data.name)")
    if not directory and name != "synthetic":
        raise InputError(f"data.dir is empty; it must name the folder of {name}")
    source = Path(directory or cache_dir / "synthetic-raw").expanduser()
    if not directory:
        draw_once(source)
    if not source.is_dir():
        raise InputError(f"data.dir is {directory}: there is no such folder")
    if directory and (found := prepared.find(source)):
        held = prepared.read(found).schema.name
        if held != cls.name:
            raise InputError(f"data.name is {name}, but {found} is {held}")
        return found
    logging.info("data: %s is a raw folder; its prepared form is under %s/", source, cache_dir)
    return prepare_once(name, source, cache_dir)


def draw_once(source: Path, **how: int) -> None:
    """Draws the synthetic release, unless the same one is there.

    Args:
      source: the folder that is drawn.
      **how: "seed" and "identities", see `draw`.

    Raises:
      InputError: the folder holds a release that was drawn otherwise.
    """
    with locked(source.with_name(f".{source.name}.lock")):
        if not source.exists():
            draw(source, progress=progress_bar, **how)
        drawn = builders.read_record(source)
        for key, value in how.items():
            if drawn.get(key) != value:
                raise InputError(
                    f"{source}: was drawn with {key} {drawn.get(key, 'unknown')}, not {value}; "
                    "another one needs a new folder"
                )
