"""Swin Transformers (Liu et al. 2021): attention in windows that shift, as timm builds them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from market_jax.errors import InputError
from market_jax.kernels import remat
from market_jax.kernels.dense import dot_general
from market_jax.models import checks, layers
from market_jax.models.heads import classify, pool
from market_jax.models.transformer import Block, attend, exact_gelu
from market_jax.typing import Array, Classes, FractionBelow1, Outputs, Range
from market_jax.weights import positions

_PATCH = 4
_FORBIDDEN = -100.0  # added to the scores of tokens that the shift has brought together
_DEPTHS = {"tiny": (2, 2, 6, 2), "small": (2, 2, 18, 2), "base": (2, 2, 18, 2)}
_WIDTHS = {"tiny": (96, 3), "small": (96, 3), "base": (128, 4)}  # of the first stage, and its heads


def _rules(stage_of_merge: int, head: str) -> tuple:
    """The names of a file whose first stage has number 0.

    Args:
      stage_of_merge: which stage has the module that merges patches before our second one.
      head: the layer of 1000 classes.
    """
    return (
        (r"^patch_embed$", "patch_embed.proj"),
        (r"^norm_patches$", "patch_embed.norm"),
        (r"^merge(\d)_", lambda found: f"layers.{int(found[1]) - 2 + stage_of_merge}.downsample."),
        (r"^stage(\d)_block(\d+)", lambda found: f"layers.{int(found[1]) - 1}.blocks.{found[2]}"),
        (r"\.qkv$", ".attn.qkv"),
        (r"\.out$", ".attn.proj"),
        (r"\.position_bias$", ".attn.relative_position_bias_table"),
        (r"\.(fc\d)$", r".mlp.\1"),
        (r"^head_imagenet", head),
    )


TORCH_NAMES = {"timm": _rules(1, "head.fc"), "Microsoft": _rules(0, "head")}
TORCH_VALUES = {"position_bias": positions.offsets}
to_torch = positions.join_offsets


def _windows(x: Array, window: Sequence[int]) -> Array:
    """[N, H, W, D] whose sides are multiples of a window's -> [N * windows, tokens of one, D]."""
    n, height, width, size = x.shape
    rows, columns = window
    x = x.reshape(n, height // rows, rows, width // columns, columns, size)
    return x.swapaxes(2, 3).reshape(-1, rows * columns, size)


def _map(x: Array, window: Sequence[int], shape: Sequence[int]) -> Array:
    """The inverse of `_windows`; the shape is that of the map."""
    n, height, width, _ = shape
    rows, columns = window
    x = x.reshape(n, height // rows, width // columns, rows, columns, -1)
    return x.swapaxes(2, 3).reshape(*shape[:3], -1)


def _forbid(size: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> np.ndarray:
    """What keeps apart tokens that were on opposite sides of a map before it was shifted.

    Args:
      size: rows and columns of the map, multiples of a window's.
      window: rows and columns of a window.
      shift: how far the map was moved, up and to the left.

    Returns:
      [windows, T, T] float32.
    """
    rows, columns = (
        np.searchsorted([length - side, length - move], np.arange(length), side="right")
        for length, side, move in zip(size, window, shift, strict=True)
    )
    parts = _windows((3 * rows[:, None] + columns)[None, ..., None], window)
    return np.where(parts == parts.swapaxes(1, 2), 0, _FORBIDDEN).astype(np.float32)


class WindowBlock(Block):
    """A Transformer's block whose tokens, in rows and columns, see those of their window alone.

    Attributes:
      window: rows and columns of a window; a map with fewer has windows as it is.
      shifted: whether the windows lie half a window further down and to the right.
    """

    window: int = 7
    shifted: bool = False

    def mix(self, x: Array) -> Array:
        """Attention within windows, [N, H, W, D] -> the same; called within `__call__`."""
        size = x.shape[1:3]
        window = tuple(min(self.window, side) for side in size)
        shift = [self.window // 2 if self.shifted and n > self.window else 0 for n in size]
        moved = jnp.roll(x, [-n for n in shift], axis=(1, 2))
        beyond = [(0, -n % side) for n, side in zip(size, window, strict=True)]
        padded = jnp.pad(moved, ((0, 0), *beyond, (0, 0)))
        qkv = self.dense("qkv", _windows(padded, window), 3 * x.shape[-1])
        bias = self._position_bias(window)
        if any(shift):
            apart = _forbid(padded.shape[1:3], window, shift)
            bias = jnp.broadcast_to(bias + apart[:, None], (x.shape[0], len(apart), *bias.shape))
            bias = bias.reshape(-1, *bias.shape[2:])
        y = self.dense("out", attend(qkv, self.heads, bias), x.shape[-1])
        y = _map(y, window, padded.shape)[:, : size[0], : size[1]]
        return jnp.roll(y, shift, axis=(1, 2))

    def _position_bias(self, window: tuple[int, int]) -> Array:
        """What a score gains by how far, down and right, one token lies from another."""
        shape = (*(2 * side - 1 for side in window), self.heads)
        if self.has_variable("params", "position_bias"):
            known = np.shape(self.get_variable("params", "position_bias"))
            if known != shape:
                raise InputError(
                    f"pictures have windows of {window[0]}x{window[1]} at {'/'.join(self.path)}; "
                    f"these weights are of {(known[0] + 1) // 2}x{(known[1] + 1) // 2}"
                )
        table = self.param("position_bias", nn.initializers.truncated_normal(0.02), shape)
        places = np.indices(window).reshape(2, -1)
        down, right = places[:, :, None] - places[:, None] + np.array(window)[:, None, None] - 1
        return table[down, right].transpose(2, 0, 1)


def _merge(x: Array, number: int, dtype: jnp.dtype) -> Array:
    """Four patches become one of twice the width; called within a `__call__`."""
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    n, height, width, size = x.shape
    x = x.reshape(n, height // 2, 2, width // 2, 2, size).transpose(0, 1, 3, 4, 2, 5)
    x = _norm(dtype, f"merge{number}_norm")(x.reshape(n, height // 2, width // 2, 4 * size))
    settings = {"use_bias": False, "dtype": dtype, "dot_general": dot_general}
    return nn.Dense(2 * size, name=f"merge{number}_reduction", **settings)(x)


def _norm(dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(1e-5, dtype=dtype, name=name)


class LastStage(nn.Module):
    """Another copy of the last stage and the LayerNorm after it, with parameters of its own.

    Attributes:
      model: the network; its fields say what the stage is.
    """

    model: "Model"

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """[N, H, W, D], such as the stage before the last one -> [N, h, w, 2 D] float32."""
        return _norm(jnp.float32, "norm")(self.model.stage(len(self.model.sizes()), x, train))


class Model(nn.Module):
    """RGB crops in [0, 1] -> maps of patches, their mean, and the logits of linear heads.

    Attributes:
      size: the width of the first stage, its heads, and blocks of each stage: "tiny" 96, 3 and 2,
        2, 6, 2; "small" 96, 3 and 2, 2, 18, 2; "base" 128, 4 and the same. Each stage has twice the
        width and the heads of the one before.
      depths: blocks of each stage, where they are others than those of the size; () are those.
      window: rows and columns of a window, in patches. A map with fewer has windows as it is, whose
        biases of positions are interpolated between the published ones.
      classes: output name -> number of classes; each gets a linear head. Published weights have the
        head "imagenet" with 1000 classes.
      pooling: how the map becomes the feature: "average", "max" or "gem".
      drop_path: the chance that a picture passes by a residual of the last block in training
        (stochastic depth, Huang et al. 2016); those before have less, the first one 0.
      dtype: dtype of the computation; parameters are float32.
    """

    size: Literal["tiny", "small", "base"] = "tiny"
    depths: tuple[Annotated[int, Range(1, 100)], ...] = ()
    window: Annotated[int, Range(1, 100)] = 7
    classes: Mapping[str, Classes] | None = None
    pooling: str = "average"
    drop_path: FractionBelow1 = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> Outputs:
        """Computes the maps, the feature and logits.

        Args:
          image: RGB crops, [N, H, W, 3] float32 in [0, 1]; H and W are multiples of 4.
          train: whether pictures pass by residuals, see `drop_path`.

        Returns:
          See `heads.pool_and_classify`: "stage1", "stage2", ... are the maps of the stages, and
          "map" that of the last one after the LayerNorm.

        Raises:
          InputError: the picture's sides are no multiples of 4, its windows are not of the size
            that the parameters were made for, or there is no such pooling.
        """
        checks.check_divides(image.shape[1:3], (_PATCH, _PATCH), "patches of 'swin' are 4x4")
        x = layers.normalize(image, layers.IMAGENET).astype(self.dtype)
        width = _WIDTHS[self.size][0]
        settings = {"padding": 0, "bias": True, "dtype": self.dtype}
        x = layers.conv(width, _PATCH, _PATCH, **settings, name="patch_embed")(x)
        x, stages = _norm(self.dtype, "norm_patches")(x), []
        for number in range(1, len(self.sizes()) + 1):
            x = self.stage(number, x, train)
            stages.append(x)
        last = _norm(jnp.float32, "norm")(x)
        return classify([*stages, last], pool(last, self.pooling), self.classes or {})

    @nn.nowrap
    def sizes(self) -> tuple[int, ...]:
        """The number of blocks of each stage."""
        return self.depths or _DEPTHS[self.size]

    @nn.nowrap
    def stage(self, number: int, x: Array, train: bool) -> Array:
        """Applies a stage; called within a `__call__`, in which its modules are made.

        A training step with `remat` computes each block again on its own, when its gradients are
        due.

        Args:
          number: counted from 1.
          x: the map of the stage before, [N, H, W, D].
          train: whether pictures pass by residuals.
        """
        if number > 1:
            x = _merge(x, number, self.dtype)
        depths, heads = self.sizes(), _WIDTHS[self.size][1] * 2 ** (number - 1)
        make = nn.remat(WindowBlock, static_argnums=(2,)) if remat.is_asked() else WindowBlock
        for at in range(depths[number - 1]):
            rate = self.drop_path * (sum(depths[: number - 1]) + at) / max(sum(depths) - 1, 1)
            block = make(
                *(heads, exact_gelu, 1e-5, False, rate, 0, self.dtype),
                window=self.window,
                shifted=at % 2 == 1,
                name=f"stage{number}_block{at}",
            )
            x = remat.keep(block(x, train))
        return x

    @nn.nowrap
    def last_stage(self, name: str) -> LastStage:
        """Makes another copy of the last stage and LayerNorm, for a part model's `__call__`.

        Args:
          name: the copy's name, under which its parameters are kept.
        """
        return LastStage(self.clone(parent=None), name=name)
