"""A picture as a sequence of rows, from which attributes are read in order (JCM, Liu et al. 2018).

A Transformer reads the rows of a backbone's map from top to bottom. On each row a linear layer says
which class of which attribute is seen there, or nothing, for the CTC loss; and a decoder, with a
learned question for each attribute, looks at all rows and answers it.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from market_jax.errors import InputError
from market_jax.registry import choose
from market_jax.typing import Array, Classes, FractionBelow1, NonNegativeInt, PositiveInt, Width

CTC = "ctc_"  # how the outputs begin that are read from the sequence


class Layer(nn.Module):
    """Attention and two dense layers, each after a LayerNorm and added (a Transformer's layer).

    Attributes:
      heads: of the attention; they divide the width.
      dropout: dropout rate of both, 0 or more and below 1.
      dtype: dtype of the computation; parameters are float32.
    """

    heads: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, seen: Array | None, train: bool) -> Array:
        """Applies the layer.

        Args:
          x: the vectors, [N, T, D].
          seen: what they look at, [N, S, D]; None is themselves.
          train: whether dropout is active.

        Returns:
          [N, T, D].
        """
        drop = nn.Dropout(self.dropout, deterministic=not train)
        y = nn.LayerNorm(dtype=self.dtype)(x)
        attend = nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype, name="attention")
        x = x + drop(attend(y, y if seen is None else seen))
        y = nn.LayerNorm(dtype=self.dtype)(x)
        y = nn.gelu(nn.Dense(4 * x.shape[-1], dtype=self.dtype, name="wide")(y))
        return x + drop(nn.Dense(x.shape[-1], dtype=self.dtype, name="narrow")(y))


def heights(rows: int, width: int) -> np.ndarray:
    """Sines and cosines of each row's height in the picture, the same for all sizes of pictures.

    It goes from 0 at the top to 2 pi at the bottom, as in DETR (Carion et al. 2020).

    Args:
      rows: the number of rows.
      width: the number of values of each.

    Returns:
      [rows, width] float32.
    """
    half = -(-width // 2)
    height = 2 * np.pi * (np.arange(rows) + 0.5) / rows
    angles = height[:, None] / 10_000 ** (np.arange(half) / half)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :width].astype(np.float32)


def read_greedily(logits: Array, sizes: Mapping[str, int]) -> dict[str, Array]:
    """The attributes that a sequence tells, by its most likely tokens.

    A class that is the most likely token of some row is above all that are not; among those, and
    where an attribute has none, the highest probability counts.

    Args:
      logits: [N, T, 1 + the sum of all classes], "nothing" first.
      sizes: attribute -> number of classes, in the order of the logits.

    Returns:
      "ctc_<attribute>" -> scores [N, K] float32.
    """
    share = nn.softmax(logits.astype(jnp.float32))
    told = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
    scores, first, outputs = jnp.max(share + told, axis=1), 1, {}
    for name, size in sizes.items():
        outputs[f"{CTC}{name}"] = scores[:, first : first + size]
        first += size
    return outputs


class Model(nn.Module):
    """RGB crops in [0, 1] -> the logits of every attribute, and of the sequence.

    Attributes:
      classes: attribute name -> number of classes, 2 or more.
      backbone: a model with the outputs "map" [N, h, w, D] and "stage1", "stage2", ...
      order: the attributes from top to bottom, as the sequence should tell them, which must be the
        `labels` of the loss `ctc`; () is the order of `classes`.
      stage: of which stage the map is read; 0 is the backbone's last map. It must have as many rows
        as there are attributes.
      width: of the vectors.
      heads: of the attention; they divide the width.
      layers: of the encoder.
      dropout: dropout rate, 0 or more and below 1.
      dtype: dtype of the computation; parameters are float32.
    """

    classes: Mapping[str, Classes]
    backbone: nn.Module
    order: tuple[str, ...] = ()
    stage: NonNegativeInt = 0
    width: Width = 256
    heads: PositiveInt = 4
    layers: PositiveInt = 2
    dropout: FractionBelow1 = 0.1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        """Predicts every attribute.

        Args:
          image: RGB crops, [N, H, W, 3] float32 in [0, 1].
          train: whether dropout is active and BatchNorm uses the batch's statistics.

        Returns:
          {attribute: [N, K] logits of the decoder, "ctc_<attribute>": [N, K], see `read_greedily`,
          "sequence": [N, h, 1 + the sum of all classes] logits, "feature" and "embedding":
          [N, width] the mean of the encoded rows, "map": [N, h, w, C] that was read,
          "predictions": [N, the sum of all classes] probabilities of the decoder}, float32.

        Raises:
          InputError: `order` does not name each attribute once, `heads` does not divide `width`, or
            there is no such stage or one with too few rows.
        """
        order = self._check()
        seen = self.backbone(image, train)
        name = f"stage{self.stage}" if self.stage else "map"
        x = choose(name, seen, "map of the backbone (model.stage)")
        seen_map, rows = x.astype(jnp.float32), x.shape[1]
        if rows < len(order):
            raise InputError(
                f"model.stage is {self.stage}, whose map has {rows} rows; it must have at least "
                f"{len(order)}, one for each attribute: take an earlier stage or larger pictures"
            )
        x = nn.Dense(self.width, dtype=self.dtype, name="rows")(jnp.mean(x, axis=2))
        x = x + heights(rows, self.width).astype(self.dtype)
        settings = (self.heads, self.dropout, self.dtype)
        for number in range(1, self.layers + 1):
            x = Layer(*settings, name=f"encoder{number}")(x, None, train)
        x = nn.LayerNorm(dtype=self.dtype, name="encoded")(x)
        tokens = 1 + sum(self.classes.values())
        sequence = nn.Dense(tokens, dtype=self.dtype, name="sequence")(x).astype(jnp.float32)
        normal = nn.initializers.normal(0.02)
        asked = self.param("questions", normal, (len(order), self.width)).astype(self.dtype)
        asked = jnp.broadcast_to(asked, (x.shape[0], *asked.shape))
        answers = Layer(*settings, name="decoder")(asked, x, train)
        answers = nn.LayerNorm(dtype=self.dtype, name="decoded")(answers)
        logits = {}
        for i, attribute in enumerate(order):
            layer = nn.Dense(self.classes[attribute], dtype=self.dtype, name=f"head_{attribute}")
            logits[attribute] = layer(answers[:, i]).astype(jnp.float32)
        feature = jnp.mean(x.astype(jnp.float32), axis=1)
        predictions = jnp.concatenate([nn.softmax(value) for value in logits.values()], axis=-1)
        read = read_greedily(sequence, {name: self.classes[name] for name in order})
        whole = {"sequence": sequence, "feature": feature, "embedding": feature}
        return logits | read | whole | {"map": seen_map, "predictions": predictions}

    def _check(self) -> tuple[str, ...]:
        """The order of the attributes."""
        order = tuple(self.order) or tuple(self.classes)
        if sorted(order) != sorted(self.classes):
            raise InputError(
                f"model.order is {order}; it must name each attribute once: {tuple(self.classes)}"
            )
        if self.width % self.heads:
            raise InputError(
                f"model.heads is {self.heads}; it must divide model.width, {self.width}"
            )
        return order
