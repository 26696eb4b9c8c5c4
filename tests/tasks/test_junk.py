import csv
import json

import numpy as np
import pytest
from sklearn import cluster

from configs import autoencoder
from market_jax import runs
from market_jax.data import junk as made_junk
from market_jax.errors import InputError
from market_jax.metrics import reconstruction
from market_jax.recipes import supervised
from market_jax.retrieval.jaccard import jaccard
from market_jax.tasks import inputs, junk, reid


@pytest.fixture(scope="module")
def trained(synthetic, tmp_path_factory):
    """A short run of a small autoencoder with a bottleneck."""
    config = autoencoder.get_config()
    config.data.dir = str(synthetic)
    config.data.image_size = (32, 16)
    config.model.update({"widths": (4, 8), "switches": False, "bottleneck": 8})
    config.batch_size, config.epochs = 16, 2
    workdir = tmp_path_factory.mktemp("junk") / "run"
    supervised.fit(config, workdir)
    return runs.restore(workdir, "latest")


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_every_image_is_scored_and_labels_judge_the_scores(trained):
    text = junk.run(trained)
    folder = trained.workdir / "evaluation"
    rows = trained.dataset().open("test")
    listed = table(folder / junk.LIST)
    assert sorted(row["name"] for row in listed) == rows["name"].tolist()
    values = [float(row["score"]) for row in listed]
    assert values == sorted(values, reverse=True)
    result = json.loads((folder / junk.FILE).read_text())
    assert result["flagged"] == sum(row["flagged"] == "1" for row in listed)
    assert result["labelled junk"].keys() == {"error", "normalized"}
    assert result["labelled junk"]["error"]["chance"] == pytest.approx(np.mean(rows["pid"] == -1))
    assert "labelled junk, normalized" in text
    # by hand: the scores of one image
    outputs = trained.predict(rows, ("target", "reconstruction"))
    i = rows["name"].tolist().index(listed[0]["name"])
    target, again = outputs["target"][i], outputs["reconstruction"][i]
    expected = np.mean((target - again) ** 2) / np.mean((target - target.mean((0, 1))) ** 2)
    assert values[0] == pytest.approx(expected, rel=1e-4)


def test_a_threshold_and_a_score_of_ones_own(trained):
    junk.run(trained, score="error", threshold=0.0)
    listed = table(trained.workdir / "evaluation" / junk.LIST)
    assert all(row["flagged"] == "1" for row in listed)
    junk.run(trained, score="error", threshold=1e9)
    listed = table(trained.workdir / "evaluation" / junk.LIST)
    assert all(row["flagged"] == "0" for row in listed)
    with pytest.raises(InputError, match="unknown score 'loss'; known: error, normalized"):
        junk.run(trained, score="loss")


def test_junk_made_from_people_is_judged_by_kind(trained):
    text = junk.run(trained, split="val", made=True)
    result = json.loads((trained.workdir / "evaluation" / junk.FILE).read_text())
    assert "labelled junk" not in result, "nobody labelled training images"
    assert {f"made, {kind}" for kind in ("all", *made_junk.KINDS)} <= result.keys()
    assert "made, background" in text
    junk.run(trained, split="val")
    result = json.loads((trained.workdir / "evaluation" / junk.FILE).read_text())
    assert "made, all" not in result


def test_the_page_shows_the_strangest_and_what_it_rejects_is_left_out(trained, tmp_path):
    text = junk.run(trained, review=True)
    page = trained.workdir / "evaluation" / junk.PAGE
    assert str(page) in text
    listed = table(trained.workdir / "evaluation" / junk.LIST)
    content = page.read_text()
    assert content.count('class="card"') == min(junk.LEAST, len(listed))
    assert content.index(listed[0]["name"]) < content.index(listed[1]["name"])
    reviewed = tmp_path / "junk_reviewed.csv"
    rejected = [row["name"] for row in listed[:3]]
    lines = [f"{row['name']},{row['score']},{int(i < 3)},1" for i, row in enumerate(listed)]
    reviewed.write_text("name,score,rejected,decided\n" + "\n".join(lines) + "\n")
    assert inputs.read_excluded(reviewed) == set(rejected)
    reid.run(trained, split="test", exclude=str(reviewed))
    result = json.loads((trained.workdir / "evaluation" / reid.FILE).read_text())
    assert result["images"] == len(listed) - 3


def test_a_network_that_draws_nothing_finds_what_is_near_no_others(workdir):
    found = runs.restore(workdir)
    junk.run(found, made=True, review=True)
    result = json.loads((found.evaluation / junk.FILE).read_text())
    assert result["score"] == "outlier"
    assert result["labelled junk"].keys() == result["made, all"].keys() == {"outlier"}
    rows = found.dataset().open("test")
    vectors = found.predict(rows, ("embedding",))["embedding"]
    near = jaccard(vectors, k1=30, k2=6)
    values = {row["name"]: float(row["score"]) for row in table(found.evaluation / junk.LIST)}
    assert 0 <= min(values.values()) < max(values.values()) <= 1
    for eps in (0.3, 0.5, 0.7):
        # by scikit-learn, which drops no cluster
        labels = cluster.DBSCAN(eps=eps, min_samples=4, metric="precomputed").fit_predict(near)
        inside = [values[name] <= eps + 1e-6 for name in rows["name"].tolist()]
        assert inside == (labels >= 0).tolist()
    page = (found.evaluation / junk.PAGE).read_text()
    assert "the strangest first by the score 'outlier': the picture." in page.replace("&#x27;", "'")
    assert page.count("<img ") == page.count('class="card"')
    with pytest.raises(InputError, match="unknown score 'error'; known: outlier"):
        junk.run(found, score="error")


def test_scores_by_hand():
    target = np.zeros((2, 4, 2, 3), np.float32)
    target[1, :2] = 1.0  # half black, half white: variance 1 / 4
    remade = target + np.float32(0.5)
    found = reconstruction.scores(target, remade)
    np.testing.assert_allclose(found["error"], [0.25, 0.25])
    np.testing.assert_allclose(found["normalized"], [0.25 / 1e-6, 1.0], rtol=1e-5)


def test_thresholds_by_hand():
    values = np.concatenate([np.linspace(0, 2, 99), [50.0]])
    found = reconstruction.propose_thresholds(values)
    assert found["quantile"] == pytest.approx(np.quantile(values, 0.98))
    median = np.median(values)
    deviation = np.median(np.abs(values - median))
    assert found["robust_z"] == pytest.approx(median + 3.5 * 1.4826 * deviation)
    with pytest.raises(InputError, match="0 of 2 images are junk"):
        reconstruction.judge(np.ones(2), np.zeros(2, bool))


def test_made_junk_is_made_of_the_images():
    images = np.random.default_rng(0).integers(0, 256, (60, 24, 12, 3), np.uint8)
    found, kinds = made_junk.make_junk(images)
    assert found.shape == images.shape
    assert set(kinds) == set(made_junk.KINDS)
    again, _ = made_junk.make_junk(images)
    np.testing.assert_array_equal(found, again)
    for i in np.flatnonzero(kinds == "shifted"):
        half = found[i, :, 6:]
        assert any(np.array_equal(half, side) for side in (images[i, :, :6], images[i, :, 6:]))
    assert not any(np.array_equal(a, b) for a, b in zip(found, images, strict=True))
