"""Pooling and heads: a backbone's map [N, H, W, D] -> features [N, D] -> logits."""

import functools
from collections.abc import Mapping, Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from market_jax.errors import InputError
from market_jax.models.layers import shares_of_cells
from market_jax.models.norms import batch_norm
from market_jax.registry import choose
from market_jax.retrieval.triplets import unit_length
from market_jax.typing import Array, FractionBelow1, Outputs, PositiveInt, Width

Classifier = Literal["linear", "cosine", "none"]  # of persons, see `bnneck`


class GeM(nn.Module):
    """Generalised mean over the map; its power is learned, from 3 on (Radenovic et al. 2019).

    Attributes:
      epsilon: the smallest value, to which smaller ones are raised.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        power = self.param("power", nn.initializers.constant(3.0), (1,))
        x = jnp.maximum(x, self.epsilon) ** power
        return jnp.mean(x, axis=(1, 2)) ** (1 / power)


@jax.custom_vjp
def highest(x: Array) -> Array:
    """The highest value of each channel; its gradient goes to the first such place, as in PyTorch.

    JAX shares it among all places that equal the maximum. Where XLA computes the map again for
    the comparison, and rounds otherwise, that is none, and the gradient is not finite.

    Args:
      x: the map, [N, H, W, D].

    Returns:
      [N, D].
    """
    return jnp.max(x, axis=(1, 2))


def _highest_backward(x: Array, gradient: Array) -> tuple[Array]:
    at = jnp.argmax(x.reshape(x.shape[0], -1, x.shape[-1]), axis=1, keepdims=True)
    places = jnp.arange(x.shape[1] * x.shape[2])[:, None]
    return (jnp.where(places == at, gradient[:, None], 0).reshape(x.shape),)


highest.defvjp(lambda x: (highest(x), x), _highest_backward)

POOLINGS = {
    "average": lambda x: jnp.mean(x, axis=(1, 2)),
    "max": highest,
    "gem": lambda x: GeM(name="gem")(x),
}


def pool(x: Array, pooling: str) -> Array:
    """Pools a map into a feature; called within a `__call__`.

    Args:
      x: the map, [N, H, W, D].
      pooling: "average", "max" or "gem"; the last one adds a module named "gem".

    Returns:
      [N, D] float32.

    Raises:
      InputError: there is no such pooling.
    """
    return choose(pooling, POOLINGS, "pooling")(x.astype(jnp.float32))


def stripes(x: Array, count: int) -> Array:
    """The means of horizontal stripes of a map: [count, N, C] float32.

    Args:
      x: the map, [N, H, W, C].
      count: the number of stripes, `config.model.stripes`.

    Raises:
      InputError: the map has fewer rows.
    """
    rows = x.shape[1]
    if rows < count:
        raise InputError(
            f"model.stripes is {count} and the map has {rows} rows; it must be at most as many"
        )
    sums = jnp.einsum("sh,nhwc->snc", shares_of_cells(rows, count), x.astype(jnp.float32))
    return sums / x.shape[2]


class LinearHead(nn.Module):
    """One dense layer after dropout: [N, D] -> [N, classes] logits.

    Attributes:
      classes: the number of logits.
      dropout: dropout rate, 0 or more and below 1.
      dtype: dtype of the computation; parameters are float32.
    """

    classes: PositiveInt
    dropout: FractionBelow1 = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Computes logits.

        Args:
          x: features, [N, D].
          train: whether dropout is active.

        Returns:
          [N, classes] float32.
        """
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes, dtype=self.dtype)(x).astype(jnp.float32)


class DenseHead(nn.Module):
    """Two dense layers, LeakyReLU and dropout between them: [N, D] -> [N, classes] logits.

    Attributes:
      classes: the number of logits.
      width: units of the hidden layer.
      dropout: dropout rate, 0 or more and below 1.
      dtype: dtype of the computation; parameters are float32.
    """

    classes: PositiveInt
    width: Width = 64
    dropout: FractionBelow1 = 0.5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Computes logits.

        Args:
          x: features, [N, D].
          train: whether dropout is active.

        Returns:
          [N, classes] float32.
        """
        x = nn.leaky_relu(nn.Dense(self.width, dtype=self.dtype)(x), 0.01)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes, dtype=self.dtype)(x).astype(jnp.float32)


class NormalizedHead(nn.Module):
    """Dense, BatchNorm, ReLU, dropout, dense (Cunegatti, Diprima & Farina): [N, D] -> logits.

    Attributes:
      classes: the number of logits.
      width: units of the hidden layer.
      dropout: dropout rate, 0 or more and below 1.
      dtype: dtype of the computation; parameters are float32.
    """

    classes: PositiveInt
    width: Width = 256
    dropout: FractionBelow1 = 0.5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Computes logits.

        Args:
          x: features, [N, D].
          train: whether dropout is active and BatchNorm uses the batch's statistics.

        Returns:
          [N, classes] float32.
        """
        x = nn.Dense(self.width, dtype=self.dtype)(x)
        x = nn.relu(batch_norm(train, dtype=self.dtype)(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes, dtype=self.dtype)(x).astype(jnp.float32)


class Cosines(nn.Module):
    """The cosines of vectors with a learned vector of each class: [N, D] -> [N, classes].

    They are computed in float32, for losses multiply them by 30 and more.

    Attributes:
      classes: the number of classes.
    """

    classes: PositiveInt

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1], self.classes)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return unit_length(x) @ unit_length(kernel, axis=0)


