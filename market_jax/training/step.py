"""The one training step of every experiment, and the evaluation of its objective."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import optax

from market_jax import devices, losses
from market_jax.kernels.remat import rematerialised
from market_jax.losses import Context, Term
from market_jax.models import inputs
from market_jax.training import hooks as hooks_
from market_jax.training.state import TrainState
from market_jax.typing import Array, Batch, PyTree


class Objective(NamedTuple):
    """The loss that is minimised, and metrics that are only reported.

    Attributes:
      terms: name -> term of the loss.
      metrics: name -> function of a `Context`; no gradient goes through it.
    """

    terms: Mapping[str, Term]
    metrics: Mapping[str, Callable]


def _make_differentiate(apply: Callable, objective: Objective, *, remat: bool) -> Callable:
    """(params, collections, batch, key, step) -> (gradients, collections, metrics, outputs)."""

    def differentiate(params, collections, batch, key, step):
        def forward(params):
            return apply(
                {"params": params, **collections},
                batch["image"],
                **inputs.of(apply, batch),
                train=True,
                rngs={"dropout": key, "sample": key},
                mutable=list(collections),
            )

        def value(params):
            outputs, updates = (rematerialised(forward) if remat else forward)(params)
            context = Context(outputs, batch, step, collections)
            sums = losses.evaluate_terms(objective.terms, objective.metrics, context)
            metrics = losses.summarize(objective.terms, sums, step)
            return metrics["loss"], (collections | updates, metrics, outputs)

        gradients, rest = jax.grad(value, has_aux=True)(params)
        return gradients, *rest

    return differentiate


def _in_parts(differentiate: Callable, parts: int, *, keep_outputs: bool) -> Callable:
    """`differentiate` of a batch that is cut into parts, one after the other."""

    def differentiate_in_parts(params, collections, batch, key, step):
        def body(collections, part):
            gradients, collections, metrics, outputs = differentiate(
                params, collections, *part, step
            )
            return collections, (gradients, metrics, outputs if keep_outputs else {})

        # every parts-th row makes a part: each device keeps its own rows
        cut = {k: v.reshape(-1, parts, *v.shape[1:]).swapaxes(0, 1) for k, v in batch.items()}
        keys = jax.random.split(key, parts)
        collections, (gradients, metrics, outputs) = jax.lax.scan(body, collections, (cut, keys))
        gradients, metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), (gradients, metrics))
        # the rows back in their order
        outputs = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), outputs)
        return gradients, collections, metrics, outputs

    return differentiate_in_parts


def make_train_step(
    apply: Callable,
    objective: Objective,
    augment: Callable[[Array, Array], Array],
    optimizer: optax.GradientTransformation,
    *,
    hooks: Sequence[hooks_.Hook] = (),
    grad_accum_steps: int = 1,
    remat: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Builds the pure step (state, batch) -> (state, metrics); it is jitted and donates the state.

    Args:
      apply: `model.apply`; its random streams are "dropout" and "sample", and every collection
        of the state is mutable.
      objective: the loss that is minimised, and the metrics.
      augment: (key, uint8 [N, H, W, C]) -> float32 images [N, H, W, C].
      optimizer: the optax optimizer whose state is in the training state.
      hooks: functions that run after the update, see `market_jax.training.hooks`.
      grad_accum_steps: the number of parts that the batch is cut into. Their gradients are
        averaged, so that memory is needed for one part only; BatchNorm sees a part at a time.
      remat: keep only the outputs of convolutions, and of a Transformer's blocks, for the backward
        pass and compute the rest again; this takes less memory and more time.

    Returns:
      The step. Its metrics are scalars: "loss", "loss/<term>" and "<metric>".
    """
    differentiate = _make_differentiate(apply, objective, remat=remat)
    if grad_accum_steps > 1:
        differentiate = _in_parts(differentiate, grad_accum_steps, keep_outputs=bool(hooks))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key_data), state.step)
        augment_key, model_key = jax.random.split(key)
        batch = dict(batch) | {"image": augment(augment_key, batch["image"])}
        gradients, collections, metrics, outputs = differentiate(
            state.params, state.collections, batch, model_key, state.step
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        context = Context(outputs, batch, state.step, collections)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            collections=collections,
            opt_state=opt_state,
        )
        return hooks_.update_all(state, context, hooks), metrics

    options = devices.compiler_options(jax.default_backend(), jaxlib.__version__)
    return jax.jit(step, donate_argnums=0, compiler_options=options)


def make_evaluation_step(
    apply: Callable, objective: Objective, prepare: Callable[[Array], Array]
) -> Callable[[PyTree, Batch], dict[str, tuple[Array, Array]]]:
    """Builds the jitted (variables, batch) -> sums of the terms and metrics, see `losses`.

    Args:
      apply: `model.apply`.
      objective: the loss and the metrics to evaluate.
      prepare: uint8 [N, H, W, C] -> the float32 images that the model takes.
    """

    def step(variables: PyTree, batch: Batch) -> dict[str, tuple[Array, Array]]:
        batch = dict(batch) | {"image": prepare(batch["image"])}
        collections = {name: tree for name, tree in variables.items() if name != "params"}
        outputs = apply(variables, batch["image"], **inputs.of(apply, batch))
        context = Context(outputs, batch, None, collections)
        return losses.evaluate_terms(objective.terms, objective.metrics, context)

    return jax.jit(step)


def evaluate(
    step: Callable, objective: Objective, variables: PyTree, batches: Iterable[Batch]
) -> dict[str, float]:
    """Means of the loss, its terms and the metrics over all images of all batches.

    Args:
      step: the function that `make_evaluation_step` has built.
      objective: the objective that it was built with.
      variables: the model's variables.
      batches: the batches; their column "mask" is False where a row is padding.
    """
    totals = None
    for batch in batches:
        sums = jax.tree.map(float, jax.device_get(step(variables, batch)))
        totals = sums if totals is None else jax.tree.map(lambda a, b: a + b, totals, sums)
    return {name: float(value) for name, value in losses.summarize(objective.terms, totals).items()}
