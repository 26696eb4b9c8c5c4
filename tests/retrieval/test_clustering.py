import numpy as np
import pytest
from scipy.cluster import hierarchy
from scipy.spatial.distance import pdist
from sklearn.metrics import adjusted_rand_score

from market_jax.errors import InputError
from market_jax.metrics import ranking
from market_jax.retrieval import centroids, clustering, distances

POINTS = np.array([[0.0, 0], [0, 1], [10, 0], [10, 1], [10, 2], [50, 50]])


def groups(labels):
    """The clusters as sets of rows."""
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in set(labels.tolist())}


def blobs(count=300, spread=0.5, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 12
    return rng.normal(size=(12, 8))[labels] * 4 + spread * rng.normal(size=(count, 8)), labels


def test_distances_are_scipys(monkeypatch):
    monkeypatch.setattr(clustering, "_BLOCK", 7)
    features = np.random.default_rng(0).normal(5, 1, size=(40, 6))
    np.testing.assert_allclose(clustering.condensed_distances(features), pdist(features), rtol=1e-9)


@pytest.mark.parametrize("method", ["ward", "average", "complete"])
def test_linkage_is_scipys(method):
    features, _ = blobs(60)
    expected = hierarchy.linkage(features, method)
    np.testing.assert_allclose(clustering.linkage(features, method), expected, rtol=1e-8)


@pytest.mark.parametrize("method", ["ward", "average", "complete"])
@pytest.mark.parametrize("neighbours", [0, 3])
def test_agglomerative_by_hand(method, neighbours):
    by_count = clustering.Agglomerative(clusters=3, method=method, neighbours=neighbours)
    assert groups(by_count.fit(POINTS).labels_) == {
        frozenset({0, 1}), frozenset({2, 3, 4}), frozenset({5}),
    }  # fmt: skip
    first = by_count.labels_[2]
    np.testing.assert_allclose(by_count.centroids_[first], [10, 1])
    by_threshold = clustering.Agglomerative(threshold=3.0, method=method, neighbours=neighbours)
    assert groups(by_threshold.fit(POINTS).labels_) == groups(by_count.labels_)


def test_neighbours_find_what_all_pairs_find():
    features, truth = blobs()
    exact = clustering.Agglomerative(12).fit(features)
    near = clustering.Agglomerative(12, neighbours=10).fit(features)
    assert adjusted_rand_score(exact.labels_, truth) > 0.99
    assert adjusted_rand_score(exact.labels_, near.labels_) > 0.99


@pytest.mark.parametrize("make", [clustering.KMeans, clustering.GaussianMixture])
def test_finds_groups_that_are_there(make):
    features, truth = blobs()
    model = make(12).fit(features)
    assert adjusted_rand_score(model.labels_, truth) > 0.85
    again = make(12).fit(features)
    np.testing.assert_array_equal(model.labels_, again.labels_)
    for label, center in enumerate(model.centroids_):
        own = features[model.labels_ == label]
        np.testing.assert_allclose(center, own.mean(axis=0), atol=0.2)


@pytest.mark.parametrize("covariance", ["diag", "tied"])
def test_the_bic_chooses_the_number_of_groups(covariance):
    features, _ = blobs(600, spread=0.3)
    model = clustering.GaussianMixture((4, 12, 40), covariance).fit(features)
    assert min(model.bic_, key=model.bic_.get) == 12
    posterior = model.posterior(features[:5])
    np.testing.assert_allclose(posterior.sum(axis=1), 1)
    np.testing.assert_array_equal(posterior.argmax(axis=1), model.labels_[:5])


@pytest.mark.parametrize(
    "make",
    [
        lambda: clustering.Agglomerative(clusters=3),
        lambda: clustering.KMeans(3),
        lambda: clustering.GaussianMixture(3),
    ],
)
def test_duplicate_points_leave_no_cluster_without_a_centroid(make):
    model = make().fit(np.repeat([[0.0, 0], [9, 9]], [5, 4], axis=0))
    assert np.isfinite(model.centroids_).all()
    assert model.labels_.max() < len(model.centroids_)
    assert len(set(model.labels_[:5]) & set(model.labels_[5:])) == 0


def test_one_image():
    assert clustering.Agglomerative(clusters=1).fit(POINTS[:1]).labels_.tolist() == [0]
    assert clustering.KMeans(1).fit(POINTS[:1]).labels_.tolist() == [0]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (clustering.Agglomerative(), "clusters is 0; it must be 1 to 6, the images"),
        (clustering.Agglomerative(2, 1.0), "clusters is 2 and threshold is 1.0; give one of them"),
        (clustering.Agglomerative(7), "clusters is 7; it must be 1 to 6"),
        (clustering.Agglomerative(2, method="single"), "unknown linkage 'single'"),
        (clustering.KMeans(0), "clusters is 0; it must be 1 to 6, the images"),
        (clustering.GaussianMixture(2, "full"), "unknown covariance 'full'"),
        (clustering.GaussianMixture(()), "names no number"),
        (clustering.GaussianMixture((2, 9)), "clusters is 9"),
    ],
)
def test_bad_settings_are_named(model, message):
    with pytest.raises(InputError, match=message):
        model.fit(POINTS)


