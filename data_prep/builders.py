"""TFDS builders of the data sets: where the splits of each lie, and how they are annotated."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from market_jax.data import attributes, folders
from market_jax.data.folders import Report

Records = dict[str, list[dict]]  # split -> records


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
    """

    VERSION = tfds.core.Version("1.0.0")
    LABELS: Mapping[str, tuple[str, ...]] = attributes.CLASSES

    def __init__(self, records: Records, progress: Callable, **kwargs):
        """Makes the builder.

        Args:
          records: the records of each split, as `read` returns them.
          progress: (iterable, desc=text) -> iterable; shows how far the writing is.
          **kwargs: further arguments of the TFDS builder, such as `data_dir`.
        """
        self._records, self._progress = records, progress
        super().__init__(file_format="array_record", **kwargs)

    @staticmethod
    def read(source: Source) -> Records:
        """Reads and annotates the records of every split: split -> records."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "name": tfds.features.Text(),
            **dict.fromkeys(folders.METADATA, np.int32),
            "attributes": {
                name: tfds.features.ClassLabel(names=classes)
                for name, classes in self.LABELS.items()
            },
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, _) -> dict[str, Iterator]:
        return {
            split: self._generate_examples(rows, split) for split, rows in self._records.items()
        }

    def _generate_examples(self, records: list[dict], split: str) -> Iterator:
        for i, record in enumerate(self._progress(records, desc=f"writing {split}")):
            example = {k: record[k] for k in ("name", *folders.METADATA, "attributes")}
            yield i, example | {"image": str(record["path"])}


class Unitn(PersonCrops, skip_registration=True):
    """The course release: train/ with annotations_train.csv, anonymous test/ and queries/."""

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

    @staticmethod
    def read(source: Source) -> Records:
        """Reads and annotates the records of every split: split -> records."""
        parts = {"train": "bounding_box_train", "test": "bounding_box_test", "query": "query"}
        records = {split: source.scan(folder, "market1501") for split, folder in parts.items()}
        return {
            split: source.annotate(rows, "market_attribute.mat") for split, rows in records.items()
        }


class Synthetic(Market1501, skip_registration=True):
    """Pedestrians drawn by the project, in the official layout, read by the official reader."""
