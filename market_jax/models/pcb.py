"""The part-based baseline: a classifier of persons on each stripe (PCB, Sun et al. 2018)."""

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp

from market_jax.models import classifier
from market_jax.models.heads import person_logits, stripes
from market_jax.models.norms import batch_norm
from market_jax.retrieval.triplets import unit_length
from market_jax.typing import Array, FractionBelow1, Outputs, Range, Width


class Model(classifier.Model):
    """RGB crops in [0, 1] -> who a crop shows by each of its stripes, and every attribute.

    On the mean of each horizontal stripe of the backbone's map stand a narrow dense layer,
    BatchNorm, dropout and a classifier. Pictures are compared by the means themselves, as st-ReID
    does (Wang et al. 2019). The other attributes are `classifier.Model`'s.

    Attributes:
      stripes: the number of stripes.
      width: units of the narrow layers.
      stripe_dropout: dropout rate before the classifiers of persons, 0 or more and below 1.
    """

    stripes: Annotated[int, Range(2, 64)] = 6
    width: Width = 256
    stripe_dropout: FractionBelow1 = 0.5

    def identify(self, seen: Outputs, predictions: Array | None, train: bool) -> Outputs:
        """Makes the outputs for re-identification; called within `__call__`.

        Args:
          seen: the backbone's outputs.
          predictions: probabilities of the attributes, which are not used.
          train: whether dropout is active and BatchNorm uses the batch's statistics.

        Returns:
          {"feature": [N, stripes * D] the stripes' means side by side, "embedding": the same, each
          of the same length and of length 1 together, with identities "identity_part1", ...:
          [N, identities] logits}, float32.

        Raises:
          InputError: the map has fewer rows than stripes.
        """
        means = stripes(seen["map"], self.stripes)
        lengths = unit_length(means) / jnp.sqrt(self.stripes)
        outputs = {
            "feature": jnp.concatenate(list(means), axis=-1),
            "embedding": jnp.concatenate(list(lengths), axis=-1),
        }
        if not self.identities:
            return outputs
        drop = nn.Dropout(self.stripe_dropout, deterministic=not train)
        for number, x in enumerate(means, start=1):
            x = nn.Dense(self.width, dtype=self.dtype, name=f"reduce_part{number}")(x)
            x = drop(batch_norm(train, dtype=self.dtype, name=f"reduce_part{number}_bn")(x))
            settings = {"dtype": self.dtype, "suffix": f"_part{number}"}
            logits = person_logits(x, self.identities, self.classifier, **settings)
            outputs[f"identity_part{number}"] = logits
        return outputs
