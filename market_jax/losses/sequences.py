"""Terms for sequences: (context, *, ...) -> (values [N], weights [N])."""

import jax.numpy as jnp
import numpy as np
import optax

from market_jax.errors import InputError
from market_jax.losses.context import Context
from market_jax.typing import Array

__all__ = ["ctc"]


def ctc(
    context: Context, *, labels: tuple[str, ...], logits: str = "sequence"
) -> tuple[Array, Array]:
    """The CTC loss of a sequence that tells several attributes in order (Graves et al. 2006).

    Each class of each attribute is a token of its own. Attributes that are not known are left out
    of what should be told.

    Args:
      context: the batch, and the model's outputs for it.
      labels: the columns with the classes int [N], below 0 where unknown, in the order of the
        model's tokens (`jcm`: `model.order`); each is also an output of the model [N, K], whose
        number of classes counts.
      logits: the name of the output [N, T, 1 + the sum of all classes], "nothing" first.

    Returns:
      -log of the probability of what should be told, over the number of attributes that are known,
      in nats [N]; and weights [N], 1 where one is known.

    Raises:
      InputError: the sequence is shorter than the labels, or has another number of tokens.
    """
    scores = context.outputs[logits]
    sizes = [context.outputs[name].shape[-1] for name in labels]
    length, tokens = scores.shape[1:]
    if length < len(labels) or tokens != 1 + sum(sizes):
        raise InputError(
            f"the output {logits!r} has {length} places and {tokens} tokens; {len(labels)} labels "
            f"need at least as many places, and {1 + sum(sizes)} tokens"
        )
    firsts = 1 + np.cumsum([0, *sizes[:-1]])
    classes = jnp.stack([context.batch[name] for name in labels], axis=1)
    unknown = classes < 0
    order = jnp.argsort(unknown, axis=1, stable=True)  # those that are known come first
    told = jnp.take_along_axis(jnp.where(unknown, 0, firsts + classes), order, axis=1)
    left_out = jnp.take_along_axis(unknown, order, axis=1).astype(jnp.float32)
    values = optax.ctc_loss(scores, jnp.zeros(scores.shape[:2]), told, left_out)
    count = jnp.sum(~unknown, axis=1)
    values = jnp.where(count > 0, values / jnp.maximum(count, 1), 0.0)
    return values, (count > 0).astype(jnp.float32)
