"""What a network is told beside the picture: columns of a batch, such as the number of the camera.

A model that takes some names them in a method `inputs`, and has an argument of each name, which is
None where nothing is known. "camera" is the column of a data set's own cameras: those of a folder
of crops have numbers, "camid", but are other cameras.
"""

from collections.abc import Callable, Mapping

from market_jax.typing import Array


def names(model) -> tuple[str, ...]:
    """The columns that a model takes, those of its `inputs()` where it has such a method.

    Args:
      model: a Flax module.
    """
    return model.inputs() if hasattr(model, "inputs") else ()


def of(apply: Callable, columns: Mapping[str, Array]) -> dict[str, Array]:
    """Those of the columns that an apply takes, by name.

    Args:
      apply: of a model; its attribute `inputs`, if it has one, names what it takes.
      columns: of a batch, or of a data set.
    """
    return {name: columns[name] for name in getattr(apply, "inputs", ()) if name in columns}
