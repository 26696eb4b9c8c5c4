"""ONNX with convolutions and dense layers in eight bits, by ONNX Runtime's static quantiser.

What the numbers of its maps lie between is seen on some images, which should look like those that
the network is for. Pooling, and sums with constants, stay float32.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from market_jax import files
from market_jax.errors import InputError
from market_jax.export import onnx
from market_jax.export.functions import IMAGES, Function

__all__ = ["make", "write"]

_QUANTIZED = ("Add", "Clip", "Conv", "MatMul", "MaxPool", "Relu")
_AT_ONCE = 8  # images


class _Reader:
    """Hands the quantiser the images, some at a time."""

    def __init__(self, images: np.ndarray):
        self._parts = iter(np.split(images, range(_AT_ONCE, len(images), _AT_ONCE)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next images; None where there are no more."""
        part = next(self._parts, None)
        return None if part is None else {IMAGES: part}


def make(content: bytes, images: np.ndarray) -> bytes:
    """An ONNX file's bytes, its convolutions and dense layers in eight bits.

    Weights are uint8 with a scale for each output channel, and so are maps with one scale: ONNX
    Runtime multiplies signed weights on x86 CPUs without VNNI in a way that overflows. The nodes
    stay between nodes that quantise and back, which it joins with them when it reads the file.

    Args:
      content: the bytes of a file that `onnx.write` writes.
      images: [M, H, W, 3] uint8, 100 or so that look like those that the network is for.

    Raises:
      InputError: there is no image, or the packages onnx and onnxruntime are not installed.
    """
    if not len(images):
        raise InputError("no image is given to the quantiser, which must see some: 100 or so")
    package = onnx.optional("onnxruntime.quantization")
    model = onnx.optional("onnx").load_from_string(content)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        before, after = Path(folder) / "float32.onnx", Path(folder) / "uint8.onnx"
        before.write_bytes(content)
        package.quantize_static(
            before,
            after,
            _Reader(images),
            quant_format=package.QuantFormat.QDQ,
            per_channel=True,
            activation_type=package.QuantType.QUInt8,
            weight_type=package.QuantType.QUInt8,
            nodes_to_quantize=_quantized(model.graph),
        )
        return after.read_bytes()


def _quantized(graph) -> list[str]:
    """The names of the nodes that are quantised: of sums those of maps, of products the layers."""
    fixed = {tensor.name for tensor in graph.initializer}

    def is_wanted(node) -> bool:
        constant = any(name in fixed for name in node.input)
        by_operator = {"Add": not constant, "MatMul": constant}
        return node.op_type in _QUANTIZED and by_operator.get(node.op_type, True)

    return [node.name for node in graph.node if is_wanted(node)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's warnings: of channels without weights, of a step not needed here."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def write(
    path: Path,
    function: Function,
    image_size: tuple[int, int],
    images: np.ndarray,
    about: Mapping[str, str] | None = None,
) -> None:
    """Writes a function into an ONNX file in eight bits, whole or not at all.

    Its outputs are near the network's, not equal: compare the embeddings' cosines.

    Args:
      path: the file.
      function: uint8 images [N, H, W, 3] -> named outputs [N, ...], as of `make_function`.
      image_size: (height, width) of the images.
      images: [M, H, W, 3] uint8, 100 or so that look like those that the network is for.
      about: texts by name that are kept in the file.

    Raises:
      InputError: as for `make` and for `onnx.write`.
    """
    files.write_atomically(path, make(onnx.make(function, image_size, about), images))
