import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.metrics import verification

PAIRS = verification.from_distances([0.1, 0.2, 0.3, 0.6], [0.25, 0.5, 0.7, 0.9])


def test_a_threshold_by_hand():
    assert verification.judge(PAIRS, 0.3) == (0.3, 3 / 4, 3 / 4, 1 / 4)
    # F1 at 0.1, 0.2, 0.25, 0.3, 0.5, 0.6, 0.7: 2/5, 4/6, 4/7, 6/8, 6/9, 8/10, 8/11
    assert verification.calibrate(PAIRS) == (0.6, 4 / 6, 1, 2 / 4)


def test_the_curve_by_hand():
    found = verification.roc(PAIRS)
    assert found["tpr_at_fpr_1e-03"] == 0.5, "two of the same are nearer than any of the others"
    assert found["equal_error_rate"] == pytest.approx(0.25)


def test_equal_error_rate_between_two_values():
    # nothing at first, then everybody at once: the line between crosses at one half
    assert verification.roc(verification.from_distances([1.0], [1.0]))[
        "equal_error_rate"
    ] == pytest.approx(0.5)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_counts_the_pairs_that_ranking_counts(metric):
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(6, 4)), rng.normal(size=(30, 4))
    labels = {
        "query_pids": np.arange(6) % 3 + 1,
        "gallery_pids": np.arange(30) % 5 - 1,
        "query_camids": np.arange(6) % 2,
        "gallery_camids": np.arange(30) % 3,
    }
    pairs = verification.count_pairs(query, gallery, **labels, metric=metric)
    pid, other = labels["query_pids"][:, None], labels["gallery_pids"]
    same = pid == other
    own = same & (labels["query_camids"][:, None] == labels["gallery_camids"])
    counted = (other >= 0) & ~own
    assert pairs.same.sum() == np.sum(same & counted)
    assert pairs.different.sum() == np.sum(~same & counted)
    if metric == "cosine":
        x, y = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (query, gallery))
        far = 1 - x @ y.T
    else:
        far = ((query[:, None] - gallery) ** 2).sum(-1)
    exact = verification.from_distances(far[same & counted], far[~same & counted])
    for name, value in verification.roc(exact).items():
        assert verification.roc(pairs)[name] == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("sizes", [(0, 2), (2, 0)])
def test_where_one_side_is_empty_there_are_no_pairs(metric, sizes):
    query, gallery = (np.ones((size, 4)) for size in sizes)
    labels = {
        f"{side}_{key}": np.ones(size, int)
        for side, size in zip(("query", "gallery"), sizes, strict=True)
        for key in ("pids", "camids")
    }
    pairs = verification.count_pairs(query, gallery, **labels, metric=metric)
    with pytest.raises(InputError, match="0 pairs of the same person"):
        verification.calibrate(pairs)


def test_pairs_of_both_kinds_are_needed():
    with pytest.raises(InputError, match="0 pairs of the same person"):
        verification.roc(verification.from_distances([], [1.0]))
