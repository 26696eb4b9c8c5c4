"""Rematerialisation: what a training step keeps for its backward pass, and what it computes again.

A step with `remat` keeps what is marked by `keep`: convolutions' outputs, whose norms and
activations are cheap. Between two of them all is computed again, at once. Where that is much, as in
the blocks of a Transformer, a model has each block computed again on its own, when the backward
pass gets there (`backbones.vit.Model.block`).
"""

import contextvars
import functools
from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

_KEPT = "kept"
_asked = contextvars.ContextVar("asked", default=False)
keep = functools.partial(checkpoint_name, name=_KEPT)


def rematerialised(forward: Callable) -> Callable:
    """A function of which the backward pass has what `keep` marks, and computes the rest again.

    Args:
      forward: a function of arrays, which is traced at once when it is called.
    """
    kept = jax.checkpoint(forward, policy=jax.checkpoint_policies.save_only_these_names(_KEPT))

    def run(*args):
        token = _asked.set(True)
        try:
            return kept(*args)
        finally:
            _asked.reset(token)

    return run


def is_asked() -> bool:
    """Whether what is traced is within a function that is `rematerialised`."""
    return _asked.get()
