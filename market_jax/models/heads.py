"""Heads: pooled features [N, D] -> logits."""

import flax.linen as nn
import jax.numpy as jnp

from market_jax.typing import Array


class DenseHead(nn.Module):
    """Two dense layers, LeakyReLU and dropout between them: [N, D] -> [N, classes] logits."""

    classes: int
    width: int = 64
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = nn.leaky_relu(nn.Dense(self.width, dtype=self.dtype)(x), 0.01)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes, dtype=self.dtype)(x).astype(jnp.float32)
