"""TensorFlow's SavedModel, whole or not at all."""

import jax.numpy as jnp
import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.export import checking, saved_model
from tests.export import networks

pytest.importorskip("tensorflow")
SIZE = (6, 4)


def function(images):
    x = images.astype(jnp.float32) / 255
    return {"embedding": x.mean(axis=(1, 2)), "attributes/age": x[:, 0, 0]}


def test_a_function_is_the_same_in_tensorflow(tmp_path):
    path, given = tmp_path / "new" / "x", networks.images(4, SIZE)
    saved_model.write(path, function, SIZE)
    assert [p.name for p in path.parent.iterdir()] == ["x"]
    expected = {name: np.asarray(value) for name, value in function(given).items()}
    checking.check("x", saved_model.load(path), given, expected)
    with pytest.raises(InputError, match="is there already; remove it"):
        saved_model.write(path, function, SIZE)


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot be written"):
        saved_model.write(tmp_path / "file" / "x", function, SIZE)

    def full(folder, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved_model.os, "rename", full)
    with pytest.raises(InputError, match=r"x cannot be written \(No space left"):
        saved_model.write(tmp_path / "x", function, SIZE)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="is no SavedModel with 'serving_default'"):
        saved_model.load(tmp_path)
