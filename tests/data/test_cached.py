import json

import numpy as np
import pytest

from market_jax.data import cached


def test_what_is_kept_is_used_while_the_key_is_the_same(tmp_path):
    path, made = tmp_path / "evaluation" / "features.npz", []

    def make():
        made.append(1)
        return {"feature": np.full((2, 3), len(made)), "name": np.array(["a.jpg", "b.jpg"])}

    for key, count in (({"step": 1}, 1), ({"step": 1}, 1), ({"step": 2}, 2), ({"step": 1}, 3)):
        rows = cached.cached(path, json.dumps(key), make)
        assert len(made) == count
        assert rows["feature"][0, 0] == count
        assert rows["name"].tolist() == ["a.jpg", "b.jpg"]
    assert [p.name for p in path.parent.iterdir()] == ["features.npz"]


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_a_broken_file_is_made_anew(tmp_path, content):
    path = tmp_path / "features.npz"
    path.write_bytes(content)
    rows = cached.cached(path, "{}", lambda: {"feature": np.ones(2)})
    np.testing.assert_array_equal(rows["feature"], 1)
    with np.load(path) as stored:
        assert "feature" in stored.files


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "features.npz"
    cached.cached(path, "1", lambda: {"feature": np.ones(2)})

    def fail():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        cached.cached(path, "2", fail)
    rows = cached.cached(path, "1", fail)
    np.testing.assert_array_equal(rows["feature"], 1)
