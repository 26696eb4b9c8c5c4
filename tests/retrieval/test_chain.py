import functools
import itertools

import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.evaluators import protocols
from market_jax.metrics import ranking
from market_jax.retrieval import chain, distances, spatio_temporal, transforms
from market_jax.retrieval.k_reciprocal import k_reciprocal
from market_jax.retrieval.training import Training


def reference(features, count, far, k1, k2, lambda_value, one_more, squared, among=None):
    """k-reciprocal re-ranking as the paper and its code describe it, dense and in loops."""
    matrix = ((features[:, None] - features) ** 2).sum(-1) if among is None else among
    relative = matrix / matrix.max(axis=1, keepdims=True)
    rank = np.argsort(matrix, axis=1, kind="stable")
    relative = relative**2 if squared else relative
    n = len(features)

    def reciprocal(i, k):
        return {j for j in rank[i, :k] if i in rank[j, :k]}

    k, half = k1 + one_more, int(np.around(k1 / 2)) + one_more
    encoding = np.zeros((n, n))
    for i in range(n):
        own = reciprocal(i, k)
        expanded = set(own)
        for j in own:
            others = reciprocal(j, half)
            if len(others & own) > 2 / 3 * len(others):
                expanded |= others
        at = sorted(expanded)
        encoding[i, at] = np.exp(-relative[i, at])
    encoding /= encoding.sum(axis=1, keepdims=True)
    encoding = np.stack([encoding[rank[i, :k2]].mean(axis=0) for i in range(n)])
    shared = np.minimum(encoding[:count, None], encoding[None, count:]).sum(-1)
    original = relative[:count, count:] if far is None else far
    return (1 - lambda_value) * (1 - shared / (2 - shared)) + lambda_value * original


@pytest.mark.parametrize("one_more", [False, True])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("k2", [1, 3])
def test_k_reciprocal_is_its_definition(one_more, squared, k2):
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(6, 5))
    features = distances.normalize(centers[np.arange(60) % 6] + 0.4 * rng.normal(size=(60, 5)))
    query, gallery = {"feature": features[:12]}, {"feature": features[12:]}
    kwargs = {"k1": 8, "k2": k2, "lambda_value": 0.3, "one_more": one_more, "squared": squared}
    for metric in ("cosine", "euclidean"):
        far = distances.compute(query["feature"], gallery["feature"], metric)
        found = k_reciprocal(query, gallery, far, **kwargs, metric=metric)
        np.testing.assert_allclose(found, reference(features, 12, None, **kwargs), atol=2e-5)


def test_k_reciprocal_after_travel_times_is_of_joined_distances():
    """As st-ReID's program: neighbours, weights and the mixture are of the joined scores."""
    rng = np.random.default_rng(0)
    people = np.arange(60) % 6
    features = distances.normalize(rng.normal(size=(6, 5))[people] + rng.normal(size=(60, 5)))
    camid, sequence = 1 + np.arange(60) // 6 % 2, np.ones(60, np.int64)
    frame = 1000 * people + 300 * camid + rng.integers(0, 90, 60)
    columns = {"feature": features, "camid": camid, "sequence": sequence, "frame": frame}
    query, gallery = ({k: v[at] for k, v in columns.items()} for at in (slice(12), slice(12, None)))
    training = Training(lambda: columns | {"pid": 1 + people}, None)
    times = functools.partial(spatio_temporal.spatio_temporal, training=training, sigma=1.0)
    kwargs = {"k1": 8, "k2": 3, "lambda_value": 0.3, "one_more": False, "squared": False}
    steps = [times, functools.partial(k_reciprocal, **kwargs)]
    among = times(columns, columns, distances.compute(features, features, "cosine"))
    np.fill_diagonal(among, 0)
    found = chain.apply(query, gallery, rerankers=steps)
    np.testing.assert_allclose(
        found, reference(features, 12, None, **kwargs, among=among), atol=2e-5
    )
    alone = chain.apply(query, gallery, rerankers=steps[1:])
    assert np.abs(found - alone).max() > 0.1


