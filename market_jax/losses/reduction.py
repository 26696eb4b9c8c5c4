"""From terms and metrics of rows to the loss and what is reported of it.

First sums over rows, which add up over batches; then, once, the division.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from market_jax.errors import InputError
from market_jax.losses.context import Context
from market_jax.typing import Array

Sums = dict[str, tuple[Array, Array]]  # name -> (weighted sum of values, sum of weights)


class Term(NamedTuple):
    """A term of the loss.

    Attributes:
      function: context -> (values [N], weights [N]).
      weight: of its mean in the loss; 0 leaves it out of the loss.
      schedule: step -> factor of the weight in training; None is always 1.
    """

    function: Callable[[Context], tuple[Array, Array]]
    weight: float = 1.0
    schedule: Callable[[Array], Array] | None = None


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
    """The sums of every term, "loss/<name>", and of every metric, "<name>".

    Args:
      terms: of the loss.
      metrics: functions as a term's; no gradient goes through them.
      context: of the batch, with "mask" bool [N].

    Raises:
      InputError: a term or metric reads an output or a column that does not exist.
    """
    reported = context._replace(outputs=jax.lax.stop_gradient(dict(context.outputs)))
    return {
        f"loss/{name}": _sum(term.function, context, f"losses.{name}")
        for name, term in terms.items()
    } | {name: _sum(function, reported, f"metrics.{name}") for name, function in metrics.items()}


def summarize(terms: Mapping[str, Term], sums: Sums, step: Array | None = None) -> dict[str, Array]:
    """The loss, the means of its terms, and the metrics.

    Args:
      terms: of the loss.
      sums: of one batch, or added up over several.
      step: in training, for the terms' schedules; without it every weight counts in full.

    Returns:
      {"loss", "loss/<term>", "<metric>"}: scalars; 0 where no row had a say.
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
