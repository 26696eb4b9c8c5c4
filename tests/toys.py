"""What somebody outside the package may bring: a model, a loss, a metric, an evaluator, a hook with
a memory of its own, and a recipe whose rounds label the images anew. Named by `tests.toys:NAME`.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from configs import common
from market_jax import build, fitting
from market_jax.evaluators.result import Result
from market_jax.inference import Predictor
from market_jax.training.hooks import Hook
from market_jax.training.loop import Round

ROUND_STEPS = 7


class Model(nn.Module):
    """Mean colours of stripes -> gender, and an embedding."""

    stripes: int = 4
    width: int = 8

    @nn.compact
    def __call__(self, image, train=False):
        x = image.reshape(len(image), self.stripes, -1, 3).mean(axis=2).reshape(len(image), -1)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(self.width)(x)))
        return {"embedding": x, "gender": nn.Dense(2)(x)}


class Stage(nn.Module):
    """A convolution of 3x3 that halves the map."""

    width: int

    @nn.compact
    def __call__(self, x, train=False):
        return nn.relu(nn.Conv(self.width, (3, 3), strides=(2, 2))(x))


class Backbone(nn.Module):
    """Two stages, of which the second can be had again."""

    width: int = 8
    pooling: str = "average"
    last_stride: int = 1
    attention: tuple[int, ...] = ()
    non_local: tuple[int, ...] = ()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image, train=False):
        before = Stage(self.width, name="first")(image, train)
        x = Stage(self.width, name="last")(before, train)
        pooled = jnp.mean(x, axis=(1, 2))
        return {"stage1": before, "stage2": x, "map": x, "feature": pooled, "embedding": pooled}

    @nn.nowrap
    def last_stage(self, name):
        return Stage(self.width, name=name)


class Striped(nn.Module):
    """A backbone: the mean colours of stripes beside that of the picture, and a layer."""

    width: int = 64
    pooling: str = "average"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image, train=False):
        count, _, width, _ = image.shape
        middle = image[:, :, width // 4 : width - width // 4].reshape(count, 8, -1, 3)
        x = middle.mean(axis=2) - image.mean(axis=(1, 2))[:, None]
        x = nn.Dense(self.width)(x.reshape(count, -1))
        return {"map": x[:, None, None], "feature": x, "embedding": x}


def hinge(context, *, logits: str, margin: float = 1.0):
    """A loss: the margin between two classes; and a weight where the label is known."""
    scores, truth = context.outputs[logits], context.batch[logits]
    sign = 2.0 * (truth == 1) - 1
    values = jnp.maximum(margin - sign * (scores[:, 1] - scores[:, 0]), 0)
    return values, (truth >= 0).astype(jnp.float32)


def near_memory(context):
    """A loss that reads the memory: the distance of embeddings from their class's mean."""
    means = context.collections["memory"]["means"]
    own = means[jnp.maximum(context.batch["gender"], 0)]
    return jnp.mean((context.outputs["embedding"] - own) ** 2, axis=1), jnp.ones(len(own))


def evaluate(predict, dataset, *, split: str = "val"):
    """An evaluator: the share of men among the answers."""
    logits = predict(dataset.open(split), ["gender"])["gender"]
    share = float(np.mean(np.argmax(logits, axis=1) == 0))
    return Result(title="men", metrics={"toys/men": share}, record={"men": share})


def run(run, *, split: str = "val", loud: bool = False):
    """A task with a flag of its own.

    Args:
      run: a trained run.
      split: What is judged.
      loud: Say it with an exclamation mark.
    """
    result = evaluate(run.predict, run.dataset(), split=split)
    return f"men: {result.metrics['toys/men']:.3f}" + ("!" if loud else "")


def memory(*, momentum: float = 0.9):
    """A hook that keeps the mean embedding of each gender in a collection."""

    def init(state):
        bank = {"means": jnp.zeros((2, 8)), "seen": jnp.zeros((), jnp.int32)}
        return state.replace(collections=state.collections | {"memory": bank})

    def update(state, context):
        bank, labels = state.collections["memory"], context.batch["gender"]
        one = (labels[:, None] == jnp.arange(2)).astype(jnp.float32)
        sums, counts = one.T @ context.outputs["embedding"], one.sum(axis=0)[:, None]
        new = momentum * bank["means"] + (1 - momentum) * sums / jnp.maximum(counts, 1)
        bank = {"means": jnp.where(counts > 0, new, bank["means"]), "seen": bank["seen"] + 1}
        return state.replace(collections=state.collections | {"memory": bank})

    return Hook(init, update)


def label_anew(training):
    """Rounds of 7 steps; in each the labels are what the network said at the round's beginning."""
    predict = Predictor(training.apply, None)

    def rounds(state, number):
        now = predict.with_variables(state.variables)
        answers = np.argmax(now(training.train, ["gender"])["gender"], axis=1)
        agreed = np.where(answers == training.train["gender"], answers, -1).astype(np.int32)
        columns = training.train | {"gender": agreed}
        config = training.config.copy_and_resolve_references()
        config.seed = int(training.config.seed) + number

        def reset(state):
            bank = state.collections["memory"]
            bank = bank | {"means": bank["means"] + jnp.float32(agreed.sum()) / 1000}
            return state.replace(collections=state.collections | {"memory": bank})

        sampler = build.sampler(config, columns)
        return Round(columns, sampler, ROUND_STEPS, reset)

    return rounds


def fit(config, workdir, defaults=None):
    """A recipe: the supervised one, with rounds."""
    fitting.train(config, workdir, defaults, label_anew)


def get_config(arguments=""):
    """All of it in one experiment."""
    config = common.get_config()
    config.recipe = "tests.toys:fit" if arguments == "rounds" else "supervised"
    config.tasks = ("tests.toys:run",)
    config.data.image_size = (32, 16)
    config.batch_size, config.epochs, config.log_every, config.patience = 8, 6, 1, 0
    config.optimizer.learning_rate = 1e-2
    config.ema_decay = 0.9
    config.model = {"name": "tests.toys:Model", "stripes": 4, "width": 8}
    config.losses = {
        "hinge": {"name": "tests.toys:hinge", "logits": "gender", "margin": 0.5, "weight": 1.0},
        "memory": {"name": "tests.toys:near_memory", "weight": 0.1},
    }
    config.hooks = {"memory": {"name": "tests.toys:memory", "momentum": 0.8}}
    config.evaluators = {"men": {"name": "tests.toys:evaluate"}}
    config.augmentation = {"flip": {"probability": 0.5}}
    return config
