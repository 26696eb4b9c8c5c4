"""Prepared data sets on disk: records in ArrayRecord files, and a manifest that says what they are.

The folder is also a data set of TFDS, for other programs. Here it is read without the files of
TFDS, which name classes that would be imported: nothing in a data set's folder is ever executed.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from market_jax import files
from market_jax.data.folders import METADATA
from market_jax.data.schema import Schema
from market_jax.data.tf import tensorflow
from market_jax.errors import InputError

FILE, FORMAT = "market_jax.json", 1


class Manifest(NamedTuple):
    """What a prepared folder holds.

    Attributes:
      directory: the folder.
      schema: the data set's name and labels, in their order.
      splits: split -> file name -> (digest, number of records).
    """

    directory: Path
    schema: Schema
    splits: Mapping[str, Mapping[str, tuple[str, int]]]


def features(labels: Mapping[str, Sequence[str]]):
    """What a record holds, as a `FeaturesDict` of TFDS.

    Args:
      labels: label -> class names.
    """
    import tensorflow_datasets as tfds  # slow to import

    fields: dict[str, Any] = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        "name": tfds.features.Text(),
        **dict.fromkeys(METADATA, np.int32),
    }
    if labels:
        fields["attributes"] = {
            name: tfds.features.ClassLabel(names=classes) for name, classes in labels.items()
        }
    return tfds.features.FeaturesDict(fields)


def digest_of(path: Path) -> str:
    """The digest of a file.

    Args:
      path: the file.

    Raises:
      InputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _digest(content: Mapping) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write(
    directory: Path, schema: Schema, splits: Mapping[str, Mapping[str, tuple[str, int]]]
) -> None:
    """Writes the manifest of a folder.

    Args:
      directory: the folder, with its ArrayRecord files.
      schema: the data set's name and labels.
      splits: split -> file name -> (digest, number of records).
    """
    content = {
        "format": FORMAT,
        "name": schema.name,
        "labels": [[name, list(classes)] for name, classes in schema.labels.items()],
        "splits": {split: {f: list(n) for f, n in by.items()} for split, by in splits.items()},
    }
    text = json.dumps(content | {"digest": _digest(content)}, indent=1)
    files.write_atomically(directory / FILE, text + "\n")


def find(directory: Path) -> Path | None:
    """Finds the folder of a prepared data set; None if there is none.

    Args:
      directory: that folder, or a folder one or two levels above it.

    Raises:
      InputError: there are several data sets, or one that an older version has prepared.
    """
    directory = Path(directory)
    found = _holding(directory, FILE)
    if len(found) > 1:
        raise InputError(
            f"{directory}: holds several data sets, name one: {', '.join(map(str, found))}"
        )
    if not found and (old := _holding(directory, "dataset_info.json")):
        raise InputError(
            f"{old[0]}: has no {FILE}: it is damaged, or an older version of market_jax has "
            "prepared it; prepare it again (data_prep --overwrite)"
        )
    return found[0] if found else None


def _holding(directory: Path, file: str) -> list[Path]:
    """The folders, up to two levels below, that hold a file; none above others."""
    for pattern in ("", "*/", "*/*/"):
        found = [path.parent for path in sorted(directory.glob(pattern + file))]
        found = [path for path in found if not _is_unfinished(path.relative_to(directory))]
        if found:
            return found
    return []


def _is_unfinished(path: Path) -> bool:
    """Whether a folder is one that a preparation writes aside."""
    return any(part.startswith(".") or "incomplete" in part for part in path.parts)


def read(directory: Path) -> Manifest:
    """Reads the manifest of a prepared data set.

    Args:
      directory: the folder that `data_prep` has written, or one or two levels above it.

    Raises:
      InputError: there is no such data set, or the manifest or a file of it is damaged.
    """
    found = find(directory)
    if found is None:
        raise InputError(f"{directory}: there is no prepared data set here (see data_prep)")
    path = found / FILE
    content = files.read_json(path)
    digest = content.pop("digest", None)
    if content.get("format") != FORMAT or digest != _digest(content):
        raise InputError(f"{path}: is damaged, or of another version; prepare the data set again")
    try:
        labels = {name: tuple(classes) for name, classes in content["labels"]}
        splits = {
            split: {
                _inside(file): (str(digest), _count(count)) for file, (digest, count) in by.items()
            }
            for split, by in content["splits"].items()
        }
        return Manifest(found, Schema(str(content["name"]), labels), splits)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: is no manifest of a data set ({error!r})") from None


def _inside(file: str) -> str:
    """A file's name; a path that leads elsewhere is refused."""
    if Path(file).name != file or file.startswith("."):
        raise ValueError(f"{file!r} is no name of a file")
    return file


def _count(value) -> int:
    """A number of records; another value is refused."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no number of records")
    return value


def _only(values) -> Any:
    """The one value of a field of a record; another number of values is refused."""
    (value,) = values.value
    return value


class Records:
    """The records of a split, read by random access; pictures stay encoded.

    Args:
      manifest: the manifest of the data set.
      split: the name of one of its splits.

    Raises:
      InputError: a file is missing, or is not the one that was prepared.
    """

    def __init__(self, manifest: Manifest, split: str):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._directory, self._labels = manifest.directory, manifest.schema.labels
        self._numbers = (*METADATA, *(f"attributes/{label}" for label in self._labels))
        paths, self._size = [], 0
        for file, (digest, count) in manifest.splits[split].items():
            path = manifest.directory / file
            if not path.is_file() or digest_of(path) != digest:
                raise InputError(f"{path}: is missing or damaged: it is not what was prepared")
            paths.append(str(path))
            self._size += count
        try:
            self._source = ArrayRecordDataSource(paths)
            size = len(self._source)
        except Exception as error:  # whatever the C++ reader makes of it
            raise InputError(
                f"{manifest.directory}: split {split!r} is damaged ({error})"
            ) from None
        if size != self._size:
            raise InputError(
                f"{manifest.directory}: split {split!r} has {size} records; it had {self._size}"
            )

    def __len__(self) -> int:
        return self._size

    def raw(self, rows: Sequence[int]) -> list[bytes]:
        """The encoded records of some rows.

        Args:
          rows: positions of the records.

        Raises:
          InputError: a record is damaged.
        """
        try:
            return self._source.__getitems__([int(row) for row in rows]) if len(rows) else []
        except Exception as error:  # whatever the C++ reader makes of it
            reason = str(error).splitlines()[0][:200]
            raise InputError(f"{self._directory}: a record is damaged ({reason})") from None

    def decode(self, raw: bytes) -> dict[str, Any]:
        """What a record holds: "image" (encoded), "name", `METADATA`, "attributes".

        Args:
          raw: the encoded record.

        Raises:
          InputError: the record is damaged.
        """
        example = tensorflow().train.Example
        try:
            fields = example.FromString(raw).features.feature
            number = {key: _only(fields[key].int64_list) for key in self._numbers}
            record = {
                "image": _only(fields["image"].bytes_list),
                "name": _only(fields["name"].bytes_list).decode(),
                **{key: number[key] for key in METADATA},
            }
            if self._labels:
                record["attributes"] = {key: number[f"attributes/{key}"] for key in self._labels}
            return record
        except Exception as error:  # whatever the parser makes of it
            raise InputError(f"{self._directory}: a record is damaged ({error})") from None

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        return [self.decode(raw) for raw in self.raw(rows)]
