"""The classifier with several features of a picture side by side, each with a BNNeck of its own.

With the defaults the branches are those of LightMBN (Herzog et al. 2021), on any backbone: the
whole person, stripes, and groups of channels. Its own copies hold more than the last stage, and the
first branch has one block more.
"""

import math
from typing import Annotated, Literal

import flax.linen as nn
import jax.numpy as jnp

from market_jax.errors import InputError
from market_jax.models import classifier
from market_jax.models.heads import pool, stripes
from market_jax.models.norms import batch_norm
from market_jax.registry import choose
from market_jax.retrieval.triplets import unit_length
from market_jax.typing import Array, FractionBelow1, Outputs, Range, WidthOrNone

Branch = Literal["global", "part", "channel"]


def drop_top_rows(x: Array, share: float) -> Array:
    """Sets those rows of each map to 0 that are the most active (Quispe & Pedrini 2020).

    A row is as active as its most active place, and a place as the sum of its squares.

    Args:
      x: the map, [N, H, W, C].
      share: the share of the rows that is dropped, 0 or more and below 1; their number is rounded.
    """
    active = jnp.max(jnp.sum(jnp.square(x), axis=-1), axis=2)
    order = jnp.argsort(jnp.argsort(-active, axis=1), axis=1)  # 0 for the most active row
    kept = order >= round(share * x.shape[1])
    return jnp.where(kept[:, :, None, None], x, 0)


def stage_before_last(seen: Outputs) -> str:
    """The name of a backbone's output that its last stage reads: "stage3".

    Args:
      seen: the backbone's outputs.
    """
    return f"stage{sum(name.startswith('stage') for name in seen) - 1}"


def another_last_stage(backbone: nn.Module, seen: Outputs, branch: str, train: bool) -> Array:
    """The map of another copy of a backbone's last stage; called within a `__call__`.

    Its parameters are in the module "branch_<branch>".

    Args:
      backbone: the backbone.
      seen: its outputs.
      branch: the name of the branch.
      train: whether BatchNorm uses the batch's statistics, as in training.

    Raises:
      InputError: the backbone has no last stage to copy.
    """
    before = stage_before_last(seen)
    if before not in seen or not hasattr(backbone, "last_stage"):
        raise InputError("the backbone has no last stage to copy, so there can be one branch")
    return backbone.last_stage(f"branch_{branch}")(seen[before], train)


class Model(classifier.Model):
    """RGB crops in [0, 1] -> features of parts, who a crop shows by each, and every attribute.

    The first branch reads the backbone's own map. Each other one has another copy of the backbone's
    last stage, the module "branch_<branch>", which begins with the same weights where the
    backbone's are published ones. Attributes are told from the
    backbone's own feature.

    The branches' features are, by name:

    global   "global", the mean of the map, and "global_max", its maximum, in training without its
             most active rows
    part     "part_max", the maximum of the map, and "part1", "part2", ..., the means of horizontal
             stripes of it
    channel  "channel1" and "channel2", the means of the map's first and second half of channels,
             through a dense layer that both share, BatchNorm and ReLU

    The other attributes are `classifier.Model`'s.

    Attributes:
      branches: what there is of "global", "part" and "channel".
      stripes: the number of horizontal stripes in the branch "part".
      width: to how many units a dense layer brings each feature (512 in LightMBN); 0 leaves them as
        they are.
      drop: the share of rows that "global_max" does not see in training, see `drop_top_rows`.
    """

    branches: tuple[Branch, ...] = ("global", "part", "channel")
    stripes: Annotated[int, Range(2, 64)] = 2
    width: WidthOrNone = 256
    drop: FractionBelow1 = 0.33

    def identify(self, seen: Outputs, predictions: Array | None, train: bool) -> Outputs:
        """Makes the outputs for re-identification; called within `__call__`.

        Args:
          seen: the backbone's outputs.
          predictions: probabilities of the attributes, which are not used.
          train: whether rows are dropped and BatchNorm uses the batch's statistics.

        Returns:
          For each part "feature_<part>" [N, width], "embedding_<part>", with identities
          "identity_<part>" [N, identities], as from `heads.bnneck`; "feature": the parts' features
          side by side, and "embedding": their embeddings, each of the same length and of length 1
          together, float32.

        Raises:
          InputError: there is no branch, or one twice; the map has too few rows or an odd number of
            channels; or the backbone has no last stage to copy.
        """
        if not self.branches or len(set(self.branches)) < len(self.branches):
            raise InputError(
                f"model.branches is {self.branches}; it must be one or more, each once"
            )
        kinds = {"global": self._global, "part": self._part, "channel": self._channel}
        features: dict[str, Array] = {}
        for branch, x in self._maps(seen, train).items():
            features |= choose(branch, kinds, "branch")(x.astype(jnp.float32), train)
        outputs = {}
        for part, feature in features.items():
            outputs |= self.tell(part, feature, train)
        lengths = [unit_length(outputs[f"embedding_{part}"]) for part in features]
        whole = {
            "feature": jnp.concatenate([*features.values()], axis=-1),
            "embedding": jnp.concatenate(lengths, axis=-1) / math.sqrt(len(lengths)),
        }
        return outputs | whole

    def _maps(self, seen: Outputs, train: bool) -> dict[str, Array]:
        """Branch -> its map: the backbone's own, then those of copies of the last stage."""
        first, *others = self.branches
        copies = {name: another_last_stage(self.backbone, seen, name, train) for name in others}
        return {first: seen["map"]} | copies

    def _reduce(self, features: dict[str, Array]) -> dict[str, Array]:
        """Each feature through a dense layer of its own, if there is a width."""
        if not self.width:
            return features
        reduced = {}
        for part, x in features.items():
            layer = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name=f"reduce_{part}")
            reduced[part] = layer(x).astype(jnp.float32)
        return reduced

    def _global(self, x: Array, train: bool) -> dict[str, Array]:
        seen = drop_top_rows(x, self.drop) if train else x
        return self._reduce({"global": pool(x, "average"), "global_max": pool(seen, "max")})

    def _part(self, x: Array, train: bool) -> dict[str, Array]:
        means = {f"part{number}": mean for number, mean in enumerate(stripes(x, self.stripes), 1)}
        return self._reduce({"part_max": pool(x, "max")} | means)

    def _channel(self, x: Array, train: bool) -> dict[str, Array]:
        if x.shape[-1] % 2:
            raise InputError(f"the map has {x.shape[-1]} channels, which have no halves")
        halves = jnp.stack(jnp.split(pool(x, "average"), 2, axis=-1))
        if self.width:
            settings = {"use_bias": False, "dtype": self.dtype}
            halves = nn.Dense(self.width, **settings, name="reduce_channel")(halves)
            halves = nn.relu(batch_norm(train, name="reduce_channel_bn")(halves))
        return {f"channel{number}": half for number, half in enumerate(halves, start=1)}
