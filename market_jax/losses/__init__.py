"""Terms of the loss and metrics, by name: (context, *, ...) -> (values [N], weights [N])."""

from market_jax.losses import (
    classification,
    memory,
    metric_learning,
    metrics,
    reconstruction,
    sequences,
)
from market_jax.losses.context import Context
from market_jax.losses.reduction import Term, evaluate_terms, qualify, summarize
from market_jax.registry import names_of

__all__ = [
    "METRICS",
    "TERMS",
    "Context",
    "Term",
    "evaluate_terms",
    "qualify",
    "summarize",
]

TERMS = names_of(classification, memory, metric_learning, reconstruction, sequences)
METRICS = names_of(metrics)