def test_k_reciprocal_of_duplicates_is_finite_and_first():
    features = np.repeat(np.eye(4, dtype=np.float32), 5, axis=0)
    query, gallery = {"feature": features[::5]}, {"feature": features}
    far = distances.compute(query["feature"], features)
    found = k_reciprocal(query, gallery, far, k1=4, k2=2)
    assert np.isfinite(found).all()
    assert (np.argmin(found, axis=1) // 5).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-9])
@pytest.mark.parametrize("name", ["k_reciprocal", "agglomerative", "kmeans", "gaussian_mixture"])
@pytest.mark.parametrize("k2", [1, 6])
@pytest.mark.parametrize("squared", [False, True])
def test_features_that_have_collapsed_give_finite_distances(name, metric, value, k2, squared):
    feature = np.full((30, 5), value, np.float32)
    feature[7] += 1e-7 * value  # or nearly so
    settings = {"clusters": 3, "soft": 0.5}
    if name == "k_reciprocal":
        settings = {"k1": 4, "k2": k2, "squared": squared}
    elif k2 == 1 or squared:
        return
    rerank = functools.partial(chain.RERANKERS[name], **settings)
    sides = {"feature": feature[:20]}, {"feature": feature}
    assert np.isfinite(chain.apply(*sides, rerankers=[rerank], metric=metric)).all()


@pytest.mark.parametrize("name", sorted(set(chain.TRANSFORMS) - {"multi_query"}))
def test_collapsed_features_stay_finite(name):
    rows = people() | {"feature": np.ones((240, 16), np.float32)}
    settings = (
        {"training": Training(None, lambda: rows), "steps": 2} if name == "mahalanobis" else {}
    )
    for side in chain.TRANSFORMS[name](rows, rows, **settings):
        assert np.isfinite(side["feature"]).all()


@pytest.mark.parametrize("settings", [{"lambda_value": 0.0}, {"lambda_value": 0.5}])
def test_what_is_not_in_the_answer_stays_out(settings):
    """Re-ranking after a clustering, which has left images infinitely far."""
    feature = np.eye(6, dtype=np.float32)
    first = functools.partial(chain.RERANKERS["agglomerative"], clusters=3)
    plain = chain.apply({"feature": feature}, {"feature": feature}, rerankers=[first])
    assert np.isinf(plain).any()
    for name, given in (
        ("k_reciprocal", {"k1": 2, "k2": 1} | settings), ("kmeans", {"clusters": 6, "soft": 1.0}),
    ):  # fmt: skip
        second = functools.partial(chain.RERANKERS[name], **given)
        found = chain.apply({"feature": feature}, {"feature": feature}, rerankers=[first, second])
        np.testing.assert_array_equal(np.isinf(found), np.isinf(plain))
        assert not np.isnan(found).any()


def test_travel_times_come_before_other_rerankers():
    side = {"feature": np.eye(3)}
    second = functools.partial(chain.RERANKERS["spatio_temporal"], alpha=5.0)
    with pytest.raises(InputError, match="re-ranker 'spatio_temporal' must be the first"):
        chain.apply(side, side, rerankers=[k_reciprocal, second])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"k1": 99}, "k1 is 99; it must be 1 to 6, with 6 images of query and gallery"),
        ({"k1": 10**9}, "k1 is 1000000000; it must be 1 to 6"),
        ({"k1": 6, "one_more": True}, "k1 is 6; it must be 1 to 5"),
        ({"k2": 7}, "k2 is 7; it must be 1 to 6"),
    ],
)
def test_k_reciprocal_names_what_is_wrong(kwargs, message):
    side = {"feature": np.eye(3)}
    with pytest.raises(InputError, match=message):
        k_reciprocal(side, side, np.zeros((3, 3)), **({"k1": 2, "k2": 2} | kwargs))


def distances_of(sides):
    """Cosine distances of (query, gallery)."""
    return chain.apply(*sides)


