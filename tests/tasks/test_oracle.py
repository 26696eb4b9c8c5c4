"""--task=oracle."""

import json

import pytest

from market_jax import runs
from market_jax.errors import InputError
from market_jax.tasks import oracle
from tests.conftest import small


def test_the_task(trained):
    text = oracle.run(trained)
    record = json.loads((trained.evaluation / oracle.FILE).read_text())
    assert record["distractors"] == 0
    assert "The gallery has 0 distractors." in text
    names = ["oracle centroids", "oracle centroids, no distractors"]
    assert record[names[0]] == record[names[1]], "there are none"
    assert all(0 < record[name]["mAP"] <= 1 for name in [*names, "single images"])


def test_a_network_is_needed(synthetic, tmp_path):
    found = runs.without_model(small(synthetic), str(tmp_path))
    with pytest.raises(InputError, match="--task=oracle needs a trained run"):
        oracle.run(found)
