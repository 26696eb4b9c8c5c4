"""Terms for classifications: (context, *, ...) -> (values [N], weights [N]).

A row with an unknown label (below 0) has weight 0 and adds nothing to the loss.
"""

from collections.abc import Callable, Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax

from market_jax.errors import InputError
from market_jax.losses.context import Context
from market_jax.typing import (
    Array,
    Fraction,
    FractionBelow1,
    NonNegative,
    Positive,
    Range,
)

__all__ = [
    "circle_softmax",
    "cosine_softmax",
    "cross_entropies",
    "cross_entropy",
    "focal_cross_entropies",
    "weighted_cross_entropies",
]

Values = tuple[Array, Array]


def cross_entropy(
    context: Context, *, logits: str, labels: str = "", label_smoothing: FractionBelow1 = 0.0
) -> Values:
    """Softmax cross-entropy of an output [N, K] against a column int [N].

    Args:
      context: the batch, and the model's outputs for it.
      logits: the name of the model's output.
      labels: the name of the column with the labels; by default the same name.
      label_smoothing: the share of the target that is spread over all classes, from 0 to below 1.

    Returns:
      The cross-entropies in nats [N]; and weights [N], 1 where the label is known.
    """
    scores, truth = context.outputs[logits], context.batch[labels or logits]
    return _cross_entropy(scores, truth, label_smoothing)


def _cross_entropy(scores: Array, truth: Array, label_smoothing: float) -> Values:
    """`cross_entropy` of logits [N, K] against labels int [N]."""
    targets = optax.smooth_labels(_one_hot(scores, truth), label_smoothing)
    known = truth >= 0
    values = jnp.where(known, optax.softmax_cross_entropy(scores, targets), 0.0)
    return values, known.astype(jnp.float32)


def _one_hot(scores: Array, truth: Array) -> Array:
    """1 at the true class, else 0: [N, K]; an unknown label counts as class 0."""
    return jnp.eye(scores.shape[-1])[jnp.maximum(truth, 0)]


def cosine_softmax(
    context: Context,
    *,
    logits: str = "identity",
    labels: str = "",
    margin: Fraction = 0.0,
    scale: Positive = 30.0,
    label_smoothing: FractionBelow1 = 0.0,
) -> Values:
    """`cross_entropy` of cosines, from the true one of which a margin is taken.

    The logits are scale * (s - margin) for the true class and scale * s for the others (CosFace,
    Wang et al. 2018). Without a margin this is the normalised softmax.

    Args:
      context: the batch, and the model's outputs for it.
      logits: the name of the model's output with cosines s [N, K], -1 to 1.
      labels: the name of the column with the labels; by default the same name.
      margin: how much larger than the others the true cosine should be, 0 to 1.
      scale: what the cosines are multiplied by, above 0.
      label_smoothing: as for `cross_entropy`.
    """
    cosines, truth = context.outputs[logits], context.batch[labels or logits]
    scores = scale * (cosines - margin * _one_hot(cosines, truth))
    return _cross_entropy(scores, truth, label_smoothing)


def circle_softmax(
    context: Context,
    *,
    logits: str = "identity",
    labels: str = "",
    margin: Fraction = 0.35,
    scale: Positive = 64.0,
    label_smoothing: FractionBelow1 = 0.0,
) -> Values:
    """`cross_entropy` of cosines, of which those far from their optimum weigh more.

    With margin m, the logits are scale * max(1 + m - s, 0) * (s - 1 + m) for the true class and
    scale * max(s + m, 0) * (s - m) for the others; no gradient goes through the two weights
    (circle loss, Sun et al. 2020).

    Args:
      context: the batch, and the model's outputs for it.
      logits: the name of the model's output with cosines s [N, K], -1 to 1.
      labels: the name of the column with the labels; by default the same name.
      margin: the true cosine should be above 1 - margin and the others below margin, 0 to 1.
      scale: what the weighed cosines are multiplied by, above 0.
      label_smoothing: as for `cross_entropy`.
    """
    cosines, truth = context.outputs[logits], context.batch[labels or logits]
    fixed = jax.lax.stop_gradient(cosines)
    own = jnp.maximum(1 + margin - fixed, 0) * (cosines - 1 + margin)
    others = jnp.maximum(fixed + margin, 0) * (cosines - margin)
    scores = scale * jnp.where(_one_hot(cosines, truth) > 0, own, others)
    return _cross_entropy(scores, truth, label_smoothing)


