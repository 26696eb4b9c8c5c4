"""The attribute network of Facchinetti & Bellumat: two blocks and a head for each attribute.

From their project report on the course release of Market-1501. The report and
the stored weights give kernel sizes and widths; padding, pooling windows and head widths are
not known and are chosen here.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from market_jax.errors import InputError
from market_jax.models.checks import check_divides
from market_jax.models.heads import DenseHead
from market_jax.models.layers import conv, max_pool, mean_pool
from market_jax.models.norms import batch_norm, normalized
from market_jax.typing import Array, Classes, FractionBelow1, PositiveInt, Width


class Model(nn.Module):
    """RGB crops in [0, 1] -> a dict with the logits of every attribute.

    Attributes:
      classes: attribute name -> number of classes; one head each.
      residual: whether the second block's input is added to its output.
      widths: channels of the four convolutions; with `residual` the second equals the fourth.
      final_pool: rows and columns of the window of the last mean pooling, on the (H/4, W/4) map;
        (4, 16) leaves eight horizontal strips of a 128x64 crop. It must divide the map, and 4 the
        picture.
      head_width: units of each head's hidden layer.
      dropout: dropout rate in the heads, 0 or more and below 1.
      dtype: dtype of the computation; parameters are float32.
    """

    classes: Mapping[str, Classes]
    residual: bool = True
    widths: tuple[Width, Width, Width, Width] = (32, 128, 256, 128)
    final_pool: tuple[PositiveInt, PositiveInt] = (4, 16)
    head_width: Width = 64
    dropout: FractionBelow1 = 0.5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        """Predicts every attribute.

        Args:
          image: RGB crops, [N, H, W, 3] float32 in [0, 1].
          train: whether dropout is active and BatchNorm uses the batch's statistics.

        Returns:
          {attribute: [N, K] logits, "map": [N, h, w, C] the last map, "feature": [N, D] the pooled
          map, "embedding": the same}, float32.

        Raises:
          InputError: the widths or the window do not fit each other or the image.
        """
        self._check(image.shape[1:3])
        x = image.astype(self.dtype)
        for width, kernel in zip(self.widths[:2], (7, 5), strict=True):
            x = normalized(batch_norm(train, dtype=self.dtype), x)
            x = nn.leaky_relu(conv(width, kernel, dtype=self.dtype)(x), 0.01)
            x = max_pool(x, (2, 2))
        block_input = x
        for width in self.widths[2:]:
            x = normalized(batch_norm(train, dtype=self.dtype), x)
            x = nn.leaky_relu(conv(width, 3, dtype=self.dtype)(x), 0.01)
        if self.residual:
            x = x + block_input
        last = x.astype(jnp.float32)
        x = mean_pool(x, self.final_pool)
        x = x.reshape(x.shape[0], -1)
        outputs = {
            name: DenseHead(k, self.head_width, self.dropout, self.dtype, name=f"head_{name}")(
                x, train
            )
            for name, k in self.classes.items()
        }
        feature = x.astype(jnp.float32)
        return outputs | {"map": last, "feature": feature, "embedding": feature}

    def _check(self, image_size: tuple[int, int]) -> None:
        """Raises an `InputError` for what does not fit."""
        if self.residual and self.widths[1] != self.widths[3]:
            raise InputError(
                f"model.widths is {self.widths}; with residual the second must equal the fourth"
            )
        rows, columns = (side // 4 for side in image_size)
        check_divides(
            image_size,
            [4 * side for side in self.final_pool],
            f"model.final_pool is {self.final_pool} on a map of {rows}x{columns}",
        )
