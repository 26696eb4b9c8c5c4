"""The classifier in which attributes help to tell who a crop shows (APR, Lin et al. 2019)."""

import flax.linen as nn
import jax.numpy as jnp

from market_jax.models import classifier
from market_jax.models.heads import person_logits
from market_jax.typing import Array, Outputs


class Model(classifier.Model):
    """RGB crops in [0, 1] -> every attribute, and who a crop shows by them and the feature.

    The attribute re-weighting module gives each predicted probability a confidence,
    sigmoid(V p + b), and the person is told from the weighed probabilities beside the backbone's
    feature. The feature is what pictures are compared by. The other attributes are
    `classifier.Model`'s.

    Attributes:
      reweighting: whether there is such a module; else the person is told from the feature alone.
    """

    reweighting: bool = True

    def identify(self, seen: Outputs, predictions: Array | None, train: bool) -> Outputs:
        """Makes the outputs for re-identification; called within `__call__`.

        Args:
          seen: the backbone's outputs.
          predictions: probabilities of the attributes, [N, K]; None without attributes, where there
            is nothing to weigh.
          train: not used.

        Returns:
          {"feature": [N, D] the backbone's, "embedding": the same, with identities "identity":
          [N, identities] logits}, float32.
        """
        feature = seen["feature"]
        outputs = {"feature": feature, "embedding": feature}
        if not self.identities:
            return outputs
        read = feature
        if self.reweighting and predictions is not None:
            layer = nn.Dense(predictions.shape[-1], dtype=self.dtype, name="reweighting")
            weighed = nn.sigmoid(layer(predictions)) * predictions
            read = jnp.concatenate([weighed, feature], axis=-1)
        logits = person_logits(read, self.identities, self.classifier, dtype=self.dtype)
        return outputs | {"identity": logits}
