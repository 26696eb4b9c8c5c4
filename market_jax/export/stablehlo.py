"""StableHLO, XLA's own language, as `jax.export` serialises it: one file for CPU, GPU and TPU.

JAX reads such files for half a year at the least, and newer ones not at all: export them again when
JAX is renewed.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.export
import numpy as np

from market_jax import files
from market_jax.errors import InputError
from market_jax.export.functions import PLATFORMS, Function, for_any_batch, images_like

__all__ = ["SUFFIX", "export", "load", "write"]

SUFFIX = ".stablehlo"
_MOST = 1 << 32  # bytes of a file that is read


def export(function: Function, image_size: tuple[int, int]) -> jax.export.Exported:
    """Lowers a function for all platforms and any number of images.

    Args:
      function: uint8 images [N, H, W, 3] -> named outputs [N, ...], as of `make_function`.
      image_size: (height, width) of the images.

    Raises:
      InputError: the function asks for the number of images as an integer.
    """
    with for_any_batch():
        return jax.export.export(jax.jit(function), platforms=PLATFORMS)(images_like(image_size))


def write(path: Path, function: Function, image_size: tuple[int, int]) -> None:
    """Writes a function into a file, whole or not at all.

    Args:
      path: the file.
      function: uint8 images [N, H, W, 3] -> named outputs [N, ...], as of `make_function`.
      image_size: (height, width) of the images.

    Raises:
      InputError: the function asks for the number of images as an integer, or the file cannot be
        written.
    """
    files.write_atomically(path, bytes(export(function, image_size).serialize()))


def load(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Reads a file that `write` has written.

    Args:
      path: the file.

    Returns:
      uint8 images [N, H, W, 3] -> named outputs [N, ...], compiled once for each N.

    Raises:
      InputError: there is no such file, it holds something else, or another JAX has written it.
    """
    content = files.read_bytes(path, _MOST)
    try:
        run = jax.jit(jax.export.deserialize(bytearray(content)).call)
    except Exception as error:  # flatbuffers raises many kinds
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"{path}: is no function that this JAX has exported ({reason})") from None
    return lambda images: jax.device_get(run(images))
