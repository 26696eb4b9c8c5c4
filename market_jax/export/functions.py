"""The function that is exported: uint8 images -> embedding and probabilities, weights within it."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from market_jax.errors import InputError
from market_jax.kernels import convolution
from market_jax.registry import choose
from market_jax.typing import Array, Outputs, PyTree

__all__ = [
    "ATTRIBUTES",
    "EMBEDDING",
    "IMAGES",
    "PLATFORMS",
    "Function",
    "for_any_batch",
    "images_like",
    "make_function",
    "select",
]

Function = Callable[[Array], Outputs]  # uint8 [N, H, W, 3] -> name -> [N, ...]

IMAGES = "images"  # the name of the input
EMBEDDING = "embedding"
ATTRIBUTES = "attributes/"  # begins the names of probabilities
PLATFORMS = ("cpu", "cuda", "tpu")
_BATCH = "batch"  # the name of the dimension N


def select(outputs: Outputs, labels: Sequence[str] = ()) -> dict[str, Array]:
    """What is exported of a model's outputs.

    Args:
      outputs: of the model, "embedding" [N, D] among them.
      labels: outputs that are logits [N, K], of which probabilities are returned.

    Returns:
      {"embedding": [N, D], and for each label "attributes/<label>": [N, K]}, float32.

    Raises:
      InputError: the model has no such output.
    """
    chosen = {EMBEDDING: choose(EMBEDDING, outputs, "output of the model")}
    for label in labels:
        logits = choose(label, outputs, "output of the model")
        chosen[f"{ATTRIBUTES}{label}"] = jax.nn.softmax(logits.astype(jnp.float32))
    return {name: value.astype(jnp.float32) for name, value in chosen.items()}


def make_function(
    apply: Callable, variables: PyTree, *, labels: Sequence[str] = (), flip: bool = False
) -> Function:
    """The function of a network that its users need, with the weights as constants.

    Args:
      apply: The model's own apply: (variables, float32 images [N, H, W, 3] in [0, 1]) -> outputs.
      variables: of the model, with the collection "folded" of `norms.fold`, made under
        `convolution.using("lax")`, where BatchNorm is to be in the convolutions.
      labels: outputs of the model that are logits, of which probabilities are returned.
      flip: the mean of the outputs of an image and of its mirror image.

    Returns:
      uint8 images [N, H, W, 3] -> the outputs of `select`. Convolutions are XLA's own, so that no
      package is needed to run what is exported. An output that the model does not have ends in an
      `InputError` when it is called.
    """

    def function(images: Array) -> dict[str, Array]:
        def outputs_of(images: Array) -> dict[str, Array]:
            return select(apply(variables, images.astype(jnp.float32) / 255), labels)

        with convolution.using("lax"):
            outputs = outputs_of(images)
            if not flip:
                return outputs
            mirrored = outputs_of(jax.lax.rev(images, (2,)))
        return {name: (value + mirrored[name]) / 2 for name, value in outputs.items()}

    return function


def images_like(image_size: tuple[int, int]) -> jax.ShapeDtypeStruct:
    """The input of an exported function: uint8 [batch, H, W, 3], for any number of images.

    Args:
      image_size: (height, width).
    """
    (batch,) = jax.export.symbolic_shape(_BATCH)
    return jax.ShapeDtypeStruct((batch, *image_size, 3), np.uint8)


@contextlib.contextmanager
def for_any_batch() -> Iterator[None]:
    """A context in which a function is traced for any number of images.

    Raises:
      InputError: the function asks for their number as an integer.
    """
    try:
        yield
    except (TypeError, jax.errors.InconclusiveDimensionOperation) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(
            f"the network cannot be exported for any number of images ({reason}); its code must "
            "not ask how many there are: x.shape[0], not len(x)"
        ) from error
