"""Terms of autoencoders: (context, *, ...) -> (values [N], weights [N])."""

import jax.numpy as jnp

from market_jax.losses.context import Context
from market_jax.registry import choose
from market_jax.typing import Array, Outputs

__all__ = ["kl", "mmd", "squared_error"]

Values = tuple[Array, Array]


def squared_error(context: Context, *, reduce: str) -> Values:
    """Of the output "reconstruction" against "target", both [N, H, W, C].

    Args:
      context: of the batch.
      reduce: "sum" or "mean", over pixels and channels. A KL term beside a mean drowns it: there
        it takes the sum.

    Raises:
      InputError: reduce is neither.
    """
    total = choose(reduce, {"sum": jnp.sum, "mean": jnp.mean}, "reduction")
    gap = context.outputs["reconstruction"] - context.outputs["target"]
    values = total(jnp.square(gap), axis=(1, 2, 3))
    return values, jnp.ones(len(values))


def kl_of_dimensions(outputs: Outputs) -> Array:
    """`kl` of each latent dimension: [N, D] nats.

    Args:
      outputs: "mean" and "logvar" [N, D].
    """
    mean, logvar = outputs["mean"], outputs["logvar"]
    return 0.5 * (jnp.exp(logvar) + jnp.square(mean) - 1.0 - logvar)


def kl(context: Context) -> Values:
    """Divergence in nats of the Gaussian "mean", "logvar" [N, D] from the standard normal.

    Args:
      context: of the batch.
    """
    values = jnp.sum(kl_of_dimensions(context.outputs), axis=1)
    return values, jnp.ones(len(values))


def mmd(context: Context) -> Values:
    """Squared maximum mean discrepancy of the batch's posterior from the standard normal.

    The kernel is exp(-|x - y|^2 / 2D). Its expectations over the Gaussians "mean", "logvar"
    [N, D] and over the prior are taken in closed form, so that nothing is drawn (InfoVAE: Zhao,
    Song, Ermon 2019). The same number for every image; without bias, so that it may be below 0.

    Args:
      context: of the batch.
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
