import csv
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from market_jax.errors import InputError
from market_jax.metrics import ranking
from market_jax.retrieval import distances
from tests.conftest import real


def judge(far, query, gallery, **kwargs):
    """`evaluate` with (pid, camid) pairs."""
    (qp, qc), (gp, gc) = (np.array(side).reshape(-1, 2).T for side in (query, gallery))
    labels = {"query_pids": qp, "gallery_pids": gp, "query_camids": qc, "gallery_camids": gc}
    return ranking.evaluate(np.array(far), **labels, **kwargs)


def test_by_hand():
    # ranks of the matches: 1 and 3 of the four that count; the fourth image is from camera 1 too
    gallery = [(7, 2), (8, 2), (7, 3), (7, 1), (9, 1)]
    result = judge([[0.1, 0.2, 0.3, 0.0, 0.4]], [(7, 1)], gallery, max_rank=4)
    assert result.mAP == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert result.mAP_trapezoid == pytest.approx(((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2)
    assert result.mINP == pytest.approx(2 / 3)
    np.testing.assert_array_equal(result.cmc, [1, 1, 1, 1])
    np.testing.assert_array_equal(result.first_rank, [1])


def test_ties_are_broken_by_gallery_order():
    zeros = np.zeros((1, 4))
    first = judge(zeros, [(1, 1)], [(1, 2), (2, 2), (2, 2), (2, 2)])
    last = judge(zeros, [(1, 1)], [(2, 2), (2, 2), (2, 2), (1, 2)])
    assert (first.mAP, last.mAP) == (1.0, 0.25)
    # what is left out does not push a tie back
    assert judge(zeros, [(1, 1)], [(1, 1), (-1, 2), (2, 2), (1, 2)]).mAP == 0.5


def test_queries_without_a_match_are_left_out_and_counted():
    query = [(1, 1), (2, 1), (0, 1)]  # the second has only its own camera, the third is nobody
    result = judge(np.tile([0.1, 0.2, 0.3], (3, 1)), query, [(1, 2), (2, 1), (0, 2)])
    assert (result.queries, result.without_match) == (1, 2)
    np.testing.assert_array_equal(np.isnan(result.average_precision), [False, True, True])
    assert result.mAP == 1.0


def test_junk_never_counts_and_distractors_always_stand_in_the_way():
    gallery = [(-1, 2), (0, 2), (5, 2)]
    result = judge([[0.1, 0.2, 0.3]], [(5, 1)], gallery)
    assert result.mAP == 0.5, "behind the distractor, not behind the junk"


def test_cmc_is_as_long_as_asked_in_a_small_gallery():
    result = judge([[0.2, 0.1]], [(1, 1)], [(1, 2), (2, 1)], max_rank=10)
    np.testing.assert_array_equal(result.cmc, [0] + 9 * [1])
    assert result.to_dict()["rank10"] == 1.0


def brute_force(distances, query, gallery):
    """The definition: per query (AP, trapezoid AP, INP, first rank), or None."""
    found = []
    for row, (pid, camid) in zip(distances, query, strict=True):
        order = sorted(range(len(row)), key=lambda g: (row[g], g))
        kept = [g for g in order if gallery[g][0] != -1 and tuple(gallery[g]) != (pid, camid)]
        hits = [r for r, g in enumerate(kept, 1) if gallery[g][0] == pid and pid > 0]
        precisions = [n / r for n, r in enumerate(hits, 1)]
        before = [(n - 1) / (r - 1) if r > 1 else 1.0 for n, r in enumerate(hits, 1)]
        both = np.mean([precisions, before]) if hits else None
        last = len(hits) / hits[-1] if hits else None
        found.append((np.mean(precisions), both, last, hits[0]) if hits else None)
    return found


images = st.tuples(st.integers(1, 4), st.integers(1, 3))
others = st.tuples(st.integers(-1, 4), st.integers(1, 3))


@st.composite
def problems(draw):
    query = draw(st.lists(images, min_size=1, max_size=4))
    gallery = draw(st.lists(others, min_size=1, max_size=12))
    row = st.lists(st.integers(0, 5), min_size=len(gallery), max_size=len(gallery))
    distances = draw(st.lists(row, min_size=len(query), max_size=len(query)))
    return np.array(distances, np.float32), query, gallery


@given(problems())
def test_is_the_definition(problem):
    distances, query, gallery = problem
    expected = [e for e in brute_force(*problem) if e]
    if not expected:
        with pytest.raises(InputError, match="has a true match"):
            judge(*problem)
        return
    result = judge(distances, query, gallery)
    values = result.mAP, result.mAP_trapezoid, result.mINP, result.cmc[0]
    means = [*np.mean(expected, axis=0)[:3], np.mean([e[3] == 1 for e in expected])]
    np.testing.assert_allclose(values, means)


@settings(max_examples=30)
@given(problems(), st.sampled_from([1, 3, 8]))
def test_features_rank_as_their_distances_do(problem, block):
    """One-dimensional features, whose squared distances float32 has exactly, ties and all."""
    _, query, gallery = problem
    (qp, qc), (gp, gc) = np.array(query).T, np.array(gallery).T
    x, y = (np.arange(n)[:, None] * 3 % 5 for n in (len(query), len(gallery)))
    labels = {"query_pids": qp, "gallery_pids": gp, "query_camids": qc, "gallery_camids": gc}
    try:
        expected = ranking.evaluate((x - y.T) ** 2, **labels)
    except InputError:
        return
    found = ranking.evaluate_features(x, y, **labels, metric="euclidean", block=block)
    assert found.mAP == expected.mAP
    np.testing.assert_array_equal(found.first_rank, expected.first_rank)


def test_agrees_with_scikit_learn_where_nothing_ties():
    rng = np.random.default_rng(0)
    distances, pids = rng.random((20, 300)), rng.integers(1, 10, 300)
    query = rng.integers(1, 10, 20)
    result = ranking.evaluate(distances, query_pids=query, gallery_pids=pids)
    expected = [
        average_precision_score(pids == p, -d) for p, d in zip(query, distances, strict=True)
    ]
    np.testing.assert_allclose(result.average_precision, expected, atol=1e-6)


def read_official(name):
    """(pid, camid) of an official list."""
    with real(f"market1501-official/{name}.csv").open() as file:
        names = [row[0].rsplit("/", 1)[-1] for row in list(csv.reader(file))[1:]]
    found = [re.match(r"(-?\d+)_c(\d)", n).groups() for n in names]
    return np.array(found, np.int32).T


def test_the_official_lists_at_full_size():
    (qp, qc), (gp, gc) = read_official("market_val"), read_official("market_test")
    gp, gc = (np.concatenate([a, np.full(2798, v)]) for a, v in ((gp, 0), (gc, 1)))  # distractors
    assert (len(qp), len(gp)) == (3368, 15913)
    labels = {"query_pids": qp, "gallery_pids": gp, "query_camids": qc, "gallery_camids": gc}
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(1502, 16))
    x, y = (centers[p] + rng.normal(size=(len(p), 16)) for p in (qp, gp))
    found = ranking.evaluate_features(x, y, **labels)
    assert (found.queries, found.without_match) == (3368, 0)
    sample = np.arange(0, 3368, 97)
    far = distances.compute(x[sample], y)
    labels |= {"query_pids": qp[sample], "query_camids": qc[sample]}
    few = ranking.evaluate(far, **labels)
    np.testing.assert_allclose(few.average_precision, found.average_precision[sample], atol=1e-4)
    matches = ranking.find_matches(**labels | {"query_pids": qp, "query_camids": qc})
    assert np.mean((matches.true >= 0).sum(axis=1)) == pytest.approx(14.74, abs=0.005)
    assert np.mean((matches.removed >= 0).sum(axis=1)) == pytest.approx(3.89, abs=0.005)


def test_the_course_measure_by_hand():
    truth = {"q1": {"a", "b"}, "q2": {"c"}}
    # q1: hits at 1 and 3 of its list; q2 has no list
    value = ranking.evaluate_lists({"q1": ["a", "x", "b"]}, truth)
    assert value == pytest.approx((1 / 1 + 2 / 3) / 2 / 2)
    assert ranking.evaluate_lists({"q1": ["a"], "q2": ["c"]}, truth) == pytest.approx(0.75)
    with pytest.raises(InputError, match="'q1' names an image twice"):
        ranking.evaluate_lists({"q1": ["a", "a"]}, truth)
    with pytest.raises(InputError, match="no ground truth"):
        ranking.evaluate_lists({}, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distances": np.zeros((1, 3))}, r"need \(1, 2\)"),
        ({"distances": np.array([[0.0, np.nan]])}, "query 0 hold NaN"),
        ({"gallery_pids": [1, -2]}, "pid -2: who it shows is not known"),
        ({"gallery_camids": None}, "go together"),
        ({"query_camids": [1, 2]}, "one entry for each image"),
        ({"max_rank": 0}, "max_rank is 0"),
    ],
)
def test_bad_input_is_named(changes, message):
    good = {
        "query_pids": [1],
        "gallery_pids": [1, 2],
        "query_camids": [1],
        "gallery_camids": [2, 2],
    }
    arguments = {"distances": np.zeros((1, 2))} | good | changes
    with pytest.raises(InputError, match=message):
        ranking.evaluate(arguments.pop("distances"), **arguments)


def test_features_that_cannot_be_ranked_are_named():
    labels = {"query_pids": [1], "gallery_pids": [1, 2]}
    good = np.ones((2, 3))
    with pytest.raises(InputError, match="gallery features: row 1 is not finite"):
        ranking.evaluate_features(good[:1], [[1, 1, 1], [1, np.inf, 1]], **labels)
    with pytest.raises(InputError, match="differ"):
        ranking.evaluate_features(np.ones((1, 2)), good, **labels)
    with pytest.raises(InputError, match="2 query features, but 1 pids"):
        ranking.evaluate_features(good, good, **labels)
    with pytest.raises(InputError, match="unknown metric 'l1'; known: cosine, euclidean"):
        ranking.evaluate_features(good[:1], good, **labels, metric="l1")
