"""Vision Transformers (Dosovitskiy et al. 2021): patches as tokens, as timm builds them.

Families of published weights differ in the patch, the normalisation of pixels and a few layers:
augreg's (Steiner et al. 2022) and DeiT's (Touvron et al. 2021), DINOv2's (Oquab et al. 2024) with
registers (Darcet et al. 2024), and the visual tower of CLIP (Radford et al. 2021).
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from market_jax.errors import InputError
from market_jax.kernels import remat
from market_jax.models import checks, layers
from market_jax.models.heads import classify, pool
from market_jax.models.transformer import Block, exact_gelu, only_lora_learns, quick_gelu
from market_jax.typing import (
    Array,
    Classes,
    FractionBelow1,
    NonNegativeInt,
    Outputs,
    PositiveInt,
    Range,
    WidthOrNone,
)
from market_jax.weights import positions

_CAMERA_WEIGHT = 3.0  # TransReID's lambda
_SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}  # -> width, heads


class Family(NamedTuple):
    """What networks with one origin have in common.

    Attributes:
      patch: rows and columns of a patch, in pixels.
      pixels: mean and deviation that pixels are normalised with.
      activation: between the dense layers of a block.
      epsilon: what LayerNorm adds to the variance.
      layer_scale: whether each channel of a residual is scaled (Touvron et al. 2021).
      pre_norm: whether a LayerNorm precedes the blocks, and the patches have no bias.
    """

    patch: int
    pixels: tuple
    activation: Callable
    epsilon: float = 1e-6
    layer_scale: bool = False
    pre_norm: bool = False


FAMILIES = {
    "augreg": Family(16, layers.HALF, exact_gelu),
    "deit": Family(16, layers.IMAGENET, exact_gelu),
    "dinov2": Family(14, layers.IMAGENET, exact_gelu, layer_scale=True),
    "clip": Family(16, layers.CLIP, quick_gelu, 1e-5, pre_norm=True),
    "openclip": Family(16, layers.CLIP, exact_gelu, 1e-5, pre_norm=True),
}

_TIMM = (
    (r"^patch_embed$", "patch_embed.proj"),
    (r"^block(\d+)\.", r"blocks.\1."),
    (r"\.qkv$", ".attn.qkv"),
    (r"\.out$", ".attn.proj"),
    (r"\.(fc\d)$", r".mlp.\1"),
    (r"\.gamma(\d)$", r".ls\1.gamma"),
    (r"^class_position$", "pos_embed"),
    (r"^camera_embed$", "sie_embed"),  # TransReID's, of which timm knows nothing
    (r"^projection$", "head.weight"),
    (r"^head_imagenet", "head"),
)
_LAST = 11  # number of the last block of networks that TransReID has published
TORCH_NAMES = {
    "timm": _TIMM,
    # the last block is there twice, for the whole picture and the jigsaw, and a third time, unused
    "TransReID": (
        (r"^branch_jigsaw\.block\d+\.", "b2.0."),
        (r"^branch_jigsaw\.norm$", "b2.1"),
        (rf"^block{_LAST}\.", "b1.0."),
        (r"^norm$", "b1.1"),
        *_TIMM,
        (r"^bnneck_global$", "bottleneck"),
        (r"^bnneck_jigsaw(\d)$", r"bottleneck_\1"),
        (r"^(?!b[12]\.|bottleneck)", "base."),
    ),
    "DINOv2": (*_TIMM, (r"^reg_token$", "register_tokens")),
    "CLIP": (
        (r"^patch_embed$", "conv1"),
        (r"^cls_token$", "class_embedding"),
        (r"^(pos_embed|class_position)$", "positional_embedding"),
        (r"^norm_pre$", "ln_pre"),
        (r"^norm$", "ln_post"),
        (r"^block(\d+)\.", r"transformer.resblocks.\1."),
        (r"\.qkv$", ".attn.in_proj_"),
        (r"\.out$", ".attn.out_proj"),
        (r"\.norm(\d)$", r".ln_\1"),
        (r"\.fc1$", ".mlp.c_fc"),
        (r"\.fc2$", ".mlp.c_proj"),
        (r"^projection$", "proj"),
    ),
}
TORCH_VALUES = {
    "cls_token": positions.class_token,
    "reg_token": positions.tokens,
    "class_position": positions.class_position,
    "pos_embed": positions.grid,
    "camera_embed": positions.tokens,
    "projection": lambda tensors, name, shape: (
        tensors[name].T if name.endswith("weight") else tensors[name]
    ),
}
to_torch = positions.join


def _last_norm(family: Family) -> nn.LayerNorm:
    return nn.LayerNorm(family.epsilon, dtype=jnp.float32, name="norm")


class LastStage(nn.Module):
    """Another copy of the last block and the LayerNorm after it, with parameters of its own.

    Attributes:
      model: the network; its fields say what the block is.
    """

    model: "Model"

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Applies the block to tokens that lie in rows and columns.

        Args:
          x: [N, H, W, D] such as a stage; every place is a token. The class token is not among
            them, unless the caller puts it there.
          train: whether pictures pass by the block, see `Model.drop_path`.

        Returns:
          [N, H, W, D] float32.
        """
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        block = self.model.block(self.model.depth - 1, self.is_initializing())
        tokens = remat.keep(block(tokens, train))
        return _last_norm(FAMILIES[self.model.family])(tokens).reshape(x.shape)


