import itertools

import numpy as np
import pytest

from data_prep.synthetic import cameras, release
from market_jax.data import filenames
from market_jax.errors import InputError
from market_jax.evaluators import protocols
from market_jax.metrics import ranking
from market_jax.retrieval import spatio_temporal
from market_jax.retrieval.training import Training
from tests.conftest import real


def learner(training):
    return Training(lambda: training, None)


def visits(*rows):
    names = ("pid", "camid", "sequence", "frame")
    return dict(zip(names, np.array(rows, np.int64).T, strict=True))


def test_travel_times_by_hand():
    # two people take 1000 and 1200 frames from camera 1 to camera 2; one comes back in 3000
    training = visits(
        (1, 1, 1, 100), (1, 1, 1, 300), (1, 2, 1, 1200), (2, 1, 1, 0), (2, 2, 1, 1200),
        (3, 2, 1, 0), (3, 1, 1, 3000), (0, 2, 1, 9000), (-1, 1, 1, 9000),
    )  # fmt: skip
    model = spatio_temporal.fit(training, bin_frames=100, bins=100, sigma=0.01)
    np.testing.assert_array_equal(np.flatnonzero(model.share[2, 1]), [10, 12])
    np.testing.assert_array_equal(np.flatnonzero(model.share[1, 2]), [30])
    assert model.share[2, 1, 10] == 0.5
    query, gallery = visits((1, 2, 1, 2050)), visits((1, 1, 1, 1000), (2, 1, 1, 2000))
    np.testing.assert_allclose(spatio_temporal.probabilities(model, query, gallery), [[0.5, 0]])


def test_travel_times_are_smoothed():
    training = visits((1, 1, 1, 0), (1, 2, 1, 1000), (2, 1, 1, 0), (2, 2, 1, 1450))
    model = spatio_temporal.fit(training, bin_frames=100, bins=20, sigma=2.0)
    bins = np.arange(20)
    expected = np.zeros(20)
    for time in (10, 14):  # the window ends after three sigma
        window = np.exp(-((bins - time) ** 2) / (2 * 2.0**2)) * (np.abs(bins - time) <= 6)
        expected += window
    np.testing.assert_allclose(model.share[2, 1], expected / expected.sum(), rtol=1e-3)


def test_frames_go_on_from_sequence_to_sequence():
    training = visits((1, 1, 1, 500), (1, 1, 2, 10), (2, 2, 1, 900), (2, 2, 2, 30), (1, 2, 2, 40))
    start = spatio_temporal.fit(training).start
    frames = spatio_temporal.continuous_frames(training, start)
    np.testing.assert_array_equal(frames, [500, 510, 900, 930, 940])


def test_the_lengths_of_market_1501s_sequences():
    training = visits((1, 1, 1, 500), (1, 6, 4, 10))
    start = spatio_temporal.fit(training, lengths="market1501").start
    frames = spatio_temporal.continuous_frames(training, start)
    np.testing.assert_array_equal(frames, [500, 87551 + 131268 + 95817 + 10])
    with pytest.raises(InputError, match="camid 7 does not occur"):
        spatio_temporal.continuous_frames(visits((1, 7, 1, 5)), start)


def test_joined_score_is_as_published():
    training = visits((1, 1, 1, 0), (1, 2, 1, 1000))
    query, gallery = visits((9, 2, 1, 1010)), visits((9, 1, 1, 0), (9, 1, 1, 900))
    found = spatio_temporal.spatio_temporal(
        query, gallery, np.array([[0.4, 0.4]]), training=learner(training), sigma=0.01
    )
    appearance = 1 / (1 + np.exp(-5 * 0.6))
    expected = [1 - appearance / (1 + 2 * np.exp(-5)), 1 - appearance / (1 + 2)]
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("training", "query", "message"),
    [
        (visits((1, 1, 1, -1)), None, "every image's frame"),
        (visits((1, 1, 1, 5), (2, 2, 1, 5)), None, "no person passes two cameras"),
        (visits((0, 1, 1, 5)), None, "need training images of persons"),
        (visits((1, 1, 1, 5), (1, 2, 1, 9)), visits((1, 3, 1, 5)), "camid 3 does not occur"),
    ],
)
def test_spatio_temporal_names_what_is_missing(training, query, message):
    side = query or training
    with pytest.raises(InputError, match=message):
        spatio_temporal.spatio_temporal(side, side, np.zeros((1, 1)), training=learner(training))
    with pytest.raises(InputError, match="spatio_temporal learns from training images"):
        spatio_temporal.spatio_temporal(side, side, np.zeros((1, 1)))
    with pytest.raises(InputError, match="needs cosine distances, these are euclidean"):
        spatio_temporal.spatio_temporal(side, side, np.zeros((1, 1)), metric="euclidean")


NAMES = ("pid", "camid", "sequence", "frame")


def test_recovers_the_travel_times_of_the_synthetic_cameras():
    """People take `cameras.travel_frames`, give or take a tenth; the model has the walks alone."""
    rng = np.random.default_rng(0)
    walks = [(pid, *visit) for pid in range(1, 3000) for visit in release.visits(rng)]
    training = {k: v[v[:, 2] == 1, i] for i, k in enumerate(NAMES) for v in [np.array(walks)]}
    model = spatio_temporal.fit(training, bin_frames=10, bins=1000, sigma=8)
    for a, b in itertools.permutations(cameras.CAMERAS, 2):
        mode = 10 * np.argmax(model.share[b, a])
        assert mode == pytest.approx(cameras.travel_frames(a, b), rel=0.1, abs=20), (a, b)


def test_travel_times_tell_people_apart_on_the_official_lists():
    """From training names alone; over the official queries and gallery, no picture is seen."""
    sides = {}
    for side in ("train", "val", "test"):
        path = real(f"market1501-official/market_{side}.csv")
        names = [line.split(",")[0].rsplit("/")[-1] for line in path.read_text().splitlines()[1:]]
        rows = [filenames.parse(name, "market1501") for name in names]
        sides[side] = {k: np.array([row[k] for row in rows]) for k in NAMES}
    query, gallery = sides["val"], sides["test"]
    assert (len(query["pid"]), len(gallery["pid"])) == (3368, 13115)
    share = spatio_temporal.probabilities(spatio_temporal.fit(sides["train"]), query, gallery)
    protocol = protocols.Protocol(query, gallery, by_camera=True)
    found = ranking.evaluate(-share, **protocol.labels)
    chance = np.random.default_rng(0).random(share.shape)
    assert found.mAP > 5 * ranking.evaluate(chance, **protocol.labels).mAP
