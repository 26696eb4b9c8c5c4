"""The whole person beside rearranged patches: the jigsaw of TransReID (He et al. 2021)."""

import jax.numpy as jnp

from market_jax.errors import InputError
from market_jax.models import classifier
from market_jax.models.parts import another_last_stage, stage_before_last
from market_jax.typing import Array, NonNegativeInt, Outputs, PositiveInt


def rearrange(patches: Array, shift: int, shuffle: int, groups: int) -> Array:
    """Cuts patches into groups that each see the whole picture.

    The first patches move behind the last ones; then the sequence is cut into `shuffle` equal
    pieces, whose first patches come first, then their second ones, and so on (where they do not fit
    in, the last but one is repeated at the end). Groups are equal pieces of that; what is left over
    in the end is dropped.

    Args:
      patches: [N, T, D].
      shift: how many of the first patches move. The public code's SHIFT_NUM of 5 moves 4.
      shuffle: how many pieces are shuffled into each other.
      groups: the number of groups.

    Returns:
      [groups, N, T / groups, D].

    Raises:
      InputError: there are fewer patches than groups.
    """
    n, count, width = patches.shape
    if count < groups:
        raise InputError(f"model.groups is {groups}; there are only {count} patches")
    x = jnp.roll(patches, -shift, axis=1)
    x = jnp.concatenate([x, *[x[:, -2:-1]] * (-count % shuffle)], axis=1)
    x = x.reshape(n, shuffle, -1, width).swapaxes(1, 2).reshape(n, -1, width)
    x = x[:, : count // groups * groups].reshape(n, groups, -1, width)
    return x.swapaxes(0, 1)


class Model(classifier.Model):
    """RGB crops in [0, 1] -> who a crop shows by all patches and by groups, and every attribute.

    The first feature is the backbone's. A copy of its last block, the module "branch_jigsaw", reads
    each group of patches with the class token, see `rearrange`, which gives one feature more each;
    with published weights it begins as the backbone's, or as the file has it. Each feature has a
    BNNeck of its own. The other attributes are `classifier.Model`'s.

    Attributes:
      groups: the number of groups of patches.
      shift: how many of the first patches move behind the last ones; the paper says 5.
      shuffle: how many pieces of the sequence are shuffled into each other.
    """

    groups: PositiveInt = 4
    shift: NonNegativeInt = 4
    shuffle: PositiveInt = 2

    def identify(self, seen: Outputs, predictions: Array | None, train: bool) -> Outputs:
        """Makes the outputs for re-identification; called within `__call__`.

        Args:
          seen: the backbone's outputs, those of `backbones.vit`.
          predictions: probabilities of the attributes, which are not used.
          train: whether BatchNorm uses the batch's statistics, as in training.

        Returns:
          For "global" and "jigsaw1", "jigsaw2", ... "feature_<part>" [N, D], "embedding_<part>",
          with identities "identity_<part>" [N, identities], as from `heads.bnneck`; "feature": the
          parts' features side by side, those of groups over their number, and "embedding": the
          same of their embeddings, float32.

        Raises:
          InputError: the backbone has no tokens, or fewer patches than there are groups.
        """
        features = {"global": seen["feature"]} | self._jigsaw(seen, train)
        outputs = {}
        for part, x in features.items():
            outputs |= self.tell(part, x, train)
        for kind in ("feature", "embedding"):
            first, *others = (outputs[f"{kind}_{part}"] for part in features)
            others = [x / self.groups for x in others]
            outputs[kind] = jnp.concatenate([first, *others], axis=-1)
        return outputs

    def _jigsaw(self, seen: Outputs, train: bool) -> dict[str, Array]:
        """The features of the groups; all are read at once, as so many pictures of one row."""
        if "prefix_tokens" not in seen:
            raise InputError("model 'transreid' needs a backbone with tokens: vit")
        before = stage_before_last(seen)
        n, rows, columns, width = seen[before].shape
        patches = seen[before].reshape(n, rows * columns, width)
        groups = rearrange(patches, self.shift, self.shuffle, self.groups)
        first = jnp.broadcast_to(seen["prefix_tokens"], (self.groups, *seen["prefix_tokens"].shape))
        tokens = jnp.concatenate([first, groups], axis=2)
        tokens = tokens.reshape(self.groups * n, 1, -1, width)
        read = another_last_stage(self.backbone, {**seen, before: tokens}, "jigsaw", train)
        features = read[:, 0, 0].reshape(self.groups, n, width)
        return {f"jigsaw{number}": x for number, x in enumerate(features, start=1)}
