"""Terms of autoencoders: (context, *, ...) -> (values [N], weights [N])."""

import jax.numpy as jnp

from market_jax.losses.context import Context
from market_jax.registry import choose
from market_jax.typing import Array, Outputs

__all__ = ["kl", "mmd", "squared_error"]

Values = tuple[Array, Array]


def squared_error(context: Context, *, reduce: str) -> Values:
    """Squared error between the outputs "reconstruction" and "target", both [N, H, W, C].

    Args:
      context: the batch, and the model's outputs for it.
      reduce: "sum" or "mean" over pixels and channels. Beside a KL term use the sum: a mean is too
        small against it.

    Raises:
      InputError: `reduce` is neither.
    """
    total = choose(reduce, {"sum": jnp.sum, "mean": jnp.mean}, "reduction")
    gap = context.outputs["reconstruction"] - context.outputs["target"]
    values = total(jnp.square(gap), axis=(1, 2, 3))
    return values, jnp.ones(len(values))


def kl_of_dimensions(outputs: Outputs) -> Array:
    """`kl` of each latent dimension: [N, D] nats.

    Args:
      outputs: the model's outputs, with "mean" and "logvar" [N, D].
    """
    mean, logvar = outputs["mean"], outputs["logvar"]
    return 0.5 * (jnp.exp(logvar) + jnp.square(mean) - 1.0 - logvar)


def kl(context: Context) -> Values:
    """KL divergence, in nats, of the posterior from the standard normal.

    Args:
      context: the batch, and the model's outputs for it, with "mean" and "logvar" [N, D].
    """
    values = jnp.sum(kl_of_dimensions(context.outputs), axis=1)
    return values, jnp.ones(len(values))


def mmd(context: Context) -> Values:
    """Squared maximum mean discrepancy of the batch's posterior from the standard normal.

    The kernel is exp(-|x - y|^2 / 2D). Its expectations over the posteriors and over the prior have
    a closed form, so that nothing is drawn (InfoVAE: Zhao, Song, Ermon 2019). The number is the
    same for every image; it is unbiased, so that it can be below 0.

    Args:
      context: the batch, and the model's outputs for it, with "mean" and "logvar" [N, D].
    """
    outputs, mask = context.outputs, context.batch["mask"].astype(jnp.float32)
    real = mask[:, None] > 0  # padding may hold anything, and 0 times NaN is NaN
    mean = jnp.where(real, outputs["mean"], 0.0)
    variance = jnp.exp(jnp.where(real, outputs["logvar"], 0.0))
    width = float(mean.shape[1])

    def kernel(gap, spread):
        """E exp(-|x - y|^2 / 2D), where x - y is normal with this mean and variance."""
        ratio = width / (width + spread)
        return jnp.exp(0.5 * jnp.sum(jnp.log(ratio) - jnp.square(gap) / (width + spread), axis=-1))

    pairs = mask[:, None] * mask * (1 - jnp.eye(len(mean)))
    among = kernel(mean[:, None] - mean, variance[:, None] + variance) * pairs
    across = kernel(mean, variance + 1.0) * mask
    prior = (width / (width + 2.0)) ** (width / 2)
    count = jnp.sum(mask)
    value = jnp.sum(among) / jnp.maximum(jnp.sum(pairs), 1.0)
    value += prior - 2 * jnp.sum(across) / jnp.maximum(count, 1.0)
    return jnp.full(len(mean), jnp.where(count > 1, value, 0.0)), jnp.ones(len(mean))
