import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.evaluators import protocols, tuning
from market_jax.retrieval import centroids, chain, clustering
from market_jax.retrieval.training import Training


def people(count=60, images=6, noise=0.5, seed=0):
    rng = np.random.default_rng(seed)
    pid = np.repeat(np.arange(1, count + 1), images)
    feature = rng.normal(size=(count + 1, 12))[pid] + noise * rng.normal(size=(len(pid), 12))
    names = np.array([f"{i:06d}.jpg" for i in range(len(pid))])
    return {"pid": pid, "feature": feature.astype(np.float32), "name": names}


def test_a_sample_is_of_whole_identities():
    rows = people() | {}
    rows["pid"] = np.where(np.arange(360) % 50 == 0, 0, rows["pid"])
    chosen = tuning.sample_identities(rows, 100)
    assert 90 <= len(chosen["pid"]) <= 110
    assert 0 not in chosen["pid"]
    for pid in np.unique(chosen["pid"]):
        assert np.sum(chosen["pid"] == pid) == np.sum(rows["pid"] == pid)


def test_finds_about_as_many_images_as_people_have():
    """A fifth of each person's 6 images asks, so that about 5 are left to be found."""
    size, judged = tuning.cluster_size(
        people(), count=300, rerank=centroids.agglomerative, metric="cosine"
    )
    assert size in (4.0, 6.0)
    assert judged[size] == max(judged.values())
    assert judged[size] > judged[2.0] + 0.1
    assert judged[size] > judged[40.0] + 0.05


@pytest.mark.parametrize("neighbours", [0, 30])
@pytest.mark.parametrize("method", ["ward", "average", "complete"])
def test_threshold_cuts_the_training_identities_into_clusters_of_that_size(method, neighbours):
    rows = people()
    threshold = tuning.threshold(rows, count=300, size=6.0, method=method, neighbours=neighbours)
    sample = protocols.course(tuning.sample_identities(rows, 300)).gallery
    feature = centroids.prepare(sample, "cosine")
    model = clustering.Agglomerative(threshold=threshold, method=method, neighbours=neighbours)
    model.fit(feature)
    assert len(model.centroids_) == round(len(feature) / 6)


def test_threshold_of_one_cluster():
    threshold = tuning.threshold(people(2, 5), count=10, size=40.0)
    assert np.isfinite(threshold)
    assert threshold > 0


def complete(spec, rows=None):
    training = Training(None, lambda: people() if rows is None else rows)
    return tuning.complete(spec, chain.RERANKERS, training, count=300, metric="cosine")


def test_a_spec_gets_what_it_leaves_open():
    spec, chosen = complete({"name": "agglomerative", "soft": 0.5})
    assert spec["size"] == chosen["images_per_cluster"]
    spec, chosen = complete({"name": "agglomerative", "method": "average", "learn": "threshold"})
    assert spec["threshold"] == chosen["threshold"] > 0
    assert "learn" not in spec
    for given in ({"clusters": 3}, {"size": 4.0}, {"threshold": 0.5}):
        spec = {"name": "agglomerative"} | given
        assert complete(spec) == (spec, {})
    spec = {"name": "k_reciprocal"}
    assert complete(spec) == (spec, {})


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "kmeans", "learn": "threshold"},
        {"name": "agglomerative", "clusters": 3, "learn": "threshold"},
        {"name": "k_reciprocal", "learn": "clusters"},
    ],
)
def test_what_cannot_be_learned_is_refused(spec):
    with pytest.raises(InputError, match="cannot learn"):
        complete(spec)