def test_query_expansion_by_hand():
    query, gallery = {"feature": [[1.0, 0.0]]}, {"feature": [[0.0, 1.0], [0.6, 0.8]]}

    def found(**settings):
        expanded = transforms.alpha_query_expansion(query, gallery, **settings)
        return distances_of(expanded)

    pooled = np.array([1.6, 0.8]) / np.hypot(1.6, 0.8)
    expected = 1 - np.array([[pooled[1], pooled @ [0.6, 0.8]]])
    np.testing.assert_allclose(found(k=1, alpha=0), expected, atol=1e-6)
    average = transforms.average_query_expansion(query, gallery, k=1)
    np.testing.assert_allclose(distances_of(average), expected, atol=1e-6)
    pooled = np.array([1 + 0.36 * 0.6, 0.36 * 0.8])
    pooled /= np.linalg.norm(pooled)
    np.testing.assert_allclose(found(k=1, alpha=2)[0, 0], 1 - pooled[1], atol=1e-6)
    with pytest.raises(InputError, match="k is 3; it must be 1 to 2"):
        found(k=3)
    assert query == {"feature": [[1.0, 0.0]]}, "what a transform is given stays as it is"


def test_expansions_know_the_metric():
    """By distance (5, 0) is nearer to (4, 1) than (40, 1) is, by angle the other way round."""
    query = {"feature": np.array([[40.0, 0.0]])}
    gallery = {"feature": np.array([[40.0, 10.0], [4.0, 0.0]])}
    by_angle, _ = transforms.average_query_expansion(query, gallery, k=1)
    np.testing.assert_allclose(by_angle["feature"], [[1.0, 0.0]])
    by_distance, _ = transforms.average_query_expansion(query, gallery, k=1, metric="euclidean")
    np.testing.assert_allclose(by_distance["feature"], [[40.0, 5.0]])
    _, augmented = transforms.database_augmentation(
        query, gallery, k=1, alpha=0, metric="euclidean"
    )
    np.testing.assert_allclose(augmented["feature"], [[22.0, 5.0], [22.0, 5.0]])


def test_database_augmentation_by_hand():
    gallery = {"feature": np.array([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0]])}
    query = {"feature": np.array([[0.0, 1.0]])}
    found = distances_of(transforms.database_augmentation(query, gallery, k=1, alpha=0))
    pooled = np.array([1.8, 0.6]) / np.hypot(1.8, 0.6)
    np.testing.assert_allclose(found[0, :2], 1 - pooled[1], atol=1e-6)
    with pytest.raises(InputError, match="k is 3; it must be 1 to 2"):
        transforms.database_augmentation(query, gallery, k=3)


def test_equal_images_are_each_others_neighbours_and_not_their_own():
    gallery = {"feature": np.array([[1.0, 0.0]] * 4 + [[0.0, 1.0]])}
    _, found = transforms.database_augmentation(gallery, gallery, k=2)
    np.testing.assert_allclose(found["feature"][:4], gallery["feature"][:4], atol=1e-6)


def people(seed=0, noise=1.5):
    """Features of 12 persons, 5 images at each of 4 cameras."""
    rng = np.random.default_rng(seed)
    pid, camid, _ = (a.ravel() for a in np.mgrid[1:13, 1:5, :5])
    centers = rng.normal(size=(13, 16))
    feature = (centers[pid] + noise * rng.normal(size=(len(pid), 16))).astype(np.float32)
    names = np.array([f"{i:04d}.jpg" for i in range(len(pid))])
    return {"pid": pid, "camid": camid, "feature": feature, "name": names}


STEPS = {
    "k_reciprocal": {"rerankers": [k_reciprocal]},
    "average_query_expansion": {"transforms": [transforms.average_query_expansion]},
    "alpha_query_expansion": {"transforms": [transforms.alpha_query_expansion]},
    "database_augmentation": {"transforms": [transforms.database_augmentation]},
    "multi_query": {"transforms": [transforms.multi_query]},
}


