"""What a data set says of its images: its label columns and their classes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from market_jax.errors import InputError


class Schema(NamedTuple):
    """The labels of a data set.

    Attributes:
      name: of the data set.
      labels: label column -> class names; a label is the position in them, -1 where unknown.
    """

    name: str
    labels: Mapping[str, tuple[str, ...]]


def merge(schemas: Sequence[Schema]) -> Schema:
    """The labels of several data sets together.

    Args:
      schemas: one or more.

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
