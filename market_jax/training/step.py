"""The one training step of every experiment, and its evaluation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jaxlib
import optax

from market_jax import devices
from market_jax.training.state import TrainState
from market_jax.typing import Array, Batch, Outputs, PyTree

Metrics = dict[str, Array]
Loss = Callable[[Outputs, Batch], tuple[Array, Metrics]]
Augment = Callable[[Array, Array], Array]

KEPT = jax.checkpoint_policies.save_only_these_names("convolution")  # see models.convolution


def make_train_step(
    apply: Callable,
    loss: Loss,
    augment: Augment,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    remat: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Builds the pure step (state, batch) -> (state, metrics), jitted, the state donated.

    Args:
      apply: `model.apply`; its random streams are "dropout" and "sample".
      loss: (outputs, batch) -> (scalar, metrics), means over the batch.
      augment: (key, uint8 [N, H, W, C]) -> float32 images.
      optimizer: of the state.
      accumulate: parts that the batch is cut into; their gradients are averaged, so that memory
        is needed for one part alone. BatchNorm sees a part at a time.
      remat: keeps the convolutions' outputs alone for the backward pass and computes the rest of
        it again: less memory, a little more time.
    """

    def differentiate(params, batch_stats, batch, key):
        """(gradients, batch_stats, metrics) of a part."""

        def forward(params):
            return apply(
                {"params": params, "batch_stats": batch_stats},
                batch["image"],
                train=True,
                rngs={"dropout": key, "sample": key},
                mutable=["batch_stats"],
            )

        def objective(params):
            outputs, updates = (jax.checkpoint(forward, policy=KEPT) if remat else forward)(params)
            value, metrics = loss(outputs, batch)
            return value, (updates.get("batch_stats", {}), metrics)

        gradients, (updates, metrics) = jax.grad(objective, has_aux=True)(params)
        return gradients, updates, metrics

    def differentiate_in_parts(params, batch_stats, batch, key):
        def body(batch_stats, part):
            gradients, batch_stats, metrics = differentiate(params, batch_stats, *part)
            return batch_stats, (gradients, metrics)

        # every accumulate-th row makes a part: each device keeps its own rows
        parts = {
            k: v.reshape(-1, accumulate, *v.shape[1:]).swapaxes(0, 1) for k, v in batch.items()
        }
        keys = jax.random.split(key, accumulate)
        batch_stats, sums = jax.lax.scan(body, batch_stats, (parts, keys))
        gradients, metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), sums)
        return gradients, batch_stats, metrics

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key_data), state.step)
        augment_key, model_key = jax.random.split(key)
        image = augment(augment_key, batch["image"])
        batch = dict(batch) | {"image": image, "step": jnp.full(len(image), state.step)}
        function = differentiate if accumulate == 1 else differentiate_in_parts
        gradients, batch_stats, metrics = function(
            state.params, state.batch_stats, batch, model_key
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return state, metrics

    options = devices.compiler_options(jax.default_backend(), jaxlib.__version__)
    return jax.jit(step, donate_argnums=0, compiler_options=options)


def make_evaluation_step(
    apply: Callable, loss: Loss, prepare: Callable[[Array], Array]
) -> Callable[[PyTree, Batch], Metrics]:
    """Builds the jitted (variables, batch) -> metrics, and "count", the images not padding."""

    def step(variables: PyTree, batch: Batch) -> Metrics:
        batch = dict(batch) | {"image": prepare(batch["image"])}
        _, metrics = loss(apply(variables, batch["image"]), batch)
        return metrics | {"count": jnp.sum(batch["mask"])}

    return jax.jit(step)


def evaluate(step: Callable, variables: PyTree, batches) -> dict[str, float]:
    """Means of the metrics over all images of all batches."""
    totals: dict[str, float] = {}
    for batch in batches:
        metrics = {k: float(v) for k, v in step(variables, batch).items()}
        count = metrics.pop("count")
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + value * count
        totals["count"] = totals.get("count", 0.0) + count
    count = totals.pop("count")
    return {name: value / count for name, value in totals.items()}
