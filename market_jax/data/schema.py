"""The label columns of a data set and their classes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from market_jax.errors import InputError


class Schema(NamedTuple):
    """The labels of a data set.

    Attributes:
      name: the name of the data set.
      labels: label column -> class names; a label is a position in them, or -1 if it is unknown.
    """

    name: str
    labels: Mapping[str, tuple[str, ...]]


def merge(schemas: Sequence[Schema]) -> Schema:
    """Merges the labels of several data sets.

    Args:
      schemas: the schemas of one or more data sets.

    Raises:
      InputError: two data sets have a label of the same name with other classes.
    """
    labels: dict[str, tuple[str, ...]] = {}
    owner: dict[str, str] = {}
    for schema in schemas:
        for label, classes in schema.labels.items():
            if labels.setdefault(label, classes) != classes:
                raise InputError(
                    f"label {label!r} has the classes {', '.join(labels[label])} in "
                    f"{owner[label]} and {', '.join(classes)} in {schema.name}"
                )
            owner.setdefault(label, schema.name)
    return Schema(",".join(schema.name for schema in schemas), labels)
