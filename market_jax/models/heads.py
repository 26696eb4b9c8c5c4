"""Heads: pooled features [N, D] -> logits."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from market_jax.typing import Array, Outputs


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


def pool_and_classify(x: Array, classes: Mapping[str, int]) -> Outputs:
    """A backbone's outputs; called within its `__call__`.

    Args:
      x: [N, H, W, D], its last map.
      classes: output name -> number of classes; each gets a linear head named after it.

    Returns:
      {"map": x, "embedding": [N, D] its mean over the map, name: [N, K] logits, ...}, float32.
    """
    x = x.astype(jnp.float32)
    embedding = jnp.mean(x, axis=(1, 2))
    logits = {name: nn.Dense(k, name=f"head_{name}")(embedding) for name, k in classes.items()}
    return {"map": x, "embedding": embedding} | logits
