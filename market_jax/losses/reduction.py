"""From the values of single rows to the loss and the reported metrics.

First come sums over rows, which can be added up over batches; then, once, the division.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from market_jax import kinds
from market_jax.errors import InputError
from market_jax.losses.context import Context
from market_jax.typing import Array, NonNegativeInt

Sums = dict[str, tuple[Array, Array]]  # name -> (weighted sum of values, sum of weights)


class Term(NamedTuple):
    """A term of the loss.

    Attributes:
      function: context -> (values [N], weights [N]).
      weight: the weight of its mean in the loss; 0 only reports it.
      schedule: step -> factor of the weight in training; None is 1 at every step.
    """

    function: Callable[[Context], tuple[Array, Array]]
    weight: float = 1.0
    schedule: Callable[[Array], Array] | None = None


def qualify(
    function: Callable,
    what: str,
    *,
    datasets: int = 1,
    uncertainty: str = "",
    dataset: int | None = None,
) -> Callable:
    """A term weighed by a learned variance, or that sees one of several data sets alone.

    Args:
      function: context -> (values [N], weights [N]).
      what: the term in words, for errors: "losses.identity".
      datasets: how many data sets there are.
      uncertainty: what the variance is of. Values x become exp(-s) x + s / 2, with s the model's
        output "log_variance_<uncertainty>" [N] (Kendall, Gal & Cipolla 2018, for classification).
        "" weighs none.
      dataset: the position of the data set in `config.data.name`, from 0; the rows of the others
        are padding to the term, nobody's positives and nobody's negatives. None sees all.

    Raises:
      InputError: one of the two is of another kind, or there is no such data set.
    """
    uncertainty = kinds.check(f"{what}.uncertainty", uncertainty, str)
    if dataset is not None:
        dataset = kinds.check(f"{what}.dataset", dataset, NonNegativeInt)
        if datasets < 2 or dataset >= datasets:
            raise InputError(
                f"{what}.dataset is {dataset}; data.name has {datasets} data sets, counted from 0, "
                "and must have several"
            )

    def run(context: Context) -> tuple[Array, Array]:
        if dataset is not None:
            seen = context.batch["mask"] & (context.batch["dataset"] == dataset)
            context = context._replace(batch=context.batch | {"mask": seen})
        values, weights = function(context)
        if uncertainty:
            s = context.outputs[f"log_variance_{uncertainty}"]
            values = jnp.exp(-s) * values + 0.5 * s
        if dataset is not None:
            weights = jnp.where(context.batch["mask"], weights, 0)
        return values, weights

    return run


def _sum(function: Callable, context: Context, name: str) -> tuple[Array, Array]:
    """Sums over the rows that have a say; what the others hold is not looked at."""
    try:
        values, weights = function(context)
    except KeyError as error:
        known = {*context.outputs, *context.batch}
        raise InputError(
            f"{name}: there is no output or column {error}; known: {', '.join(sorted(known))}"
        ) from None
    weights = jnp.where(context.batch["mask"], weights, 0).astype(jnp.float32)
    counted = weights > 0
    return jnp.sum(jnp.where(counted, values, 0.0) * weights), jnp.sum(weights)


def evaluate_terms(
    terms: Mapping[str, Term], metrics: Mapping[str, Callable], context: Context
) -> Sums:
    """Sums every term, as "loss/<name>", and every metric, as "<name>", over the rows of a batch.

    Args:
      terms: name -> term of the loss.
      metrics: name -> function as in a term; no gradient goes through it.
      context: the batch, with "mask" bool [N], and the model's outputs for it.

    Raises:
      InputError: a term or metric reads an output or a column that does not exist.
    """
    reported = context._replace(outputs=jax.lax.stop_gradient(dict(context.outputs)))
    return {
        f"loss/{name}": _sum(term.function, context, f"losses.{name}")
        for name, term in terms.items()
    } | {name: _sum(function, reported, f"metrics.{name}") for name, function in metrics.items()}


def summarize(terms: Mapping[str, Term], sums: Sums, step: Array | None = None) -> dict[str, Array]:
    """Computes the loss, the means of its terms, and the metrics from sums.

    Args:
      terms: name -> term of the loss.
      sums: what `evaluate_terms` has returned, for one batch or added up over several.
      step: the number of steps done, for the terms' schedules; None gives every term its full
        weight.

    Returns:
      {"loss", "loss/<term>", "<metric>"}: scalars; 0 where no row has a weight.
    """
    means = {
        name: total / jnp.where(weight > 0, weight, 1.0) for name, (total, weight) in sums.items()
    }
    loss = jnp.zeros(())
    for name, term in terms.items():
        if term.weight:
            factor = term.schedule(step) if term.schedule and step is not None else 1.0
            loss += factor * term.weight * means[f"loss/{name}"]
    return {"loss": loss} | means
