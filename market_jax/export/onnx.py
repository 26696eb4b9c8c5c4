"""ONNX, for ONNX Runtime and the many programs that read it."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from market_jax import files
from market_jax.errors import InputError
from market_jax.export import checking, jaxprs
from market_jax.export.functions import EMBEDDING, IMAGES, Function
from market_jax.export.graph import Graph, Node, Value

__all__ = ["OPSET", "SUFFIX", "embedder", "load", "make", "optional", "run_content", "write"]

SUFFIX = ".onnx"
OPSET, _IR = 18, 8  # read by ONNX Runtime from 1.14 on
_MOST = 1 << 31  # bytes of a file; more does not fit into one
_BATCH = "batch"
_TOGETHER = 64  # pictures that an embedder gives the file


def optional(name: str) -> Any:
    """A module of the packages that ONNX needs, which are installed by the extra "onnx".

    Args:
      name: of the module.

    Raises:
      InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(
            f'ONNX needs the package {name.split(".")[0]}: pip install "market_jax[onnx]"'
        ) from None


def make(
    function: Function, image_size: tuple[int, int], about: Mapping[str, str] | None = None
) -> bytes:
    """The bytes of the file that `write` writes.

    Args:
      function: uint8 images [N, H, W, 3] -> named outputs [N, ...], as of `make_function`.
      image_size: (height, width) of the images.
      about: texts by name that are kept in the file.

    Raises:
      InputError: as for `write`.
    """
    onnx = optional("onnx")
    graph, outputs = jaxprs.trace(function, image_size)
    for name, value in outputs.items():
        node = Node("Identity", (value.name,), (name,), ())
        graph.nodes.append(node)
    model = _model(onnx, graph, outputs, image_size)
    onnx.helper.set_model_props(model, dict(about or {}))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def _model(onnx, graph: Graph, outputs: Mapping[str, Value], image_size: tuple[int, int]):
    """The model that the checker takes."""
    nodes, constants = _used(graph, outputs)
    images = Value((_BATCH, *image_size, 3), np.dtype(np.uint8), (), IMAGES)
    made = onnx.helper.make_graph(
        [_node(onnx, node) for node in nodes],
        "market_jax",
        [_tensor(onnx, IMAGES, images)],
        [_tensor(onnx, name, value) for name, value in outputs.items()],
        [onnx.numpy_helper.from_array(graph.constants[name], name) for name in constants],
    )
    opset = onnx.helper.make_opsetid("", OPSET)
    return onnx.helper.make_model(
        made, opset_imports=[opset], ir_version=_IR, producer_name="market_jax"
    )


def _used(graph: Graph, outputs: Mapping[str, Value]) -> tuple[list[Node], list[str]]:
    """The nodes that the outputs need, in their order, and the names of their constants."""
    needed, nodes = set(outputs), []
    for node in reversed(graph.nodes):
        if needed & set(node.outputs):
            nodes.append(node)
            needed |= set(node.inputs)
    return nodes[::-1], [name for name in graph.constants if name in needed]


def _node(onnx, node: Node):
    """A node, as ONNX has it."""
    attributes = {
        key: onnx.helper.np_dtype_to_tensor_dtype(value) if isinstance(value, np.dtype) else value
        for key, value in node.attributes
    }
    return onnx.helper.make_node(
        node.operator, node.inputs, node.outputs, node.outputs[0], **attributes
    )


def _tensor(onnx, name: str, value: Value):
    """The type and shape of an input or output."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    shape = [size if isinstance(size, int) else _BATCH for size in value.shape]
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def write(
    path: Path,
    function: Function,
    image_size: tuple[int, int],
    about: Mapping[str, str] | None = None,
) -> None:
    """Writes a function into a file, whole or not at all.

    Args:
      path: the file.
      function: uint8 images [N, H, W, 3] -> named outputs [N, ...], as of `make_function`.
      image_size: (height, width) of the images.
      about: texts by name that are kept in the file, such as the labels' classes as JSON; ONNX
        Runtime returns them by `session.get_modelmeta().custom_metadata_map`.

    Raises:
      InputError: the function computes something for which no ONNX is written here, the package
        onnx is not installed, or the file cannot be written.
    """
    files.write_atomically(path, make(function, image_size, about))


def load(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Reads an ONNX file, to be run by ONNX Runtime on the CPU.

    Args:
      path: the file.

    Returns:
      uint8 images [N, H, W, 3] -> named outputs [N, ...].

    Raises:
      InputError: there is no such file, it holds something else, or the package onnxruntime is not
        installed.
    """
    return run_content(files.read_bytes(path, _MOST), str(path))


def run_content(content: bytes, name: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The same of the bytes of a file.

    Args:
      content: the bytes.
      name: what to call them in messages.

    Raises:
      InputError: as for `load`.
    """
    return _running(_session(content, name))


def _session(content: bytes, name: str):
    """An inference session of ONNX Runtime on the CPU."""
    runtime = optional("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    try:
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many kinds, all of onnxruntime's own
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"{name}: is nothing that ONNX Runtime can run ({reason})") from None


def _running(session) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function of images that runs a session."""
    names = [output.name for output in session.get_outputs()]

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {IMAGES: images}), strict=True))

    return run


def about(path: Path) -> dict[str, str]:
    """What an ONNX file says of itself, see `write`.

    Args:
      path: the file.

    Raises:
      InputError: as for `load`.
    """
    session = _session(files.read_bytes(path, _MOST), str(path))
    return dict(session.get_modelmeta().custom_metadata_map)


def embedder(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Reads an ONNX file that describes pictures, as `--task=export` writes them.

    Args:
      path: the file; its input "images" is uint8 [N, H, W, 3], its output "embedding" [N, D].

    Returns:
      uint8 images [M, H, W, 3] -> float32 [M, D]; an `InputError` where they have another size.

    Raises:
      InputError: as for `load`, or it has another input, or no embedding.
    """
    session = _session(files.read_bytes(path, _MOST), str(path))
    taken = {each.name: (each.type, each.shape) for each in session.get_inputs()}
    kind, shape = taken.get(IMAGES, ("nothing", [None]))
    if len(taken) > 1 or kind != "tensor(uint8)" or len(shape) != 4 or shape[3] != 3:
        raise InputError(f"{path}: takes {taken}; it must be {IMAGES!r}, uint8 [N, H, W, 3]")
    returned = {each.name: each.shape for each in session.get_outputs()}
    if len(returned.get(EMBEDDING, ())) != 2:
        raise InputError(f"{path}: returns {returned}; it must return {EMBEDDING!r}, [N, D]")
    run = _running(session)

    def embed(images: np.ndarray) -> np.ndarray:
        if list(images.shape[1:3]) != shape[1:3]:
            size, wanted = ("x".join(map(str, each)) for each in (images.shape[1:3], shape[1:3]))
            raise InputError(f"{path}: takes pictures of {wanted}; these are {size}")
        return checking.run(run, images, (_TOGETHER,))[EMBEDDING]

    return embed
