"""Layers that several models share."""

import flax.linen as nn
import jax.numpy as jnp

from market_jax.typing import Array


def batch_norm(train: bool, **kwargs) -> nn.BatchNorm:
    """BatchNorm with PyTorch's defaults (running average 0.9 of the old, epsilon 1e-5).

    Its statistics are those of the whole batch, over all devices, because the training step
    is one program over a sharded batch.
    """
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, **kwargs)


def _windows(x: Array, window: tuple[int, int]) -> Array:
    n, h, w, c = x.shape
    p, q = window
    x = x[:, : h // p * p, : w // q * q]
    return x.reshape(n, h // p, p, w // q, q, c)


def max_pool(x: Array, window: tuple[int, int]) -> Array:
    """Maximum over windows that do not overlap: [N, H, W, C] -> [N, H//p, W//q, C].

    Rows and columns that do not fill a window are left out, as PyTorch does. Tied maxima
    share the gradient.
    """
    return _windows(x, window).max(axis=(2, 4))


def mean_pool(x: Array, window: tuple[int, int]) -> Array:
    """Mean over windows that do not overlap: [N, H, W, C] -> [N, H//p, W//q, C]."""
    return jnp.mean(_windows(x, window), axis=(2, 4))
