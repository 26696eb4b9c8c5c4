"""Batches through tf.data, assembled off the training thread."""

from collections.abc import Iterator

import numpy as np

from market_jax.data.samplers import PADDING, Sampler
from market_jax.data.tf import tensorflow
from market_jax.typing import Columns


def batches(
    columns: Columns,
    sampler: Sampler,
    *,
    first: int = 0,
    last: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches of the steps `first` to `last` - 1.

    Args:
      columns: columns of the split; images and numeric columns go into batches, names do not.
      sampler: the rows of each step's batch.
      first: the first step.
      last: the step after the last one; None never ends.
      share: (i, n) yields the i-th of n equal parts of each batch, for process i of n.

    Yields:
      Columns of N / n images, and "mask" bool [N / n], False where a row is padding.

    Raises:
      InputError: a picture is damaged meanwhile.
    """
    tf = tensorflow()
    part, parts = share
    keys = [k for k, v in columns.items() if k == "image" or np.issubdtype(v.dtype, np.number)]

    def gather(step):
        rows = sampler.indices(int(step))
        size = len(rows) // parts
        rows = rows[part * size : (part + 1) * size]
        mask = rows != PADDING
        rows = np.where(mask, rows, 0)
        return [columns[key][rows] for key in keys] + [mask]

    failed: list[Exception] = []

    def gather_or_note(step):
        try:
            return gather(step)
        except Exception as error:  # which TensorFlow would make another one of
            failed.append(error)
            raise

    types = [tf.uint8 if k == "image" else tf.as_dtype(columns[k].dtype) for k in keys]
    steps = tf.data.Dataset.range(first, np.iinfo(np.int64).max if last is None else last)
    dataset = steps.map(
        lambda step: tf.numpy_function(gather_or_note, [step], [*types, tf.bool]),
        num_parallel_calls=2,
        deterministic=True,
    ).prefetch(2)
    iterator = dataset.as_numpy_iterator()
    while True:
        try:
            values = next(iterator)
        except StopIteration:
            return
        except tf.errors.OpError:
            raise failed[0] from None
        yield dict(zip([*keys, "mask"], values, strict=True))
