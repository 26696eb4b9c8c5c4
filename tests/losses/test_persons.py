"""Losses for persons and rare attributes against their papers' formulas, in plain loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.experiment import class_ratios
from market_jax.losses import Context, Term, evaluate_terms, summarize
from market_jax.losses.classification import (
    circle_softmax,
    cosine_softmax,
    cross_entropies,
    cross_entropy,
    focal_cross_entropies,
    weighted_cross_entropies,
)
from market_jax.losses.metric_learning import (
    center,
    centroid_triplet,
    multi_similarity,
    triplet,
    weighted_triplet,
)
from market_jax.retrieval.triplets import pairs

RNG = np.random.default_rng(0)
COSINES = RNG.uniform(-1, 1, (5, 4))
TRUTH = np.array([0, 3, -1, 1, 3])
KNOWN = [1, 1, 0, 1, 1]
RATIOS = (0.1, 0.2, 0.3, 0.4)

# persons 1, 1, 1, 2, 2, 3; nobody twice; padding, which says it is person 1
PIDS = np.array([1, 1, 1, 2, 2, 3, 0, -1, 1])
REAL = np.arange(9) < 8
PEOPLE = np.arange(9) < 6
VECTORS = RNG.normal(size=(9, 3))
CENTERS = RNG.normal(size=(3, 3))
CLASSES = np.where(PIDS > 0, PIDS - 1, -1)
BATCH = {"pid": jnp.array(PIDS), "identity": jnp.array(CLASSES), "mask": jnp.array(REAL)}


def classified(cosines):
    batch = {"identity": jnp.array(TRUTH), "mask": np.ones(5, bool)}
    return Context({"identity": jnp.asarray(cosines, jnp.float32)}, batch)


def compared(vectors, batch=BATCH):
    centers = {"feature": jnp.asarray(CENTERS, jnp.float32)}
    return Context(
        {"feature": jnp.asarray(vectors, jnp.float32)}, batch, None, {"centers": centers}
    )


def total(term, context_of, values):
    terms = {"a": Term(term)}
    return summarize(terms, evaluate_terms(terms, {}, context_of(values)))["loss"]


def softmax_entropy(scores, target):
    return -sum(t * (s - np.log(np.exp(scores).sum())) for t, s in zip(target, scores, strict=True))


def expected_circle(s, y, margin=0.35, scale=64.0, smoothing=0.0):
    scores = [
        scale * max(1 + margin - x, 0) * (x - 1 + margin)
        if k == y
        else scale * max(x + margin, 0) * (x - margin)
        for k, x in enumerate(s)
    ]
    target = [(1 - smoothing) * (k == y) + smoothing / len(s) for k in range(len(s))]
    return softmax_entropy(np.array(scores), target)


def expected_cosine(s, y, margin=0.0, scale=30.0):
    scores = scale * np.array([x - margin * (k == y) for k, x in enumerate(s)])
    return softmax_entropy(scores, np.eye(len(s))[y])


def expected_focal(s, y, gamma=2.0):
    plain = softmax_entropy(s, np.eye(len(s))[y])
    return (1 - np.exp(-plain)) ** gamma * plain


def expected_weighted(s, y, sigma=1.0):
    factors = [np.exp((1 - r) / sigma**2) for r in RATIOS]
    mean = sum(r * f for r, f in zip(RATIOS, factors, strict=True))
    return factors[y] / mean * softmax_entropy(s, np.eye(len(s))[y])


ONE = {"logits": ("identity",)}
RARE = ONE | {"ratios": {"identity": RATIOS}}
CLASSIFICATIONS = [
    (circle_softmax, {}, expected_circle, {}),
    (circle_softmax, {"margin": 0.2, "scale": 8.0}, expected_circle, {"margin": 0.2, "scale": 8}),
    (circle_softmax, {"label_smoothing": 0.1}, expected_circle, {"smoothing": 0.1}),
    (cosine_softmax, {}, expected_cosine, {}),
    (cosine_softmax, {"margin": 0.3, "scale": 8.0}, expected_cosine, {"margin": 0.3, "scale": 8}),
    (focal_cross_entropies, ONE, expected_focal, {}),
    (focal_cross_entropies, ONE | {"gamma": 0.5}, expected_focal, {"gamma": 0.5}),
    (weighted_cross_entropies, RARE, expected_weighted, {}),
    (weighted_cross_entropies, RARE | {"sigma": 0.5}, expected_weighted, {"sigma": 0.5}),
]


@pytest.mark.parametrize(("function", "settings", "expected", "said"), CLASSIFICATIONS)
def test_a_classification_is_its_formula_where_the_label_is_known(
    function, settings, expected, said
):
    term = functools.partial(function, **settings)
    rows = [expected(s, y, **said) if y >= 0 else 0.0 for s, y in zip(COSINES, TRUTH, strict=True)]
    for run in (term, jax.jit(term)):
        values, weights = run(classified(COSINES))
        np.testing.assert_allclose(values, rows, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(weights, KNOWN)
    gradient = jax.grad(functools.partial(total, term, classified))(jnp.array(COSINES))
    assert np.isfinite(gradient).all()
    assert not gradient[2].any(), "a row without a label has a say"


def test_no_gradient_goes_through_the_weights_of_the_circle():
    s, margin, scale = COSINES[0], 0.35, 4.0

    def found(s):
        term = functools.partial(circle_softmax, margin=margin, scale=scale)
        return term(classified(jnp.tile(s, (5, 1))))[0][0]

    own, others = np.maximum(1 + margin - s, 0), np.maximum(s + margin, 0)
    true = np.arange(4) == 0
    scores = scale * np.where(true, own * (s - 1 + margin), others * (s - margin))
    shares = np.exp(scores) / np.exp(scores).sum()
    expected = (shares - true) * scale * np.where(true, own, others)
    np.testing.assert_allclose(jax.grad(found)(jnp.array(s, jnp.float32)), expected, rtol=1e-4)


def test_without_their_settings_they_are_the_plain_losses():
    made = classified(COSINES)
    plain = cross_entropy(made, logits="identity")[0]
    for term in (
        functools.partial(cosine_softmax, scale=1.0),
        functools.partial(focal_cross_entropies, **ONE, gamma=0.0),
        functools.partial(weighted_cross_entropies, **ONE),
    ):
        np.testing.assert_allclose(term(made)[0], plain, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_a_certain_answer_has_a_finite_focal_gradient(gamma):
    term = functools.partial(focal_cross_entropies, **ONE, gamma=gamma)
    certain = 200.0 * np.eye(4)[np.maximum(TRUTH, 0)]
    for sign in (1, -1):  # right, and wrong
        gradient = jax.grad(functools.partial(total, term, classified))(jnp.array(sign * certain))
        assert np.isfinite(gradient).all()


def test_rows_of_several_attributes_average_over_what_is_known():
    batch = {"a": jnp.array([0, -1]), "b": jnp.array([1, 2]), "mask": np.ones(2, bool)}
    scores = jnp.array(COSINES[:2, :3], jnp.float32)
    made = Context({"a": scores, "b": scores}, batch)
    ratios = {"a": (0.8, 0.1, 0.1), "b": (0.2, 0.3, 0.5)}
    names = {"logits": ("a", "b")}
    for term in (
        functools.partial(focal_cross_entropies, **names),
        functools.partial(weighted_cross_entropies, **names, ratios=ratios),
    ):
        alone = [term(made, logits=(name,))[0] for name in names["logits"]]
        values, weights = term(made)
        np.testing.assert_allclose(values, [(alone[0][0] + alone[1][0]) / 2, alone[1][1]], 1e-6)
        np.testing.assert_array_equal(weights, [1.0, 0.5])
        np.testing.assert_array_equal(weights, cross_entropies(made, **names)[1])


def test_the_factor_for_rarity_is_1_on_average_over_the_data():
    truth = np.repeat([0, 1, -1], [1, 3, 2])
    ratios = class_ratios({"hat": truth}, {"hat": ("no", "yes")})
    assert ratios == {"hat": (0.25, 0.75)}
    batch = {"hat": jnp.array(truth), "mask": np.ones(6, bool)}
    made = Context({"hat": jnp.zeros((6, 2))}, batch)
    values, weights = weighted_cross_entropies(made, logits=("hat",), ratios=ratios)
    np.testing.assert_allclose(values.sum() / weights.sum(), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(values[0] / values[1], np.exp(0.75 - 0.25), rtol=1e-6)


def test_ratios_without_a_known_label_are_all_the_same():
    assert class_ratios({"hat": np.array([-1, -1])}, {"hat": ("no", "yes")}) == {"hat": (0.5, 0.5)}
    assert class_ratios({"hat": np.array([1])}, {"hat": ("a", "b", "c")}) == {
        "hat": (0.0, 1.0, 0.0)
    }


@pytest.mark.parametrize(
    "ratios", [{"hat": RATIOS}, {"identity": (0.5, 0.5)}, {"identity": [1] * 4}]
)
def test_ratios_that_do_not_fit_the_classes_are_named(ratios):
    with pytest.raises(InputError, match=r"ratios\.identity is \(.*\); it must be 4 numbers"):
        weighted_cross_entropies(classified(COSINES), **ONE, ratios=ratios)


def distance(i, j):
    return np.sqrt(((VECTORS[i] - VECTORS[j]) ** 2).sum())


def cosine(i, j):
    return VECTORS[i] @ VECTORS[j] / np.linalg.norm(VECTORS[i]) / np.linalg.norm(VECTORS[j])


def expected_weighted_triplet(i, positives, negatives):
    far, near = ([distance(i, j) for j in rows] for rows in (positives, negatives))
    p, n = np.exp(far), np.exp(-np.array(near))
    return np.log1p(np.exp(p / p.sum() @ far - n / n.sum() @ near))


def expected_multi_similarity(i, positives, negatives, alpha=2.0, beta=40.0, margin=0.7):
    s, t = ([cosine(i, j) for j in rows] for rows in (positives, negatives))
    kept = [x for x in s if x - margin < max(t)], [x for x in t if x + margin > min(s)]
    if not all(kept):
        return 0.0
    up = np.log(1 + sum(np.exp(-alpha * (x - 0.5)) for x in kept[0])) / alpha
    return up + np.log(1 + sum(np.exp(beta * (x - 0.5)) for x in kept[1])) / beta


COMPARISONS = [
    (weighted_triplet, {}, expected_weighted_triplet, {}),
    (multi_similarity, {}, expected_multi_similarity, {}),
    (multi_similarity, {"margin": 0.05}, expected_multi_similarity, {"margin": 0.05}),
    (
        multi_similarity,
        {"alpha": 5.0, "beta": 7.0, "margin": 2.0},
        expected_multi_similarity,
        {"alpha": 5.0, "beta": 7.0, "margin": 2.0},
    ),
]


@pytest.mark.parametrize(("function", "settings", "expected", "said"), COMPARISONS)
def test_a_comparison_is_its_formula_over_persons(function, settings, expected, said):
    term = functools.partial(function, **settings)
    rows = np.zeros(9)
    for i in range(5):  # person 3 has no other image
        same = [j for j in range(6) if PIDS[j] == PIDS[i] and j != i]
        rows[i] = expected(i, same, [j for j in range(6) if PIDS[j] != PIDS[i]], **said)
    for run in (term, jax.jit(term)):
        values, weights = run(compared(VECTORS))
        np.testing.assert_allclose(values, rows, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(weights, [1, 1, 1, 1, 1, 0, 0, 0, 0])


def test_pairs_that_are_easy_add_nothing_and_keep_their_weight():
    batch = {"pid": jnp.array([1, 1, 2, 2]), "mask": np.ones(4, bool)}
    made = compared([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [-3.0, 0.0]], batch)
    values, weights = multi_similarity(made, margin=0.5)
    np.testing.assert_array_equal(values, np.zeros(4))
    np.testing.assert_array_equal(weights, np.ones(4))


@pytest.mark.parametrize("margin", [0.3, 0.0, 2.0])
def test_a_centroid_is_the_mean_of_the_other_images(margin):
    rounds = [[0, 3], [1, 4], [2]]  # of images with a centroid; the last has no other person
    expected = np.zeros(9)
    for queries in rounds[:2]:
        points = [VECTORS[i] for i in queries]
        for i in queries:
            others = [VECTORS[j] for j in range(6) if PIDS[j] == PIDS[i] and j != i]
            points.append(np.mean(others, axis=0))
        for k, i in enumerate(queries):
            for anchor, own, strangers in ((k, k + 2, (1 - k, 3 - k)), (k + 2, k, (1 - k, 3 - k))):
                gaps = [np.linalg.norm(points[anchor] - points[j]) for j in (own, *strangers)]
                value = gaps[0] - min(gaps[1:])
                value = max(value + margin, 0) if margin else np.log1p(np.exp(value))
                expected[i] += value / 2
    for run in (centroid_triplet, jax.jit(centroid_triplet, static_argnames="margin")):
        values, weights = run(compared(VECTORS), margin=margin)
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(weights, [1, 1, 0, 1, 1, 0, 0, 0, 0])


COMPARING = [triplet, weighted_triplet, multi_similarity, centroid_triplet, center]


@pytest.mark.parametrize("term", COMPARING)
def test_padding_and_nobody_change_neither_values_nor_gradients(term):
    def of_people(vectors):
        return compared(vectors, {k: v[:6] for k, v in BATCH.items()})

    dirty = jnp.array(np.where(PEOPLE[:, None], VECTORS, np.nan))
    dirty = dirty.at[6].set(VECTORS[0])  # nobody, who looks like person 1
    alone = jax.value_and_grad(functools.partial(total, term, of_people))(jnp.array(VECTORS[:6]))
    among = jax.value_and_grad(functools.partial(total, term, compared))(dirty)
    np.testing.assert_allclose(among[0], alone[0], rtol=1e-5)
    np.testing.assert_allclose(among[1][:6], alone[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(among[1][6:], np.zeros((3, 3)))


@pytest.mark.parametrize("term", COMPARING)
@pytest.mark.parametrize("vectors", [np.zeros((9, 3)), np.ones((9, 3)), 1e4 * VECTORS])
def test_the_gradient_is_finite_wherever_the_points_are(term, vectors):
    gradient = jax.grad(functools.partial(total, term, compared))(jnp.array(vectors))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("term", COMPARING[:-1])
@pytest.mark.parametrize(
    "pids", [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1] * 9, [1, 1, 0, 0, 0, -1, 0, 0, 2]]
)
def test_without_a_positive_or_a_stranger_a_row_has_no_say(term, pids):
    batch = BATCH | {"pid": jnp.array(pids)}
    values, weights = term(compared(VECTORS, batch))
    assert not np.any(values)
    assert not np.any(weights)
    made = functools.partial(compared, batch=batch)
    assert not np.any(jax.grad(functools.partial(total, term, made))(jnp.array(VECTORS)))


@pytest.mark.parametrize("function", [pairs, jax.jit(pairs)])
def test_nobody_is_in_no_pair(function):
    same, other = function(jnp.array([1, 1, 2, 0, -1]))
    assert np.argwhere(same).tolist() == [[0, 1], [1, 0]]
    assert np.argwhere(other).tolist() == [[0, 2], [1, 2], [2, 0], [2, 1]]
