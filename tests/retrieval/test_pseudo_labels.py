import numpy as np
import pytest
from scipy import sparse

from market_jax.errors import InputError
from market_jax.retrieval import distances, pseudo_labels
from market_jax.retrieval.jaccard import jaccard


def people(count=60, spread=0.4, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(6, 5))
    noise = spread * rng.normal(size=(count, 5))
    return distances.normalize(centers[np.arange(count) % 6] + noise)


def reference(features, k1, k2):
    """The Jaccard distance as SpCL computes it, dense and in loops."""
    matrix = 2 - 2 * features @ features.T
    rank = np.argsort(matrix, axis=1, kind="stable")
    n = len(features)

    def reciprocal(i, k):
        return {j for j in rank[i, :k] if i in rank[j, :k]}

    encoding = np.zeros((n, n))
    for i in range(n):
        own = reciprocal(i, k1)
        expanded = set(own)
        for j in own:
            others = reciprocal(j, int(np.around(k1 / 2)) + 1)
            if len(others & own) > 2 / 3 * len(others):
                expanded |= others
        at = sorted(expanded)
        weights = np.exp(-matrix[i, at])
        encoding[i, at] = weights / weights.sum()
    encoding = np.stack([encoding[rank[i, :k2]].mean(axis=0) for i in range(n)])
    shared = np.minimum(encoding[:, None], encoding[None]).sum(-1)
    return np.maximum(1 - shared / (2 - shared), 0)


@pytest.mark.parametrize("k2", [1, 3])
def test_jaccard_distances_are_their_definition(k2):
    features = people()
    found, expected = jaccard(features, k1=8, k2=k2), reference(features, 8, k2)
    assert found.dtype == np.float32
    assert found.nnz < 60 * 60
    dense = np.ones(found.shape)
    entries = found.tocoo()
    dense[entries.coords] = entries.data
    np.testing.assert_allclose(dense, expected, atol=2e-5)


def test_far_pairs_are_left_out_and_near_ones_are_not():
    features = people()
    everything, near = jaccard(features, k1=8, k2=3), jaccard(features, k1=8, k2=3, below=0.6)
    entries = everything.tocoo()
    kept = entries.data < 0.6 - 1e-6
    assert 60 < kept.sum() < len(kept)
    assert near.nnz == kept.sum()
    assert near.data.max() < 0.6
    np.testing.assert_array_equal(near.diagonal(), 0)


def test_equal_images_are_at_0_and_have_an_entry():
    features = np.repeat(np.eye(4, dtype=np.float32), 5, axis=0)
    found = jaccard(features, k1=4, k2=2, below=0.5)
    assert found.nnz == 4 * 5 * 5
    np.testing.assert_allclose(found.data, 0, atol=1e-6)
    labels = pseudo_labels.dbscan(found, 0.5)
    assert labels.tolist() == np.repeat(np.arange(4), 5).tolist()


def test_too_few_images_are_named():
    with pytest.raises(InputError, match="k1 is 30; it must be 1 to 20, the images"):
        jaccard(people(20))
    with pytest.raises(InputError, match="k2 is 0; it must be 1 to 20"):
        jaccard(people(20), k1=4, k2=0)


def line(*places):
    """Distances of points on a line, with entries for near pairs alone."""
    far = np.abs(np.subtract.outer(places, places))
    near = np.nonzero(far < 5)
    return sparse.csr_array((far[near], near), shape=far.shape)


def test_clusters_by_density_by_hand():
    found = line(0, 1, 2, 3, 10, 20, 21, 22, 23, 24)
    assert pseudo_labels.dbscan(found, 1.1, 3).tolist() == [0] * 4 + [-1] + [1] * 5


def test_a_cluster_whose_images_another_took_is_none():
    far = np.full((5, 5), 2.0)
    far[0, 1:4] = far[1:4, 0] = far[4, 1:4] = far[1:4, 4] = 1.0  # the middle three see both ends
    np.fill_diagonal(far, 0)
    found = pseudo_labels.dbscan(sparse.csr_array(far), 1.0, 4)
    assert found.tolist() == [0, 0, 0, 0, -1]
    assert pseudo_labels.dbscan(line(0, 1, 9), 1.0, 1).tolist() == [0, 0, -1]


