"""Loss terms: (outputs, batch, **kw) -> a value per image [N]. `weighted_sum` reduces once.

A term with weight 0 is only reported.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from market_jax.errors import InputError
from market_jax.registry import choose
from market_jax.retrieval.triplets import hardest, squared_distances
from market_jax.typing import Array, Batch, Outputs

__all__ = [
    "cross_entropy",
    "cross_entropies",
    "uncertain_cross_entropies",
    "accuracy",
    "triplet",
    "squared_error",
    "kl",
    "mmd",
    "active_dimensions",
]

# the term, its keywords bound; its weight; in training a factor of the weight: step -> [0, 1]
Term = tuple[Callable[[Outputs, Batch], Array], float, Callable[[Array], Array] | None]


def cross_entropy(
    outputs: Outputs, batch: Batch, *, key: str, label_smoothing: float = 0.0
) -> Array:
    """Softmax cross-entropy in nats of `outputs[key]` [N, K] against `batch[key]` int [N].

    An unknown label (below 0) costs nothing.
    """
    logits, labels = outputs[key], batch[key]
    targets = jnp.eye(logits.shape[-1])[jnp.maximum(labels, 0)]
    targets = optax.smooth_labels(targets, label_smoothing)
    return jnp.where(labels >= 0, optax.softmax_cross_entropy(logits, targets), 0.0)


def cross_entropies(outputs: Outputs, batch: Batch, *, keys: tuple[str, ...]) -> Array:
    """The mean of the named classifications' `cross_entropy`, [N]."""
    return sum(cross_entropy(outputs, batch, key=key) for key in keys) / len(keys)


def uncertain_cross_entropies(
    outputs: Outputs, batch: Batch, *, keys: tuple[str, ...], group: str
) -> Array:
    """`cross_entropies` over a variance that is learned, and its price: exp(-s) x + s / 2, [N].

    s is `outputs["log_variance_<group>"]` (Kendall, Gal & Cipolla 2018, for classification).
    """
    s = outputs[f"log_variance_{group}"]
    return jnp.exp(-s) * cross_entropies(outputs, batch, keys=keys) + 0.5 * s


def accuracy(outputs: Outputs, batch: Batch, *, keys: tuple[str, ...]) -> Array:
    """Share of the named classifications that are right, [N]; to be reported, not minimised."""
    right = [jnp.argmax(outputs[key], axis=-1) == batch[key] for key in keys]
    return jnp.mean(jnp.stack(right).astype(jnp.float32), axis=0)


def triplet(outputs: Outputs, batch: Batch, *, key: str = "feature", margin: float = 0.3) -> Array:
    """Batch-hard triplet loss of the Euclidean distances between `outputs[key]` [N, D], [N].

    For every image the farthest of the same person ("pid") and the nearest of another in the batch
    (Hermans, Beyer & Leibe 2017), as distances; 0 where it has none of either.

    Args:
      outputs: of the model.
      batch: with "pid" and "mask".
      key: of the features.
      margin: by which the other should be farther; 0 is the soft margin, log(1 + exp(x)).
    """
    features = outputs[key].astype(jnp.float32)
    pids = jnp.where(batch["mask"], batch["pid"], 0)
    # the floor bounds the root's gradient
    farthest, nearest = hardest(jnp.sqrt(jnp.maximum(squared_distances(features), 1e-12)), pids)
    known = (pids > 0) & jnp.isfinite(farthest) & jnp.isfinite(nearest)
    gap = jnp.where(known, farthest - nearest, 0.0)
    value = jnp.maximum(gap + margin, 0) if margin else jax.nn.softplus(gap)
    return jnp.where(known, value, 0.0)


def squared_error(outputs: Outputs, batch: Batch, *, reduce: str) -> Array:
    """Of "reconstruction" against "target", both [N, H, W, C].

    Args:
      outputs: of the model.
      batch: not used.
      reduce: "sum" or "mean", over pixels and channels. A KL term beside a mean drowns it: there
        it takes the sum.
    """
    total = choose(reduce, {"sum": jnp.sum, "mean": jnp.mean}, "reduction")
    return total(jnp.square(outputs["reconstruction"] - outputs["target"]), axis=(1, 2, 3))


