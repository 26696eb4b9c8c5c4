"""TFDS builders of the data sets: where the splits of each lie, and how they are annotated."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from data_prep.synthetic import release
from market_jax import files
from market_jax.data import attributes, folders, prepared
from market_jax.data.folders import Report
from market_jax.errors import InputError

Records = dict[str, list[dict]]  # split -> records

# what batches and networks have by these names, beside the labels
_TAKEN = (
    *("image", "mask", "identity", "dataset", "digest", "feature", "embedding", "predictions"),
    *("map", "target", "reconstruction", "mean", "logvar", "camera", "slot"),
)


def check_label(name: str, what: str) -> None:
    """Refuses a name that no label can have.

    Args:
      name: of the label.
      what: where it stands, for the message.

    Raises:
      InputError: it is no plain name, or batches and networks have something else by it.
    """
    taken = (*_TAKEN, "name", *folders.METADATA)
    if not re.fullmatch(r"[A-Za-z]\w*", name) or name in taken:
        raise InputError(
            f"{what} {name!r} is no name for a label: letters, digits and _, and not "
            f"{', '.join(taken)}"
        )


@dataclasses.dataclass(frozen=True)
class Source:
    """A raw folder that a builder reads.

    Attributes:
      directory: the raw folder.
      report: collects the files and rows that are left out.
      progress: (iterable, desc=text) -> iterable; shows how far the reading is.
    """

    directory: Path
    report: Report
    progress: Callable

    def scan(self, folder: str, grammar: str | re.Pattern) -> list[dict]:
        """Reads the records of one folder.

        Args:
          folder: the folder's path within the raw folder.
          grammar: the name of a naming, or a regular expression, see `folders.scan`.

        Raises:
          InputError: as for `folders.scan`.
        """
        return folders.scan(self.directory / folder, grammar, self.report, self.progress)

    def read_list(self, file: str) -> list[dict]:
        """Reads the records that a CSV in the raw folder lists, see `folders.read_list`.

        Args:
          file: the CSV's path within the raw folder.

        Raises:
          InputError: as for `folders.read_list`.
        """
        return folders.read_list(self.directory, self.directory / file, self.report)

    def annotate(self, records: list[dict], file: str) -> list[dict]:
        """Adds the labels of an annotation file to records.

        Args:
          records: the pictures' records.
          file: the annotation file's path within the raw folder.

        Raises:
          InputError: as for `attributes.read` and `folders.annotate`.
        """
        path = self.directory / file
        table = attributes.read(path, self.report.problems)
        return folders.annotate(records, table, self.report, path)


class PersonCrops(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set of person crops; a subclass says how its folders are read.

    Attributes:
      LABELS: label -> class names. A record's "attributes" has, for each label, a position in its
        class names, or -1 if it is unknown.
      INPUTS: the files and folders of the raw folder that are read.
    """

    VERSION = tfds.core.Version("1.0.0")
    LABELS: Mapping[str, tuple[str, ...]] = attributes.CLASSES
    INPUTS: tuple[str, ...] = (".",)

    def __init__(
        self, records: Records, labels: Mapping[str, Sequence[str]], progress: Callable, **kwargs
    ):
        """Makes the builder.

        Args:
          records: the records of each split, as `read` returns them.
          labels: label -> class names.
          progress: (iterable, desc=text) -> iterable; shows how far the writing is.
          **kwargs: further arguments of the TFDS builder, such as `data_dir`.
        """
        self._records, self._labels, self._progress = records, labels, progress
        super().__init__(file_format="array_record", **kwargs)

    @staticmethod
    def read(source: Source) -> Records:
        """Reads and annotates the records of every split: split -> records."""
        raise NotImplementedError

    @classmethod
    def labels(cls, source: Source) -> Mapping[str, Sequence[str]]:
        """Label -> class names; most data sets have the same ones whatever the folder holds."""
        return cls.LABELS

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=prepared.features(self._labels),
            disable_shuffling=True,
        )

    def _split_generators(self, _) -> dict[str, Iterator]:
        return {
            split: self._generate_examples(rows, split) for split, rows in self._records.items()
        }

    def _generate_examples(self, records: list[dict], split: str) -> Iterator:
        for i, record in enumerate(self._progress(records, desc=f"writing {split}")):
            keys = ("name", *folders.METADATA, *(["attributes"] if self._labels else []))
            yield i, {k: record[k] for k in keys} | {"image": str(record["path"])}


_MARKET_FOLDERS = {"train": "bounding_box_train", "test": "bounding_box_test", "query": "query"}


class Unitn(PersonCrops, skip_registration=True):
    """The course release: train/ with annotations_train.csv, anonymous test/ and queries/."""

    INPUTS = ("train", "annotations_train.csv", "test", "queries")

    @staticmethod
    def read(source: Source) -> Records:
        """Reads and annotates the records of every split: split -> records."""
        train = source.annotate(source.scan("train", "unitn"), "annotations_train.csv")
        unlabelled = {"test": "test", "query": "queries"}
        return {"train": train} | {
            split: folders.annotate(source.scan(folder, "anonymous"), {}, source.report, folder)
            for split, folder in unlabelled.items()
        }


class Market1501(PersonCrops, skip_registration=True):
    """Market-1501 as published, with market_attribute.mat; junk is pid -1, distractors 0."""

    INPUTS = ("bounding_box_train", "bounding_box_test", "query", "market_attribute.mat")

    @staticmethod
    def read(source: Source) -> Records:
        """Reads and annotates the records of every split: split -> records."""
        records = {part: source.scan(f, "market1501") for part, f in _MARKET_FOLDERS.items()}
        return {
            split: source.annotate(rows, "market_attribute.mat") for split, rows in records.items()
        }


