"""--task=attribute_filter."""

import json

import pytest

from market_jax import runs
from market_jax.errors import InputError
from market_jax.evaluators import reid
from market_jax.tasks import attribute_filter
from tests.conftest import small


def test_the_task(trained):
    text = attribute_filter.run(trained)
    record = json.loads((trained.evaluation / attribute_filter.FILE).read_text())
    rows = record["by_agreement"]
    assert len(record["attributes"]) == 12
    assert list(rows) == [str(n) for n in range(13)]
    kept = [row["gallery_kept"] for row in rows.values()]
    assert kept[0] == 1
    assert kept == sorted(kept, reverse=True)
    plain = reid.evaluate(trained.predict, trained.dataset())
    assert rows["0"]["mAP"] == pytest.approx(plain.metrics["market/mAP"])
    assert "12 of 12" in text


def test_a_network_is_needed(synthetic, tmp_path):
    found = runs.without_model(small(synthetic), str(tmp_path))
    with pytest.raises(InputError, match="--task=attribute_filter needs a trained run"):
        attribute_filter.run(found)
