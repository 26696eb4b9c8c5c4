"""--task=oracle."""

import json

from market_jax.tasks import oracle


def test_the_task(trained):
    text = oracle.run(trained)
    record = json.loads((trained.evaluation / oracle.FILE).read_text())
    assert record["distractors"] == 0
    assert "The gallery has 0 distractors." in text
    names = ["oracle centroids", "oracle centroids, no distractors"]
    assert record[names[0]] == record[names[1]], "there are none"
    assert all(0 < record[name]["mAP"] <= 1 for name in [*names, "single images"])
