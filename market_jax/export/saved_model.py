"""TensorFlow's SavedModel: the same StableHLO in a folder, for TensorFlow and its servers."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from market_jax.data.tf import tensorflow
from market_jax.errors import InputError
from market_jax.export.functions import IMAGES, PLATFORMS, Function, for_any_batch

__all__ = ["SIGNATURE", "SUFFIX", "load", "write"]

SUFFIX = ""  # it is a folder
SIGNATURE = "serving_default"


def _converter():
    """JAX's own converter to TensorFlow, which imports that."""
    try:
        from jax.experimental import jax2tf
    except ImportError as error:
        raise InputError(
            f"a SavedModel needs jax.experimental.jax2tf ({error}); --to=stablehlo needs JAX alone"
        ) from None
    return jax2tf


def write(path: Path, function: Function, image_size: tuple[int, int]) -> None:
    """Writes a function into a folder, whole or not at all.

    Its signature "serving_default" takes "images", uint8 [N, H, W, 3], and returns the outputs.

    Args:
      path: the folder, which must not be there yet.
      function: uint8 images [N, H, W, 3] -> named outputs [N, ...], as of `make_function`.
      image_size: (height, width) of the images.

    Raises:
      InputError: the function asks for the number of images as an integer, the folder is there
        already, or it cannot be written.
    """
    tf, jax2tf = tensorflow(), _converter()
    height, width = image_size
    convert = jax2tf.convert(
        function,
        polymorphic_shapes=[f"(batch, {height}, {width}, 3)"],
        with_gradient=False,
        native_serialization_platforms=PLATFORMS,
    )
    images = tf.TensorSpec([None, height, width, 3], tf.uint8, IMAGES)
    traced = tf.function(convert, input_signature=[images], autograph=False)
    with for_any_batch():  # kept as a signature alone, for anything more holds the weights again
        signatures = {SIGNATURE: traced.get_concrete_function()}
    with _written_whole(Path(path), tf.errors.OpError) as folder:
        tf.saved_model.save(tf.Module(), str(folder), signatures)


@contextlib.contextmanager
def _written_whole(path: Path, failure: type[Exception]) -> Iterator[Path]:
    """A folder beside the one that is written, which takes its name in the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.exists():
            raise InputError(f"{path}: is there already; remove it, or name another folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.rename(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, failure) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be written ({reason})") from None


def load(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Reads a folder that `write` has written.

    Args:
      path: the folder.

    Returns:
      uint8 images [N, H, W, 3] -> named outputs [N, ...].

    Raises:
      InputError: there is no such folder, or it holds something else.
    """
    tf = tensorflow()
    try:
        module = tf.saved_model.load(str(path))
        run = module.signatures[SIGNATURE]
    except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"{path}: is no SavedModel with {SIGNATURE!r} ({reason})") from None

    def outputs_of(images: np.ndarray, _module=module) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in run(**{IMAGES: tf.constant(images)}).items()}

    return outputs_of