def person_logits(
    x: Array,
    identities: int,
    classifier: Classifier,
    *,
    dtype: jnp.dtype = jnp.float32,
    suffix: str = "",
    **settings,
) -> Array:
    """Who a feature shows: [N, identities] float32; called within a `__call__`.

    Args:
      x: [N, D].
      identities: the number of persons in the training split.
      classifier: "linear" for logits, "cosine" for the cosines with a vector of each person, for
        the losses `cosine_softmax` and `circle_softmax`.
      dtype: dtype of the linear layer's computation.
      suffix: what is added to the layer's name, "head_identity".
      **settings: arguments of the linear layer, an `nn.Dense`.

    Raises:
      InputError: there is no such classifier.
    """
    layers = {
        "cosine": functools.partial(Cosines, identities),
        "linear": functools.partial(nn.Dense, identities, dtype=dtype, **settings),
    }
    layer = choose(classifier, layers, "classifier")(name=f"head_identity{suffix}")
    return layer(x).astype(jnp.float32)


def bnneck(
    x: Array,
    identities: int,
    train: bool,
    dtype: jnp.dtype = jnp.float32,
    *,
    classifier: Classifier = "linear",
    suffix: str = "",
) -> Outputs:
    """Makes the outputs for re-identification of a feature; called within a `__call__`.

    Distances are learned before BatchNorm, on the feature, and persons are classified after it, on
    the embedding (BNNeck, Luo et al. 2019). BatchNorm learns no shift; the linear classifier has no
    bias and begins near 0.

    Args:
      x: pooled features, [N, D].
      identities: the number of persons in the training split.
      train: whether BatchNorm uses the batch's statistics, as in training.
      dtype: dtype of the linear classifier's computation.
      classifier: see `person_logits`; "none" leaves the persons to a memory, see
        `market_jax.losses.memory`.
      suffix: what is added to the names of the outputs and the modules: "_part1".

    Returns:
      {"feature": x, "embedding": [N, D], with a classifier "identity": [N, identities] logits or
      cosines}, float32.

    Raises:
      InputError: there is no such classifier.
    """
    embedding = batch_norm(train, use_bias=False, name=f"bnneck{suffix}")(x)
    outputs = {"feature": x, "embedding": embedding}
    if classifier != "none":
        settings = {"use_bias": False, "kernel_init": nn.initializers.normal(1e-3), "dtype": dtype}
        logits = person_logits(embedding, identities, classifier, suffix=suffix, **settings)
        outputs["identity"] = logits
    return {f"{key}{suffix}": value for key, value in outputs.items()}


HEADS = {"linear": LinearHead, "dense": DenseHead, "normalized": NormalizedHead}


def pool_and_classify(
    stages: Sequence[Array], classes: Mapping[str, int], pooling: str = "average"
) -> Outputs:
    """Makes a backbone's outputs from its maps; called within its `__call__`.

    Args:
      stages: the maps [N, H, W, C] after each stage, and last the map that is pooled.
      classes: output name -> number of classes; each gets a linear head named after it.
      pooling: see `pool`.

    Returns:
      {"stage1": the first map, "stage2": ..., in the dtype of the computation; "map": [N, H, W, D]
      the last map, "feature": [N, D] the pooled map, "embedding": the same, name of an output:
      [N, K] logits}, float32.

    Raises:
      InputError: there is no such pooling.
    """
    return classify(stages, pool(stages[-1], pooling), classes)


def classify(stages: Sequence[Array], feature: Array, classes: Mapping[str, int]) -> Outputs:
    """Makes a backbone's outputs from its maps and its feature; called within its `__call__`.

    Args:
      stages: see `pool_and_classify`.
      feature: what stands for the whole picture, [N, D].
      classes: output name -> number of classes; each gets a linear head named after it.

    Returns:
      See `pool_and_classify`.
    """
    *before, last = stages
    feature = feature.astype(jnp.float32)
    outputs = {f"stage{number}": stage for number, stage in enumerate(before, start=1)}
    outputs |= {"map": last.astype(jnp.float32), "feature": feature, "embedding": feature}
    logits = {name: nn.Dense(k, name=f"head_{name}")(feature) for name, k in classes.items()}
    return outputs | logits