@pytest.mark.parametrize("name", STEPS)
def test_every_step_helps_where_people_form_clusters(name):
    protocol = protocols.market(people())
    sides = protocol.query, protocol.gallery
    plain = ranking.evaluate(chain.apply(*sides), **protocol.labels).mAP
    after = ranking.evaluate(chain.apply(*sides, **STEPS[name]), **protocol.labels).mAP
    assert plain < 0.9
    assert after > plain + 0.02


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(STEPS, 2)))
def test_each_of_two_chained_steps_changes_the_result(first, second):
    protocol = protocols.market(people())
    sides = protocol.query, protocol.gallery
    both = {
        kind: [*STEPS[first].get(kind, []), *STEPS[second].get(kind, [])]
        for kind in ("transforms", "rerankers")
    }
    found = chain.apply(*sides, **both)
    for name in (first, second):
        assert not np.allclose(found, chain.apply(*sides, **STEPS[name]), atol=1e-3)


def test_the_metric_reaches_every_step():
    seen = []

    def transform(query, gallery, *, metric):
        seen.append(metric)
        return query, gallery

    def rerank(query, gallery, distances, *, metric):
        seen.append(metric)
        return distances

    def changes(query, gallery):
        return query, gallery

    changes.metric_after = "euclidean"
    side = {"feature": np.eye(3)}
    steps = [transform, functools.partial(changes), transform]
    chain.apply(side, side, transforms=steps, rerankers=[rerank], metric="cosine")
    assert seen == ["cosine", "euclidean", "euclidean"]


def test_transforms_leave_what_they_are_given_as_it_is():
    rows = people()
    training = Training(None, lambda: rows)
    known = chain.TRANSFORMS | {
        "mahalanobis": functools.partial(
            chain.TRANSFORMS["mahalanobis"], training=training, steps=0
        )
    }
    for metric, transform in itertools.product(("cosine", "euclidean"), known.values()):
        query, gallery = ({k: v.copy() for k, v in rows.items()} for _ in range(2))
        given = [(side, dict(side)) for side in (query, gallery)]
        transform(query, gallery, metric=metric)
        for side, arrays in given:
            assert side.keys() == rows.keys()
            assert all(side[k] is arrays[k] for k in side)
            for name, column in side.items():
                np.testing.assert_array_equal(column, rows[name])


def test_the_metric_that_transforms_leave_is_the_one_of_the_distances():
    rows = people()
    learned = functools.partial(
        chain.TRANSFORMS["mahalanobis"], training=Training(None, lambda: rows), steps=0
    )
    query, gallery, metric = chain.transform_all(rows, rows, [learned], "cosine")
    assert metric == "euclidean"
    expected = distances.compute(query["feature"], gallery["feature"], "euclidean")
    np.testing.assert_array_equal(chain.apply(rows, rows, transforms=[learned]), expected)
    assert chain.transform_all(rows, rows, [transforms.multi_query])[2] == "cosine"


def test_what_is_learned_is_learned_once():
    read, learned = [], []

    def learn(training, *, rank):
        learned.append(rank)
        return training.features["feature"]

    training = Training(dict, lambda: read.append(1) or {"feature": 7})
    assert [training.learn(learn, rank=r) for r in (1, 1, 2, 1)] == [7] * 4
    assert learned == [1, 2]
    assert read == [1]


def test_multi_query_takes_the_querys_own_camera_alone():
    rows = people()
    protocol = protocols.market(rows)
    found = distances_of(transforms.multi_query(protocol.query, protocol.gallery))
    unit = distances.normalize(rows["feature"])
    pid, camid = protocol.query["pid"][0], protocol.query["camid"][0]
    own = unit[(rows["pid"] == pid) & (rows["camid"] == camid)].sum(axis=0)
    own += distances.normalize(protocol.query["feature"][:1])[0]
    np.testing.assert_allclose(found[0], 1 - unit @ own / np.linalg.norm(own), atol=1e-5)


def test_multi_query_needs_cameras():
    rows = people() | {"camid": np.full(240, -1)}
    with pytest.raises(InputError, match="multi_query needs every image's camera"):
        transforms.multi_query(rows, rows)
