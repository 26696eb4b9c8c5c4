"""Any backbone with any heads, such as the networks of Cunegatti, Diprima & Farina.

Attributes with two classes share a head that gives one logit each, and every other attribute has
its own: on Market-1501 four heads and 32 outputs.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from market_jax.models import inputs
from market_jax.models.attention import ResidualAttention
from market_jax.models.heads import Classifier, LinearHead, bnneck, pool
from market_jax.registry import choose
from market_jax.typing import Array, Classes, FractionBelow1, NonNegativeInt, Outputs

BINARIES = "binaries"  # the group of the attributes with two classes


def group(classes: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Groups the attributes that share a head: those with two classes together, others alone.

    Args:
      classes: attribute name -> number of classes.

    Returns:
      Group -> its attributes, in the order of `classes`; the group "binaries" comes last.
    """
    binaries = tuple(name for name, k in classes.items() if k == 2)
    others = {name: (name,) for name, k in classes.items() if k > 2}
    return others | ({BINARIES: binaries} if binaries else {})


class Model(nn.Module):
    """RGB crops in [0, 1] -> the logits of every attribute, through a backbone.

    Attributes:
      classes: attribute name -> number of classes, 2 or more.
      backbone: a model with the outputs "map" [N, h, w, D] and "feature" [N, D].
      head: one of `heads.HEADS`, with its arguments bound except classes, dropout and dtype.
      dropout: group -> dropout rate in its head, 0 or more and below 1.
      attention: group -> mask, see `attention.ResidualAttention`. The group's head then reads the
        mean of the weighed map instead of the feature.
      squash: whether a sigmoid precedes the cross-entropy, as in the code of Cunegatti, Diprima &
        Farina.
      frozen: whether the backbone, with its running statistics, is left untrained.
      uncertainty: whether a weight of each group's loss is learned (Kendall, Gal & Cipolla 2018).
      identities: the number of persons that a layer on the embedding classifies, see
        `heads.bnneck`; 0 has no such layer.
      classifier: that layer, "linear" or "cosine"; "none" has its BatchNorm alone.
      dtype: dtype of the computation; parameters are float32.
    """

    classes: Mapping[str, Classes]
    backbone: nn.Module
    head: Callable[..., nn.Module] = LinearHead
    dropout: Mapping[str, FractionBelow1] | None = None
    attention: Mapping[str, str] | None = None
    squash: bool = False
    frozen: bool = False
    uncertainty: bool = False
    identities: NonNegativeInt = 0
    classifier: Classifier = "linear"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False, **given: Array) -> dict[str, Array]:
        """Predicts every attribute, and with identities who a crop shows.

        Args:
          image: RGB crops, [N, H, W, 3] float32 in [0, 1].
          train: whether dropout is active and BatchNorm uses the batch's statistics.
          **given: what the backbone takes beside the picture, see `models.inputs`.

        Returns:
          {attribute: [N, K] logits, "map": [N, h, w, D] and "feature": [N, D] the backbone's,
          "embedding": the feature, or with identities as from `heads.bnneck`, "predictions":
          [N, sum of the groups' logits] probabilities; for a group with attention
          "attention_<group>": [N, h, w] the mask's mean over channels; with uncertainty
          "log_variance_<group>": [N]; with identities "identity": [N, identities] logits}, float32.

        Raises:
          InputError: `attention` or `dropout` names a group that there is not, or a mask.
        """
        groups = group(self.classes)
        attention, dropout = self.attention or {}, self.dropout or {}
        for name in (*attention, *dropout):
            choose(name, groups, "group of attributes")
        seen = self.backbone(image, train and not self.frozen, **given)
        if self.frozen:
            seen = jax.lax.stop_gradient(seen)
        feature, predictions = seen["feature"], []
        outputs = {"map": seen["map"]}
        for name, members in groups.items():
            read = feature
            if attention.get(name):
                block = ResidualAttention(attention[name], dtype=self.dtype, name=f"mask_{name}")
                weighed, mask = block(seen["map"], train)
                read = pool(weighed, "average")
                outputs[f"attention_{name}"] = jnp.mean(mask, axis=-1)
            size = len(members) if name == BINARIES else self.classes[name]
            rate = dropout.get(name, 0.0)
            head = self.head(classes=size, dropout=rate, dtype=self.dtype, name=f"head_{name}")
            logits, probabilities = self._read(head(read, train), members)
            outputs |= logits
            predictions.append(probabilities)
            if self.uncertainty:
                value = self.param(f"log_variance_{name}", nn.initializers.zeros, ())
                outputs[f"log_variance_{name}"] = jnp.broadcast_to(value, image.shape[0])
        if predictions:
            outputs["predictions"] = jnp.concatenate(predictions, axis=-1)
        return outputs | self.identify(seen, outputs.get("predictions"), train)

    def identify(self, seen: Outputs, predictions: Array | None, train: bool) -> Outputs:
        """Makes the outputs for re-identification; called within `__call__`.

        Args:
          seen: the backbone's outputs.
          predictions: probabilities of the attributes, [N, K]; None without attributes.
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          {"feature": [N, D], "embedding": [N, D], with identities "identity"}, float32.
        """
        feature = seen["feature"]
        if not self.identities and self.classifier != "none":
            return {"feature": feature, "embedding": feature}
        settings = {"classifier": self.classifier}
        return bnneck(feature, self.identities, train, self.dtype, **settings)

    def tell(self, part: str, feature: Array, train: bool) -> Outputs:
        """Makes the outputs of one of several features of a picture; called within `__call__`.

        Args:
          part: the feature's name.
          feature: [N, D].
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          {"feature_<part>", "embedding_<part>": [N, D], with identities "identity_<part>"}, as from
          `heads.bnneck`; without identities the embedding is the feature.
        """
        if self.identities:
            settings = {"classifier": self.classifier, "suffix": f"_{part}"}
            return bnneck(feature, self.identities, train, self.dtype, **settings)
        return {f"feature_{part}": feature, f"embedding_{part}": feature}

    def inputs(self) -> tuple[str, ...]:
        """The columns that the backbone takes beside the picture, see `models.inputs`."""
        return inputs.names(self.backbone)

    def frozen_parameters(self) -> tuple[str, ...]:
        """Regular expressions for the paths of parameters that are never trained."""
        return ("^backbone/",) if self.frozen else ()

    def _read(self, x: Array, members: tuple[str, ...]) -> tuple[dict[str, Array], Array]:
        """A head's outputs: attribute -> logits; probabilities."""
        if self.classes[members[0]] == 2:
            # softmax([0, x]) is sigmoid(x), so that cross-entropy is the binary one
            pairs = jnp.stack([jnp.zeros_like(x), x], axis=-1)
            return {name: pairs[:, i] for i, name in enumerate(members)}, nn.sigmoid(x)
        if self.squash:
            return {members[0]: nn.sigmoid(x)}, nn.sigmoid(x)
        return {members[0]: x}, nn.softmax(x)