class Synthetic(Market1501, skip_registration=True):
    """Pedestrians drawn by the project, in the official layout, read by the official reader."""


def read_record(source_dir: Path) -> dict:
    """How a synthetic release was drawn: "seed", "identities"; {} where that is not known.

    Args:
      source_dir: the raw folder.

    Raises:
      InputError: the file that says so is damaged.
    """
    path = Path(source_dir) / release.RECORD
    return files.read_json(path) if path.exists() else {}


class Unlabelled(PersonCrops, skip_registration=True):
    """A data set without attributes, in three folders.

    Attributes:
      FOLDERS: split -> its folder within the raw folder.
      NAMING: the naming of its pictures, see `filenames.parse`.
    """

    LABELS: Mapping[str, tuple[str, ...]] = {}
    INPUTS = tuple(_MARKET_FOLDERS.values())
    FOLDERS: Mapping[str, str] = _MARKET_FOLDERS
    NAMING = ""

    @classmethod
    def read(cls, source: Source) -> Records:
        """Reads the records of every split: split -> records."""
        return {split: source.scan(folder, cls.NAMING) for split, folder in cls.FOLDERS.items()}


class Dukemtmc(Unlabelled, skip_registration=True):
    """DukeMTMC-reID as published."""

    NAMING = "dukemtmc"


class Cuhk03Np(Unlabelled, skip_registration=True):
    """CUHK03 by the new protocol (Zhong et al., 2017): labeled/ or detected/ is the raw folder."""

    NAMING = "cuhk03_np"


class Veri(Unlabelled, skip_registration=True):
    """VeRi-776, vehicles."""

    NAMING = "veri"
    INPUTS = ("image_train", "image_test", "image_query")
    FOLDERS: Mapping[str, str] = {name.removeprefix("image_"): name for name in INPUTS}


_MSMT_FOLDERS = {"train": ("train", "mask_train_v2"), "test": ("test", "mask_test_v2")}
_MSMT_LISTS = {
    "train": ("list_train.txt", "list_val.txt"),
    "test": ("list_gallery.txt",),
    "query": ("list_query.txt",),
}


class Msmt17(PersonCrops, skip_registration=True):
    """MSMT17 V1 or V2 as published: two folders, and lists that say what is in which split.

    Both folders count their identities from 0. Here those of the test folder follow those of the
    training folder, so that one number is one person.
    """

    LABELS: Mapping[str, tuple[str, ...]] = {}

    @staticmethod
    def read(source: Source) -> Records:
        """Reads the records of every split: split -> records."""
        sides = {}
        for side, names in _MSMT_FOLDERS.items():
            there = [name for name in names if (source.directory / name).is_dir()]
            sides[side] = {r["name"]: r for r in source.scan((there or names)[0], "msmt17")}
        last = max(record["pid"] for record in sides["train"].values())
        sides["test"] = {n: r | {"pid": r["pid"] + last} for n, r in sides["test"].items()}
        records: Records = {}
        for split, lists in _MSMT_LISTS.items():
            side = sides["train" if split == "train" else "test"]
            records[split] = [r for name in lists for r in _listed(source, name, side)]
        return records


def _listed(source: Source, file: str, side: Mapping[str, dict]) -> list[dict]:
    """The records that a list of MSMT17 names: a picture's path, a space and a number in a line."""
    path, found = source.directory / file, []
    for number, line in enumerate(files.read_text(path).splitlines(), start=1):
        name = line.partition(" ")[0]
        if name in side:
            found.append(side[name])
        elif name:
            source.report.bad(f"{path}, line {number}: there is no usable picture {name!r}")
    return found


class Table(PersonCrops, skip_registration=True):
    """Your own pictures, listed in images.csv: name, pid, camid, split, and a column per label.

    name is a picture's path within the raw folder; split is train, test or query; a label's column
    holds the names of its classes, and is empty where it is not known. Columns sequence and frame
    are not labels.
    """

    LABELS: Mapping[str, tuple[str, ...]] = {}
    FILE, SPLITS = "images.csv", ("train", "test", "query")

    @classmethod
    def labels(cls, source: Source) -> Mapping[str, Sequence[str]]:
        """Label -> the names that its column holds, in their order."""
        columns: dict[str, set[str]] = {}
        for _, row in files.read_table(source.directory / cls.FILE, ("split",)):
            for name, value in row.items():
                if name not in ("name", "pid", "camid", "split", *folders.METADATA):
                    columns.setdefault(name, set()).add(value.strip())
        for name, classes in columns.items():
            check_label(name, f"{source.directory / cls.FILE}: column")
            if not 2 <= len(classes - {""}) <= 1000:
                raise InputError(
                    f"{source.directory / cls.FILE}: label {name!r} has {len(classes - {''})} "
                    "classes; it must have 2 to 1000"
                )
        return {name: tuple(sorted(c - {""})) for name, c in columns.items()}

    @classmethod
    def read(cls, source: Source) -> Records:
        """Reads the records of every split that the table has: split -> records."""
        labels = cls.labels(source)
        records: Records = {}
        for record in source.read_list(cls.FILE):
            row = record["row"]
            split = row["split"].strip()
            if split not in cls.SPLITS:
                source.report.bad(
                    f"{source.directory / cls.FILE}: {record['name']} is in split {split!r}; "
                    f"it must be {', '.join(cls.SPLITS)}"
                )
                continue
            known = {n: {c: i for i, c in enumerate(classes)} for n, classes in labels.items()}
            said = {n: by.get(row[n].strip(), attributes.UNKNOWN) for n, by in known.items()}
            records.setdefault(split, []).append(record | {"attributes": said})
        return {split: records[split] for split in cls.SPLITS if split in records}
