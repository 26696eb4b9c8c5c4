import dataclasses
import io
import itertools

import numpy as np
import pytest
from PIL import Image

from data_prep.synthetic import cameras, figure, people, release
from market_jax.data.attributes import CLASSES


def look(seed=0, **labels):
    """A person whose labels are changed and whose other looks stay."""
    person = people.person(np.random.default_rng(seed), (0, 1))
    return dataclasses.replace(person, attributes=person.attributes | labels)


def drawn(person, yaw):
    image = Image.new("RGB", (128, 256), (90, 90, 90))
    figure.draw(image, person, figure.Pose(yaw, 0.8, 0.1), foot=(64, 250), scale=230)
    return np.asarray(image, int)


@pytest.mark.parametrize("name", [n for n in CLASSES if n not in ("age", "up_color", "down_color")])
def test_every_binary_attribute_can_be_seen(name):
    """From most sides: a bag may hide behind its owner."""
    plain = {"backpack": 0, "bag": 0, "handbag": 0, "hat": 0, "clothes": 1, "down": 0, "up": 1}
    shares = []
    for yaw in (0.3, 1.5, 2.9, 4.4):
        a, b = (drawn(look(**(plain | {name: value})), yaw) for value in (0, 1))
        shares.append(np.mean(np.abs(a - b).max(axis=-1) > 25))
    assert np.sum(np.array(shares) > 0.002) >= 3, f"{name} changes {shares} of the pixels"


def test_colours_can_be_seen():
    rng = np.random.default_rng(0)
    means = {}
    for label, color in enumerate(CLASSES["up_color"][:-1]):
        person = people.person(np.random.default_rng(3), (label, 0))
        means[color] = np.asarray(person.up).mean(axis=0)
    names = list(means)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert np.abs(means[a] - means[b]).max() > 35, (a, b)
    many = people.person(rng, (8, 9))
    assert len(set(many.up)) == len(set(many.down)) == 3


def test_cameras_differ():
    rng = np.random.default_rng(0)
    person = people.person(rng, (2, 6))
    crops = []
    for camera in cameras.CAMERAS.values():
        content = cameras.shoot(camera, person, np.random.default_rng(5))
        crops.append(np.asarray(Image.open(io.BytesIO(content)), float))
    assert all(crop.shape == (128, 64, 3) for crop in crops)
    for i, a in enumerate(crops):
        for b in crops[i + 1 :]:
            assert np.abs(a - b).mean() > 5


def test_travel_times_follow_the_map():
    """Mean frames between two cameras are those of the map, to a few percent."""
    times = {}
    for seed in range(400):
        visits = list(release.visits(np.random.default_rng(seed)))
        assert len({camid for camid, _, _ in visits}) == len(visits) >= 3
        assert len({sequence for _, sequence, _ in visits}) == 1
        for (a, _, start), (b, _, end) in itertools.pairwise(visits):
            times.setdefault((a, b), []).append(end - start)
    assert len(times) == 30
    for (a, b), frames in times.items():
        assert np.mean(frames) == pytest.approx(cameras.travel_frames(a, b), rel=0.08)
        assert np.std(frames) < 0.2 * np.mean(frames)
