"""Tokens and their positions in files of Transformers, as variables of `backbones.vit` and `swin`.

A file has the positions of the class token and of a square of patches in one tensor, the model has
them apart, the patches' in the rows and columns of its own pictures. Each function takes a file's
tensors, a tensor's name and a variable's shape, see `pretrained`.
"""

import math
from collections.abc import Mapping

import jax
import numpy as np
import scipy.optimize

from market_jax.errors import InputError
from market_jax.weights.namings import Variables

_POSITIONS = "pos_embed"  # ours, timm's and Meta's
_CAMERAS = "camera_embed"
_RATIOS = (1.01, 1.5)  # timm's: from which ratio of distances to which
_LORA = "_lora"  # ends the names of modules with two matrices
_REGISTERS = ("reg_token", "register_tokens")  # timm's, Meta's


def _named_beside(tensors: Mapping[str, np.ndarray], name: str, other: str) -> np.ndarray | None:
    """The tensor whose name differs in its last part alone, if there is one."""
    return tensors.get(f"{name.rpartition('.')[0]}.{other}".removeprefix("."))


def _is_table(tensor: np.ndarray) -> bool:
    """Whether it can be rows of a width; what cannot is refused by its shape."""
    return tensor.ndim > 0 and tensor.size > 0


def tokens(tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Tokens, [R, D], which some files have with further axes of length 1, and others without.

    Args:
      tensors: of the file.
      name: of the tensor.
      shape: of the variable.
    """
    tensor = tensors[name]
    return tensor.reshape(shape) if tensor.size == math.prod(shape) else tensor


def class_token(tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The class token, [1, D]; beside registers with its position, which Meta's files have apart.

    Args:
      tensors: of the file.
      name: of the tensor.
      shape: of the variable.
    """
    token = tokens(tensors, name, shape)
    if _named_beside(tensors, name, _REGISTERS[1]) is None or token.shape != shape:
        return token
    positions = _named_beside(tensors, name, _POSITIONS)
    if positions is None or not _is_table(positions) or positions.shape[-1] != shape[-1]:
        return token
    first = positions.reshape(-1, shape[-1])[:1]
    return token.astype(np.float32) + first.astype(np.float32)


def class_position(
    tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]
) -> np.ndarray:
    """The position of the class token, [1, D], the first of all.

    Args:
      tensors: of the file.
      name: of the tensor with all positions.
      shape: of the variable.
    """
    tensor = tensors[name]
    return tensor.reshape(-1, tensor.shape[-1])[:1] if _is_table(tensor) else tensor


def grid(tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The patches' positions, [h, w, D], resized where the model has other rows or columns.

    They are resized by a cubic filter with antialiasing, as by timm's `resample_abs_pos_embed`. A
    square number of patches lay in a square; another number must be the model's own.

    Args:
      tensors: of the file.
      name: of the tensor with all positions, [1, 1 + h * w, D], [1 + h * w, D], or timm's beside
        registers [1, h * w, D].
      shape: of the variable.
    """
    tensor = tensors[name]
    if not _is_table(tensor):
        return tensor
    timms = _named_beside(tensors, name, _REGISTERS[0]) is not None
    patches = tensor.reshape(-1, tensor.shape[-1])[0 if timms else 1 :]
    side = math.isqrt(len(patches))
    if patches.shape[-1] != shape[-1] or not side:
        return patches
    if side**2 != len(patches):
        return patches.reshape(shape) if patches.size == math.prod(shape) else patches
    square = patches.reshape(side, side, -1)
    if square.shape == shape:
        return square
    return np.asarray(jax.image.resize(square.astype(np.float32), shape, "cubic"))


def offsets(tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Biases by how far tokens of a window lie apart, [2h - 1, 2w - 1, heads].

    Where the file's window is another, a square, they are interpolated linearly between places
    whose distances grow from the middle by a ratio, as by timm's `resize_rel_pos_bias_table`.

    Args:
      tensors: of the file.
      name: of the tensor, [(2h - 1) * (2w - 1), heads].
      shape: of the variable.
    """
    tensor = tensors[name]
    if tensor.size == math.prod(shape):
        return tensor.reshape(shape)
    heads = shape[-1]
    side = math.isqrt(tensor.size // heads)
    if tensor.shape != (side**2, heads) or side % 2 == 0:
        return tensor
    rows, columns = (_between(side, target) for target in shape[:2])
    square = tensor.astype(np.float32).reshape(side, side, heads)
    return np.einsum("rh,cw,hwk->rck", rows, columns, square)


def _between(source: int, target: int) -> np.ndarray:
    """[target, source] float32, the shares of a file's places in each place of the model."""

    def overshoot(ratio: float) -> float:
        return np.sum(ratio ** np.arange(source // 2)) - target // 2

    low, high = _RATIOS
    if overshoot(low) < 0 < overshoot(high):
        ratio = scipy.optimize.brentq(overshoot, low, high)
    else:
        ratio = low if overshoot(low) >= 0 else high
    after = np.cumsum(ratio ** np.arange(source // 2))
    places = np.concatenate([-after[::-1], [0], after])
    wanted = np.arange(target) - target // 2
    shares = [np.interp(wanted, places, one) for one in np.eye(source)]
    return np.stack(shares, axis=1).astype(np.float32)


def join_offsets(variables: Variables, naming: str) -> Variables:
    """The variables of a Swin Transformer as a file has them, see `offsets`.

    Args:
      variables: path -> value, of the network and what lies behind it.
      naming: of the file.
    """
    del naming  # all have them so
    return {
        path: value.reshape(-1, value.shape[-1]) if path[-1] == "position_bias" else value
        for path, value in variables.items()
    }


def join(variables: Variables, naming: str) -> Variables:
    """The variables as a file has them: LoRA in its kernels, and all positions in one tensor.

    Args:
      variables: path -> value, of a Vision Transformer and what lies behind it.
      naming: of the file, see `backbones.vit`.
    """
    found = {path: value for path, value in variables.items() if not _is_lora(path)}
    for *module, name, kind in filter(_is_lora, variables):
        if kind == "down":
            down, up = (variables[*module, name, part] for part in ("down", "up"))
            kernel = (*module, name.removesuffix(_LORA), "kernel")
            found[kernel] = found[kernel] + down @ up
    grid_, bare = found[_POSITIONS,], naming == "CLIP"
    rows = [found.pop(("class_position",), np.zeros((0, grid_.shape[-1]), np.float32))]
    if naming == "DINOv2" and not rows[0].size:  # the position is in the class token
        rows = [np.zeros((1, grid_.shape[-1]), np.float32)]
    found[_POSITIONS,] = np.concatenate([*rows, grid_.reshape(-1, grid_.shape[-1])])
    for name in () if bare else (_POSITIONS, "cls_token", _REGISTERS[0]):
        found |= {(name,): found[name,][None]} if (name,) in found else {}
    if (_CAMERAS,) in found:
        if naming != "TransReID":
            raise InputError(
                f"--naming={naming} has no names for the backbone's {_CAMERAS}, without which its "
                "features would be others"
            )
        found[_CAMERAS,] = found[_CAMERAS,][:, None]
    if bare:
        found["cls_token",] = found["cls_token",][0]
    elif ("projection",) in found:
        found["projection",] = found["projection",].T
    return found


def _is_lora(path: tuple[str, ...]) -> bool:
    return len(path) > 1 and path[-2].endswith(_LORA)
