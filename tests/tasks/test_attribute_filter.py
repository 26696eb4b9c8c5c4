"""--task=attribute_filter."""

import json

import pytest

from market_jax.evaluators import reid
from market_jax.tasks import attribute_filter


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
