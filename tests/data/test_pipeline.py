import itertools

import numpy as np
import pytest

from market_jax.data import columns, pipeline, samplers
from market_jax.data.images import ImageFiles
from market_jax.errors import InputError
from tests.conftest import write_picture


def take(table, count, **kwargs):
    sampler = samplers.shuffled(len(table["pid"]), 8, seed=1)
    return list(itertools.islice(pipeline.batches(table, sampler, **kwargs), count))


def test_batches_hold_the_rows_of_the_sampler(train_columns):
    sampler = samplers.shuffled(len(train_columns["pid"]), 8, seed=1)
    for step, batch in enumerate(take(train_columns, 3)):
        rows = sampler.indices(step)
        assert set(batch) == set(train_columns) - {"name", "digest"} | {"mask"}
        for key in ("image", "pid", "up_color"):
            np.testing.assert_array_equal(batch[key], train_columns[key][rows])
        assert batch["mask"].all()


def test_a_restart_goes_on_where_it_was(train_columns):
    whole = take(train_columns, 5)
    for a, b in zip(whole[3:], take(train_columns, 2, first=3), strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])


def test_each_process_reads_its_share(train_columns):
    whole = take(train_columns, 2)
    parts = [take(train_columns, 2, share=(i, 4)) for i in range(4)]
    for step in range(2):
        together = np.concatenate([part[step]["image"] for part in parts])
        np.testing.assert_array_equal(together, whole[step]["image"])


def test_the_last_batch_is_padded(train_columns):
    few = columns.select(train_columns, np.arange(10))
    sampler = samplers.sequential(10, 4)
    batches = list(pipeline.batches(few, sampler, last=sampler.steps))
    assert [b["mask"].sum() for b in batches] == [4, 4, 2]
    np.testing.assert_array_equal(batches[2]["image"][:2], few["image"][8:])


def test_images_on_disk_give_the_same_batches(synthetic, train_columns):
    stored = columns.open_split(synthetic, "train", image_size=(128, 64))
    for a, b in zip(take(train_columns, 2), take(stored, 2), strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])


def test_a_picture_that_is_damaged_meanwhile_is_named(tmp_path):
    """Not TensorFlow's error, but ours."""
    for name in ("a.jpg", "b.jpg"):
        write_picture(tmp_path / name)
    images = ImageFiles(np.array([str(tmp_path / n) for n in ("a.jpg", "b.jpg")]), (8, 4))
    found = pipeline.batches({"image": images}, samplers.sequential(2, 1), last=2)
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"b.jpg: the picture cannot be decoded"):
        list(found)