def test_features_that_are_not_finite_are_named():
    with pytest.raises(InputError, match="must be a finite"):
        clustering.KMeans(1).fit(np.array([[np.nan]]))


STAGES = [centroids.agglomerative, centroids.kmeans, centroids.gaussian_mixture]


def through(stage, query, **kwargs):
    sides = {"feature": np.asarray(query, float)}, {"feature": POINTS}
    far = distances.compute(*(side["feature"] for side in sides), "euclidean")
    return stage(*sides, far, clusters=3, metric="euclidean", **kwargs), far


@pytest.mark.parametrize("stage", STAGES)
def test_the_answer_is_the_nearest_cluster_by_distance(stage):
    found, far = through(stage, [[9.0, 0.0], [49.0, 49.0]])
    np.testing.assert_array_equal(np.isfinite(found[0]), [0, 0, 1, 1, 1, 0])
    np.testing.assert_array_equal(np.isfinite(found[1]), [0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(found[0, 2:5], far[0, 2:5])


@pytest.mark.parametrize("stage", STAGES)
def test_the_soft_answer_is_the_whole_gallery_with_the_twin_first(stage):
    found, _ = through(stage, POINTS, soft=0.8)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found.argmin(axis=1), np.arange(6))
    np.testing.assert_allclose(found.min(axis=1), 0, atol=1e-5)
    near, _ = through(stage, [[5.0, 0.6]], soft=0.8)
    assert near[0, 5] == near[0].max()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "clusters is 0; it must be 1 to 6, the images"),
        ({"clusters": 7}, "clusters is 7; it must be 1 to 6, the images"),
        ({"size": 0.5}, "size is 0.5; it must be 1 or more"),
        ({"size": 2.0, "clusters": 3}, "size is 2.0 and clusters is 3; give one of them"),
    ],
)
def test_the_number_of_clusters_is_named_by_all_in_the_same_words(stage, settings, message):
    side = {"feature": POINTS}
    with pytest.raises(InputError, match=message):
        stage(side, side, np.zeros((6, 6)), **settings)


def test_what_is_not_in_the_answer_is_no_hit():
    labels = {"query_pids": np.array([1]), "gallery_pids": np.array([1, 2, 1, 1])}
    whole = ranking.evaluate(np.array([[0.1, 0.2, 0.3, 0.4]]), **labels)
    cut = ranking.evaluate(np.array([[0.1, 0.2, 0.3, np.inf]]), **labels)
    none = ranking.evaluate(np.full((1, 4), np.inf), **labels)
    assert whole.mAP == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert cut.mAP == pytest.approx((1 + 2 / 3) / 3)
    names = ["a", "b", "c", "d"]
    listed = ranking.evaluate_lists({"q": names[:3]}, {"q": ["a", "c", "d"]})
    assert cut.mAP == pytest.approx(listed)
    assert cut.cmc[0] == 1
    assert none.mAP == pytest.approx(0, abs=1e-9)
    assert none.cmc.max() == 0
    assert none.mAP_trapezoid == pytest.approx(0, abs=1e-9)
