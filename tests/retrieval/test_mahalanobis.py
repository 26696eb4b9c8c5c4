"""The learned weighting of features, on people who differ in some of the dimensions alone."""

import functools

import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.evaluators import protocols
from market_jax.metrics import ranking
from market_jax.retrieval import chain, mahalanobis
from market_jax.retrieval.training import Training

TELLING, NOISE = 6, 24


def people(first, count, seed, turn=None):
    """Columns of so many persons, 6 images each: 6 dimensions tell them apart, 24 do not."""
    rng = np.random.default_rng(seed)
    pid = np.repeat(np.arange(first, first + count), 6)
    centers = rng.normal(size=(first + count, TELLING))
    telling = centers[pid] + 0.3 * rng.normal(size=(len(pid), TELLING))
    feature = np.concatenate([telling, rng.normal(size=(len(pid), NOISE))], axis=1)
    feature = feature if turn is None else feature @ turn
    camid = np.tile(np.arange(1, 7), count)
    return {"pid": pid, "camid": camid, "feature": feature.astype(np.float32)}


def judge(rows, *transforms):
    """mAP on the persons."""
    protocol = protocols.market(rows)
    sides = protocol.query, protocol.gallery
    found = chain.apply(*sides, transforms=transforms, metric="euclidean")
    return ranking.evaluate(found, **protocol.labels).mAP


@pytest.mark.parametrize("rank", [0, 8])
def test_learns_on_some_persons_what_tells_others_apart(rank):
    turn = None
    if rank:  # no single dimension tells anything
        turn = np.linalg.qr(np.random.default_rng(5).normal(size=(TELLING + NOISE,) * 2))[0]
    training, others = people(1, 60, 0, turn), people(101, 20, 1, turn)

    learned = functools.partial(
        mahalanobis.mahalanobis, training=Training(None, lambda: training), rank=rank
    )
    before, after = judge(others), judge(others, learned)
    assert before < 0.6
    assert after > before + 0.15


def test_weighs_what_tells_more_than_noise_and_is_repeatable():
    training = people(1, 60, 0)
    first, second = (mahalanobis.learn(training["feature"], training["pid"]) for _ in range(2))
    weights = np.logaddexp(0, first["diagonal"])
    assert weights[:TELLING].min() > 2 * weights[TELLING:].max()
    np.testing.assert_array_equal(first["diagonal"], second["diagonal"])


def test_without_learning_it_is_the_plain_distance():
    training, others = people(1, 12, 0), people(20, 4, 1)
    weights = mahalanobis.learn(training["feature"], training["pid"], steps=0)
    found = np.asarray(mahalanobis.transform(weights, others["feature"]))
    np.testing.assert_allclose(found, others["feature"], rtol=1e-3)


def test_names_what_is_missing():
    few = people(1, 9, 0)
    with pytest.raises(InputError, match="only 9 of the training identities"):
        mahalanobis.learn(few["feature"], few["pid"])
    with pytest.raises(InputError, match="mahalanobis learns from training images"):
        mahalanobis.mahalanobis(few, few)