def cross_entropies(
    context: Context, *, logits: tuple[str, ...], labels: tuple[str, ...] = ()
) -> Values:
    """The mean of `cross_entropy` over several classifications.

    Args:
      context: the batch, and the model's outputs for it.
      logits: the names of the model's outputs.
      labels: the names of the columns with the labels; by default the same names.

    Returns:
      Nats [N], the mean over a row's known labels; and weights [N], the share that is known.

    Raises:
      InputError: there are no outputs, or another number of columns.
    """
    return _weighed(context, logits, labels, lambda values, output, column: values)


def _weighed(
    context: Context, logits: tuple[str, ...], labels: tuple[str, ...], weigh: Callable
) -> Values:
    """The mean of `cross_entropy` over classifications; `weigh`: values, output, column -> values.

    Factors are in the values, not in the weights: the mean is over rows as ever.
    """
    each = []
    for output, column in pair(logits, labels):
        values, known = cross_entropy(context, logits=output, labels=column)
        each.append((weigh(values, output, column), known))
    return mean_of_known(each)


def pair(logits: tuple[str, ...], labels: tuple[str, ...]) -> list[tuple[str, str]]:
    """Pairs of an output and the column with its labels.

    Args:
      logits: the names of the model's outputs.
      labels: the names of the columns; () has the same names.

    Raises:
      InputError: there are no outputs, or another number of columns.
    """
    labels = labels or logits
    if not logits or len(labels) != len(logits):
        raise InputError(
            f"logits is {logits} and labels is {labels}; they must be as many names, one or more"
        )
    return list(zip(logits, labels, strict=True))


def mean_of_known(each: list[Values]) -> Values:
    """The mean of each row over its known values, and the share of values that are known."""
    values = sum(value * weight for value, weight in each)
    known = sum(weight for _, weight in each)
    return values / jnp.maximum(known, 1.0), known / len(each)


def focal_cross_entropies(
    context: Context,
    *,
    logits: tuple[str, ...],
    labels: tuple[str, ...] = (),
    gamma: NonNegative = 2.0,
) -> Values:
    """`cross_entropies`, each times (1 - p)^gamma with p the probability of the true class.

    What is already right with certainty adds little (focal loss, Lin et al. 2017).

    Args:
      context: the batch, and the model's outputs for it.
      logits: the names of the model's outputs.
      labels: the names of the columns with the labels; by default the same names.
      gamma: how much less the certain rows count, 0 or more; 0 is `cross_entropies`.

    Raises:
      InputError: as for `cross_entropies`.
    """

    def doubted(values, output, column):
        doubt = jnp.maximum(-jnp.expm1(-values), 1e-12)  # the floor bounds the power's gradient
        return doubt**gamma * values

    return _weighed(context, logits, labels, doubted)


def weighted_cross_entropies(
    context: Context,
    *,
    logits: tuple[str, ...],
    labels: tuple[str, ...] = (),
    ratios: Mapping[str, tuple[Fraction, ...]] | None = None,
    sigma: Annotated[float, Range(0.2)] = 1.0,
) -> Values:
    """`cross_entropies`, in which rows of rare classes count more.

    A row whose true class has the ratio r is multiplied by exp((1 - r) / sigma^2) (DeepMAR, Li,
    Chen & Huang 2015), and divided by the mean of that factor over the data, so that the factor is
    1 on average.

    Args:
      context: the batch, and the model's outputs for it.
      logits: the names of the model's outputs.
      labels: the names of the columns with the labels; by default the same names.
      ratios: column -> the ratio of each of its K classes in the training images, which add up to
        1; a training fills them in. None has every factor 1.
      sigma: how little the ratios matter, 0.2 or more.

    Raises:
      InputError: as for `cross_entropies`; or a column has no ratios, or not one for each class.
    """
    if not ratios:
        return cross_entropies(context, logits=logits, labels=labels)

    def rare(values, output, column):
        count = context.outputs[output].shape[-1]
        factors = jnp.asarray(_rarity(ratios, column, count, sigma), jnp.float32)
        return factors[jnp.maximum(context.batch[column], 0)] * values

    return _weighed(context, logits, labels, rare)


def _rarity(ratios: Mapping, column: str, count: int, sigma: float) -> np.ndarray:
    """The factor of each of a column's K classes, 1 on average over the data."""
    known = np.asarray(ratios.get(column, ()), np.float64)
    if len(known) != count or abs(known.sum() - 1) > 1e-3:
        raise InputError(
            f"ratios.{column} is {tuple(known.tolist())}; it must be {count} numbers, one for each "
            "class, that add up to 1"
        )
    factors = np.exp((1 - known) / sigma**2)
    return factors / (known @ factors)
