"""Persons and attributes on one trunk (Pfeiffer et al. 2019)."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from market_jax.models.heads import pool
from market_jax.models.norms import batch_norm
from market_jax.models.parts import another_last_stage
from market_jax.typing import Array, Classes, Width


class Model(nn.Module):
    """RGB crops in [0, 1] -> an embedding of the person, and the logits of every attribute.

    The person's head is TriNet's (Hermans et al. 2017): the mean of the map, a dense layer,
    BatchNorm, ReLU, and a narrow dense layer whose outputs are compared. Each attribute's head is
    BatchNorm, ReLU and a dense layer on the maximum of the map.

    Attributes:
      classes: attribute name -> number of classes, 2 or more.
      backbone: a model with the outputs "map" [N, h, w, D] and "stage1", "stage2", ...
      separate: whether the attributes have another copy of the backbone's last stage, the module
        "branch_attributes", which begins with the same weights where the backbone's are published
        ones.
      hidden: units of the first dense layer.
      width: units of the embedding.
      uncertainty: whether a weight of each of the two tasks is learned (Kendall, Gal & Cipolla
        2018).
      dtype: dtype of the computation; parameters are float32.
    """

    classes: Mapping[str, Classes]
    backbone: nn.Module
    separate: bool = False
    hidden: Width = 1024
    width: Width = 128
    uncertainty: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        """Computes the embedding and the attributes.

        Args:
          image: RGB crops, [N, H, W, 3] float32 in [0, 1].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          {attribute: [N, K] logits, "map": the backbone's, "feature" and "embedding": [N, width],
          "predictions": [N, the sum of all classes] probabilities; with uncertainty
          "log_variance_persons" and "log_variance_attributes": [N]}, float32.

        Raises:
          InputError: `separate`, and the backbone has no last stage to copy.
        """
        seen = self.backbone(image, train)
        x = nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(pool(seen["map"], "average"))
        x = nn.relu(batch_norm(train, dtype=self.dtype, name="hidden_bn")(x))
        feature = nn.Dense(self.width, dtype=self.dtype, name="embed")(x).astype(jnp.float32)
        read = seen["map"]
        if self.separate:
            read = another_last_stage(self.backbone, seen, "attributes", train)
        logits, highest = {}, pool(read, "max")
        for name, size in self.classes.items():
            y = nn.relu(batch_norm(train, dtype=self.dtype, name=f"head_{name}_bn")(highest))
            layer = nn.Dense(size, dtype=self.dtype, name=f"head_{name}")
            logits[name] = layer(y).astype(jnp.float32)
        outputs = logits | {"map": seen["map"], "feature": feature, "embedding": feature}
        if logits:
            shares = [nn.softmax(value) for value in logits.values()]
            outputs["predictions"] = jnp.concatenate(shares, axis=-1)
        if self.uncertainty:
            for task in ("persons", "attributes"):
                value = self.param(f"log_variance_{task}", nn.initializers.zeros, ())
                outputs[f"log_variance_{task}"] = jnp.broadcast_to(value, image.shape[0])
        return outputs