@pytest.mark.parametrize(("eps", "min_samples"), [(0, 4), (-1, 4), (0.5, 0)])
def test_bad_densities_are_named(eps, min_samples):
    with pytest.raises(InputError, match=f"eps is {eps} and min_samples is {min_samples}"):
        pseudo_labels.dbscan(line(0, 1), eps, min_samples)


def test_overlap_by_hand():
    first, second = [0, 0, 0, 1, -1, -1], [0, 0, 1, 1, -1, 0]
    expected = [2 / 4, 2 / 4, 1 / 4, 1 / 2, 1, 1 / 3]
    np.testing.assert_allclose(pseudo_labels.overlap(first, second), expected)
    np.testing.assert_array_equal(pseudo_labels.overlap(first, first), 1)


def dependence(labels, others):
    """1 - IoU of the clusters of every image, in loops; an outlier is alone."""

    def members(clusters, i):
        return {i} if clusters[i] < 0 else {j for j, c in enumerate(clusters) if c == clusters[i]}

    pairs = [(members(labels, i), members(others, i)) for i in range(len(labels))]
    return [1 - len(a & b) / len(a | b) for a, b in pairs]


def slow_trust(labels, tighter, looser, threshold):
    """The criterion as SpCL's program has it: over clusters and images, in loops."""
    independence, compactness = dependence(labels, looser), dependence(labels, tighter)
    kept = []
    for i, cluster in enumerate(labels):
        mates = [j for j, c in enumerate(labels) if c == cluster]
        independent = min(independence[j] for j in mates) <= threshold
        compact = compactness[i] <= min(compactness[j] for j in mates)
        kept.append(bool(cluster >= 0 and independent and compact))
    return kept


@pytest.mark.parametrize("seed", range(5))
def test_what_is_trusted_is_what_the_loops_trust(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, 4, 40)
    tighter = np.where(rng.random(40) < 0.3, -1, labels)
    looser = np.where(rng.random(40) < 0.3, rng.integers(0, 4, 40), labels)
    found = pseudo_labels.trust(labels, tighter, looser, threshold=0.4)
    expected = slow_trust(labels, tighter, looser, 0.4)
    assert (found.labels >= 0).tolist() == expected
    assert found.threshold == 0.4
    kept = found.labels >= 0
    # the same images together, numbered without gaps
    assert np.array_equal(np.unique(found.labels[kept]), np.arange(found.labels.max() + 1))
    pairs = np.unique(np.stack([labels[kept], found.labels[kept]]), axis=1)
    assert pairs.shape[1] == found.labels.max() + 1


def test_the_threshold_is_the_first_rounds_quantile():
    labels = np.repeat(np.arange(10), 2)
    looser = np.where(labels >= 8, 8, labels)  # the last two clusters are one
    first = pseudo_labels.trust(labels, labels, looser, quantile=0.7)
    assert first.threshold == 0.0
    assert (first.labels >= 0).sum() == 16
    assert pseudo_labels.trust(labels, labels, looser, quantile=0.9).threshold == 0.5
    again = pseudo_labels.trust(labels, labels, labels, threshold=first.threshold)
    assert again.labels.tolist() == labels.tolist()


def test_a_cluster_at_the_threshold_is_trusted_in_every_round():
    """The threshold goes through float32 between two rounds; 7 / 12 has no such number."""
    labels = np.repeat([0, 1, 2], [7, 5, 8])
    looser = np.repeat([0, 2], [12, 8])
    first = pseudo_labels.trust(labels, labels, looser, quantile=0.9)
    assert first.labels.tolist() == labels.tolist()
    again = pseudo_labels.trust(
        labels, labels, looser, threshold=float(np.float32(first.threshold))
    )
    assert again.labels.tolist() == labels.tolist()


def test_nothing_clustered_leaves_nothing():
    none = np.full(5, -1)
    found = pseudo_labels.trust(none, none, none)
    assert found.labels.tolist() == [-1] * 5
    assert found.threshold is None, "the first round with clusters says it"


def test_metrics_that_are_not_known_are_refused():
    with pytest.raises(InputError, match="unknown metric 'dot'"):
        jaccard(people(), k1=4, k2=2, metric="dot")
