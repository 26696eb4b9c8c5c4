"""Checks of arguments of models that depend on each other or on the pictures, at a model's call."""

from collections.abc import Sequence

from market_jax.errors import InputError


def check_widths(widths: Sequence[int]) -> None:
    """Refuses an empty list of channels.

    Args:
      widths: channels of each layer.

    Raises:
      InputError: the message names the value.
    """
    if not widths:
        raise InputError(f"model.widths is {widths}; it must be one number or more")


def check_divides(image_size: Sequence[int], cell: Sequence[int], why: str) -> None:
    """Refuses pictures of which the last rows or columns would be left out.

    Args:
      image_size: rows and columns of the pictures.
      cell: rows and columns of a picture that one cell of the innermost map stands for.
      why: what has such cells, for the message: "model.final_pool is (4, 16) on a map of 32x24".

    Raises:
      InputError: a side is no multiple of the cell's; the message names both and what fits.
    """
    (height, width), (rows, columns) = image_size, cell
    if height % rows or width % columns:
        raise InputError(
            f"data.image_size is {height}x{width} and {why}, which leaves rows or columns out; "
            f"heights that fit are multiples of {rows}, widths of {columns}"
        )


def check_halvings(image_size: Sequence[int], times: int) -> None:
    """Refuses pictures that cannot be halved so often.

    Args:
      image_size: rows and columns of the pictures.
      times: how often the map is halved.

    Raises:
      InputError: a side is no multiple of 2 ** times.
    """
    check_divides(image_size, (2**times, 2**times), f"model.widths halves the map {times} times")


def check_smallest(image_size: Sequence[int], least: int) -> None:
    """Refuses pictures of which a network would leave no map.

    Args:
      image_size: rows and columns of the pictures.
      least: the smallest side that leaves a map.

    Raises:
      InputError: a side is smaller; the message names the size and the smallest side.
    """
    height, width = image_size
    if min(height, width) < least:
        raise InputError(
            f"an image of {height}x{width} is too small; each side must be {least} or more"
        )