class Model(nn.Module):
    """RGB crops in [0, 1] -> the tokens' map, the class token, and the logits of linear heads.

    A picture of another size than the parameters were made for has other positions, and is refused.

    Attributes:
      size: the width and the heads: "tiny" 192 and 3, "small" 384 and 6, "base" 768 and 12.
      depth: the number of blocks.
      family: where weights come from: "augreg" (pixels normalised by 0.5 and 0.5), "deit"
        (ImageNet's normalisation), "dinov2" (the same; patches of 14 pixels instead of 16,
        LayerScale), "clip" (CLIP's normalisation, a LayerNorm before the blocks, QuickGELU) or
        "openclip" (the same with GELU).
      registers: tokens beside the class token that stand for nothing (4 in DINOv2 with registers).
        With them the class token has no position, as in timm.
      patch_stride: pixels from one patch to the next; 0 is the size of a patch, and less overlaps
        (12 in TransReID, He et al. 2021).
      classes: output name -> number of classes; each gets a linear head. Published weights of
        augreg and DeiT have the head "imagenet" with 1000 classes.
      pooling: what the feature is, "class" for the class token, or how the map is pooled,
        "average", "max" or "gem".
      projection: to which width the feature is brought by a matrix (512 in CLIP's ViT-B/16, whose
        texts lie in the same space); 0 leaves it.
      drop_path: the chance that a picture passes by a residual of the last block in training
        (stochastic depth, Huang et al. 2016); those before have less, the first one 0.
      cameras: the numbers of the cameras, each of which has an embedding that is added to all
        tokens (SIE of TransReID), with a weight of 3; () has none. A picture of another camera, or
        of none that is known, has the mean of all.
      lora_rank: rank of matrices that are added to those of the attention (Hu et al. 2021), while
        all else here but the cameras' embeddings is not trained; 0 has none and trains all.
      dtype: dtype of the computation; parameters are float32.
    """

    size: Literal["tiny", "small", "base"] = "small"
    depth: PositiveInt = 12
    family: Literal["augreg", "deit", "dinov2", "clip", "openclip"] = "augreg"
    registers: Annotated[int, Range(0, 64)] = 0
    patch_stride: Annotated[int, Range(0, 256)] = 0
    classes: Mapping[str, Classes] | None = None
    pooling: str = "class"
    projection: WidthOrNone = 0
    drop_path: FractionBelow1 = 0.0
    cameras: tuple[NonNegativeInt, ...] = ()
    lora_rank: Annotated[int, Range(0, 256)] = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False, camera: Array | None = None) -> Outputs:
        """Computes the tokens, the feature and logits.

        Args:
          image: RGB crops, [N, H, W, 3] float32 in [0, 1].
          train: whether pictures pass by residuals, see `drop_path`.
          camera: the pictures' cameras, int [N]; None where no camera is known.

        Returns:
          See `heads.pool_and_classify`: "stage1", "stage2", ... are the patches' tokens after each
          block, [N, h, w, D], and "map" those after the last LayerNorm; with "prefix_tokens":
          [N, 1 + registers, D], the class token and the registers before the last block.

        Raises:
          InputError: the picture is smaller than a patch or not of the size that the parameters
            were made for, there is no such pooling, or in training embeddings of cameras are given
            no camera.
        """
        family, prefix = FAMILIES[self.family], 1 + self.registers
        x, shape = self._embed(image, family)
        x = jax.lax.stop_gradient(x) if self.lora_rank else x
        if self.cameras:
            x = x + self._embed_camera(camera, train, x.shape[-1]).astype(self.dtype)
        stages, before = [], x
        for number in range(self.depth):
            before, x = x, remat.keep(self.block(number, self.is_initializing())(x, train))
            stages.append(x[:, prefix:].reshape(shape))
        x = _last_norm(family)(x)
        last = x[:, prefix:].reshape(shape)
        feature = x[:, 0] if self.pooling == "class" else pool(last, self.pooling)
        if self.projection:
            init = nn.initializers.lecun_normal()
            feature = feature @ self.param("projection", init, (x.shape[-1], self.projection))
        outputs = classify([*stages, last], feature, self.classes or {})
        return outputs | {"prefix_tokens": before[:, :prefix]}

    def _embed(self, image: Array, family: Family) -> tuple[Array, tuple[int, ...]]:
        """Tokens with their positions, [N, 1 + registers + h * w, D]; (N, h, w, D)."""
        width, stride = _SIZES[self.size][0], self.patch_stride or family.patch
        checks.check_smallest(image.shape[1:3], family.patch)
        settings = {"padding": 0, "bias": not family.pre_norm, "dtype": self.dtype}
        x = layers.normalize(image, family.pixels).astype(self.dtype)
        x = layers.conv(width, family.patch, stride, **settings, name="patch_embed")(x)
        shape, init = x.shape, nn.initializers.truncated_normal(0.02)
        self._check_grid(shape[1:])
        x = x + self.param("pos_embed", init, shape[1:]).astype(self.dtype)
        first = self.param("cls_token", init, (1, width))
        if self.registers:
            first = jnp.concatenate([first, self.param("reg_token", init, (self.registers, width))])
        else:
            first = first + self.param("class_position", init, (1, width))
        first = jnp.broadcast_to(first.astype(self.dtype), (shape[0], *first.shape))
        x = jnp.concatenate([first, x.reshape(shape[0], -1, width)], axis=1)
        if family.pre_norm:
            x = nn.LayerNorm(family.epsilon, dtype=self.dtype, name="norm_pre")(x)
        return x, shape

    def _embed_camera(self, camera: Array | None, train: bool, width: int) -> Array:
        """What is added to all tokens of a picture, [N, 1, D] or, for all the same, [1, 1, D]."""
        if camera is None and train:
            raise InputError("this model does not tell its backbone 'vit' the cameras: cameras=()")
        init = nn.initializers.truncated_normal(0.02)
        table = self.param("camera_embed", init, (len(self.cameras), width))
        embedding = jnp.mean(table, axis=0, keepdims=True)
        if camera is not None:
            same = camera[:, None] == np.array(self.cameras)
            known = jnp.any(same, axis=1, keepdims=True)
            embedding = jnp.where(known, same.astype(table.dtype) @ table, embedding)
        return _CAMERA_WEIGHT * embedding[:, None]

    @nn.nowrap
    def inputs(self) -> tuple[str, ...]:
        """The columns that are taken beside the picture, see `models.inputs`."""
        return ("camera",) if self.cameras else ()

    def _check_grid(self, shape: tuple[int, ...]) -> None:
        """Refuses pictures with other patches than the parameters have positions for."""
        if self.has_variable("params", "pos_embed"):
            known = np.shape(self.get_variable("params", "pos_embed"))
            if known != shape:
                raise InputError(
                    f"pictures have {shape[0]}x{shape[1]} patches; these weights of backbone 'vit' "
                    f"have positions for {known[0]}x{known[1]}"
                )

    @nn.nowrap
    def block(self, number: int, initializing: bool) -> Block:
        """Makes a block, named "block<number>"; called within a `__call__`.

        A training step with `remat` computes each again on its own, when its gradients are due.

        Args:
          number: counted from 0.
          initializing: whether the caller's parameters are being made.
        """
        make = Block
        if self.lora_rank:
            make = nn.map_variables(Block, "params", only_lora_learns, init=initializing)
        rate = self.drop_path * number / max(self.depth - 1, 1)
        family = FAMILIES[self.family]
        style = (family.activation, family.epsilon, family.layer_scale)
        settings = (_SIZES[self.size][1], *style, rate, self.lora_rank, self.dtype)
        make = nn.remat(make, static_argnums=(2,)) if remat.is_asked() else make
        return make(*settings, name=f"block{number}")

    @nn.nowrap
    def last_stage(self, name: str) -> LastStage:
        """Makes another copy of the last block and LayerNorm, for a part model's `__call__`.

        It takes the stage before the last one and returns a map like "map", of patches that see
        each other and not the class token.

        Args:
          name: the copy's name, under which its parameters are kept.
        """
        return LastStage(self.clone(parent=None), name=name)

    @nn.nowrap
    def frozen_parameters(self) -> tuple[str, ...]:
        """Regular expressions for the paths of parameters that are never trained."""
        return (r"^(?!head_|camera|.*_lora/)",) if self.lora_rank else ()