def kl_of_dimensions(outputs: Outputs) -> Array:
    """`kl` of each latent dimension: [N, D] nats."""
    mean, logvar = outputs["mean"], outputs["logvar"]
    return 0.5 * (jnp.exp(logvar) + jnp.square(mean) - 1.0 - logvar)


def kl(outputs: Outputs, batch: Batch) -> Array:
    """Divergence in nats of the Gaussian "mean", "logvar" [N, D] from the standard normal."""
    return jnp.sum(kl_of_dimensions(outputs), axis=1)


def active_dimensions(outputs: Outputs, batch: Batch, *, threshold: float = 0.01) -> Array:
    """Latent dimensions whose mean varies over the batch by more than the threshold, [N].

    The same number for every image. None is active where the posterior has collapsed (Burda et
    al. 2016).
    """
    mask = batch["mask"].astype(jnp.float32)[:, None]
    count, mean = jnp.maximum(jnp.sum(mask), 1.0), outputs["mean"]
    center = jnp.sum(mean * mask, axis=0) / count
    variance = jnp.sum(jnp.square(mean - center) * mask, axis=0) / count
    active = jnp.sum((variance > threshold).astype(jnp.float32))
    return jnp.full(len(mean), active)


def mmd(outputs: Outputs, batch: Batch) -> Array:
    """Squared maximum mean discrepancy of the batch's posterior from the standard normal, [N].

    The kernel is exp(-|x - y|^2 / 2D). Its expectations over the Gaussians "mean", "logvar"
    [N, D] and over the prior are taken in closed form, so that nothing is drawn (InfoVAE: Zhao,
    Song, Ermon 2019). The same number for every image; without bias, so that it may be below 0.
    """
    mean, variance = outputs["mean"], jnp.exp(outputs["logvar"])
    mask = batch["mask"].astype(jnp.float32)
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
    return jnp.full(len(mean), jnp.where(count > 1, value, 0.0))


def anneal(
    name: str, *, total_steps: int, share: float = 0.5, cycles: int = 4
) -> Callable[[Array], Array]:
    """A factor that grows from 0 to 1 with the step: step -> factor.

    Args:
      name: "linear", "logistic" (Bowman et al. 2016: one half in the middle of the rise) or
        "cyclical" (Fu et al. 2019: a linear rise at the beginning of each cycle).
      total_steps: of the training.
      share: of the training, or of each cycle, in which it grows; 0 is the whole weight at once.
      cycles: of "cyclical".

    Raises:
      InputError: the name is unknown, share outside [0, 1], or cycles below 1.
    """
    if not 0 <= share <= 1:
        raise InputError(f"the annealing's share is {share}; it must be 0 to 1")
    if cycles < 1:
        raise InputError(f"the annealing's cycles is {cycles}; it must be 1 or more")

    def linear(t):
        return t / share

    def logistic(t):
        return 1 / (1 + jnp.exp(-10 * (2 * t / share - 1)))

    def cyclical(t):
        return t * cycles % 1.0 / share

    known = {"linear": linear, "logistic": logistic, "cyclical": cyclical}
    rise = choose(name, known, "annealing")

    def at(step):
        if share == 0:
            return jnp.ones(())
        return jnp.clip(rise(step / max(total_steps, 1)), 0.0, 1.0)

    return at


def weighted_sum(
    terms: Mapping[str, Term], outputs: Outputs, batch: Batch
) -> tuple[Array, dict[str, Array]]:
    """Reduces every term to its mean over the images that are not padding, and adds them up.

    Args:
      terms: name -> (term, weight, factor or None).
      outputs: of the model.
      batch: with "mask" bool [N]; in training also "step" int32 [N], the same in every row,
        without which no factor is applied.

    Returns:
      (the loss, {"loss": ..., "loss/<name>": ... for a term with a weight,
      "<name>": ... for one without}), all scalars.
    """
    mask = batch["mask"].astype(jnp.float32)
    count = jnp.maximum(jnp.sum(mask), 1.0)
    total, metrics = jnp.zeros(()), {}
    for name, (term, weight, factor) in terms.items():
        mean = jnp.sum(term(outputs, batch) * mask) / count
        scale = factor(batch["step"][0]) if factor and "step" in batch else 1.0
        total += scale * weight * mean
        metrics[f"loss/{name}" if weight else name] = mean
    return total, {"loss": total} | metrics
