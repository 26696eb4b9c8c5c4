"""Whether an exported file returns what the network returned."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from market_jax.errors import InputError

__all__ = ["MOST", "SIZES", "check", "largest_difference", "run"]

MOST = 1e-4  # difference that rounding makes, as a share of the largest number
SIZES = (1, 3)  # of batches that are tried, for a file must take any


def run(
    function: Callable[[np.ndarray], Mapping], images: np.ndarray, sizes: Sequence[int] = SIZES
) -> dict[str, np.ndarray]:
    """The outputs of a function of images, which is called with batches of several sizes.

    Args:
      function: uint8 images [N, H, W, 3] -> named outputs [N, ...], such as a `load` returns.
      images: [M, H, W, 3] uint8.
      sizes: of the first batches; the last one is repeated until no image is left.

    Returns:
      Name -> [M, ...].
    """
    parts, first, waiting = [], 0, list(sizes)
    while first < len(images):
        size = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        parts.append(function(images[first : first + size]))
        first += size
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def largest_difference(
    expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> float:
    """The largest difference of two sets of outputs, as a share of an output's largest number.

    Args:
      expected: name -> [M, ...].
      found: the same names and shapes.

    Raises:
      InputError: a name or a shape differs.
    """
    shapes = [{name: np.shape(value) for name, value in each.items()} for each in (expected, found)]
    if shapes[0] != shapes[1]:
        raise InputError(f"the file returns {shapes[1]}; the network returns {shapes[0]}")
    shares = [0.0]
    for name, value in expected.items():
        largest = max(float(np.abs(value).max(initial=0)), np.finfo(np.float32).tiny)
        shares.append(float(np.abs(found[name] - value).max(initial=0)) / largest)
    return max(shares, key=lambda share: share if np.isfinite(share) else np.inf)


def check(
    name: str,
    function: Callable[[np.ndarray], Mapping],
    images: np.ndarray,
    expected: Mapping[str, np.ndarray],
    most: float = MOST,
) -> float:
    """Runs a file that was written and compares it with the network.

    Args:
      name: what the file is called in the message.
      function: what its `load` has returned.
      images: [M, H, W, 3] uint8.
      expected: the network's outputs for them, name -> [M, ...].
      most: the largest difference that is taken, as a share of an output's largest number.

    Returns:
      The largest difference.

    Raises:
      InputError: it is larger, or an output has another name or shape.
    """
    difference = largest_difference(expected, run(function, images))
    if not difference <= most:
        raise InputError(
            f"{name}: its outputs differ from the network's by {difference:.1e} of their largest "
            f"number; it must be at most {most:.0e}"
        )
    return difference
