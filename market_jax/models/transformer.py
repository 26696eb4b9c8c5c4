"""Blocks of a Transformer that reads pictures, and small matrices added to them (LoRA)."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from market_jax.kernels.dense import dot_general
from market_jax.typing import Array


def quick_gelu(x: Array) -> Array:
    """An approximation of GELU, x * sigmoid(1.702 x), which CLIP was trained with."""
    return x * nn.sigmoid(1.702 * x)


def exact_gelu(x: Array) -> Array:
    """GELU without an approximation (Hendrycks & Gimpel 2016)."""
    return nn.gelu(x, approximate=False)


_dense_init = nn.initializers.truncated_normal(0.02)


class LoRA(nn.Module):
    """A product of two small matrices, which begins as 0 (Hu et al. 2021, with alpha = rank).

    Attributes:
      features: columns of the second matrix.
      rank: columns of the first one.
      dtype: dtype of the computation; parameters are float32.
    """

    features: int
    rank: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., C] -> [..., features], for a dense layer's output to be added to."""
        down = self.param("down", nn.initializers.he_uniform(), (x.shape[-1], self.rank))
        up = self.param("up", nn.initializers.zeros, (self.rank, self.features))
        return x.astype(self.dtype) @ down.astype(self.dtype) @ up.astype(self.dtype)


def attend(qkv: Array, heads: int, bias: Array | float = 0.0) -> Array:
    """Attention of each token to all (Vaswani et al. 2017); the softmax is float32.

    On a CPU the heads are moved before the products, which are then 1.3 times as fast as those of
    `jax.nn.dot_product_attention`.

    Args:
      qkv: queries, keys and values of all heads side by side, [N, T, 3 * D].
      heads: the number of heads.
      bias: added to the scores before the softmax, [N, heads, T, T] or what broadcasts to it.

    Returns:
      [N, T, D].
    """
    n, t, _ = qkv.shape
    q, k, v = qkv.reshape(n, t, 3, heads, -1).transpose(2, 0, 3, 1, 4)
    scores = jnp.einsum("nhqd,nhkd->nhqk", q * q.shape[-1] ** -0.5, k)
    shares = jax.nn.softmax(scores.astype(jnp.float32) + bias).astype(v.dtype)
    return jnp.einsum("nhqk,nhkd->nhqd", shares, v).transpose(0, 2, 1, 3).reshape(n, t, -1)


class Block(nn.Module):
    """Attention, then two dense layers, each after a LayerNorm and added to what it reads.

    Attributes:
      heads: the number of heads, which divides the width.
      activation: between the dense layers.
      epsilon: what LayerNorm adds to the variance.
      layer_scale: whether each channel of what is added is scaled (Touvron et al. 2021).
      drop_path: the chance that a picture passes by either of the two in training.
      lora_rank: of the matrices that are added to those of the attention; 0 has none.
      dtype: dtype of the computation; parameters are float32.
    """

    heads: int
    activation: Callable = exact_gelu
    epsilon: float = 1e-6
    layer_scale: bool = False
    drop_path: float = 0.0
    lora_rank: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[N, ..., D] -> the same; `train` says whether pictures pass by."""
        width = x.shape[-1]
        x = x + self._residual(self.mix(self._norm("norm1")(x)), 1, train)
        y = self.dense("fc1", self._norm("norm2")(x), 4 * width)
        y = self.dense("fc2", self.activation(y), width)
        return x + self._residual(y, 2, train)

    def mix(self, x: Array) -> Array:
        """Attention among tokens, [N, T, D] -> the same; called within `__call__`."""
        y = attend(self.dense("qkv", x, 3 * x.shape[-1]), self.heads)
        return self.dense("out", y, x.shape[-1])

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(self.epsilon, dtype=self.dtype, name=name)

    def dense(self, name: str, x: Array, features: int) -> Array:
        """Applies a dense layer, with LoRA where there is some; called within `__call__`.

        Args:
          name: of the layer.
          x: [..., D].
          features: the layer's outputs.
        """
        settings = {"dtype": self.dtype, "kernel_init": _dense_init, "dot_general": dot_general}
        y = nn.Dense(features, name=name, **settings)(x)
        if self.lora_rank and name in ("qkv", "out"):
            y = y + LoRA(features, self.lora_rank, self.dtype, name=f"{name}_lora")(x)
        return y

    def _residual(self, y: Array, number: int, train: bool) -> Array:
        if self.layer_scale:
            init = nn.initializers.constant(1e-5)
            y = y * self.param(f"gamma{number}", init, y.shape[-1:]).astype(self.dtype)
        axes = tuple(range(1, y.ndim))
        return nn.Dropout(self.drop_path, broadcast_dims=axes, deterministic=not train)(y)


def only_lora_learns(params: Mapping) -> Mapping:
    """Parameters through which no gradient goes, but for those of `LoRA`."""

    def stop(path, leaf):
        inside = any(str(key.key).endswith("_lora") for key in path)
        return leaf if inside else jax.lax.stop_gradient(leaf)

    return jax.tree_util.tree_map_with_path(stop, params)
