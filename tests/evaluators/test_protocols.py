import numpy as np
import pytest

from market_jax.data import descriptors
from market_jax.data.datasets import Dataset
from market_jax.data.schema import Schema
from market_jax.errors import InputError
from market_jax.evaluators import protocols, reid


def rows(pid, camid):
    return {
        "pid": np.array(pid),
        "camid": np.array(camid),
        "name": np.array([f"{i:06d}.jpg" for i in range(len(pid))]),
    }


ROWS = rows([1, 1, 1, 1, 2, 2, 2, 0, 0, -1], [1, 1, 2, 2, 1, 3, 3, 1, 2, 1])


def test_market_asks_once_for_each_person_and_camera():
    query, gallery, by_camera = protocols.market(ROWS)
    asked = list(zip(query["pid"].tolist(), query["camid"].tolist(), strict=True))
    assert sorted(asked) == [(1, 1), (1, 2), (2, 1), (2, 3)]
    assert by_camera
    np.testing.assert_array_equal(gallery["name"], ROWS["name"])
    chosen = {tuple(protocols.market(ROWS, seed).query["name"]) for seed in range(20)}
    assert len(chosen) > 1, "the seed chooses"
    again = protocols.market(ROWS)
    np.testing.assert_array_equal(again.query["name"], query["name"])


def test_course_asks_with_a_fifth_of_the_persons_images():
    many = rows(np.repeat([3, 4, 5, 0], 10), np.ones(40))
    query, gallery, by_camera = protocols.course(many)
    assert len(query["pid"]) == 6
    assert np.all(query["pid"] > 0)
    assert len(gallery["pid"]) == 34
    assert not set(query["name"]) & set(gallery["name"])
    assert not by_camera
    with_self = protocols.course(many, with_self=True)
    np.testing.assert_array_equal(with_self.query["name"], query["name"])
    assert len(with_self.gallery["pid"]) == 40


def test_what_the_images_allow():
    assert list(protocols.make(ROWS)) == ["market", "course", "course_with_self"]
    unknown = ROWS | {"camid": np.full(10, -1)}
    assert list(protocols.make(unknown)) == ["course", "course_with_self"]
    own = protocols.make(ROWS, rows([2], [2]))["market"]
    assert own.query["pid"].tolist() == [2]
    assert len(own.gallery["pid"]) == 10
    with pytest.raises(InputError, match="needs every image's camera"):
        protocols.market(unknown)
    with pytest.raises(InputError, match="no image shows a known person"):
        protocols.make(rows([0, -1], [1, 1]))


def test_a_protocol_without_a_match_is_left_out():
    one_camera = rows([1, 1, 2, 2, 3, 3], [1] * 6)
    assert list(protocols.make(one_camera)) == ["course", "course_with_self"]


def test_labels_are_what_ranking_takes():
    assert set(protocols.market(ROWS).labels) == {
        "query_pids",
        "gallery_pids",
        "query_camids",
        "gallery_camids",
    }
    assert set(protocols.course(ROWS).labels) == {"query_pids", "gallery_pids"}


def test_descriptors_by_hand():
    images = np.zeros((2, 64, 32, 3), np.uint8)
    images[0, :8] = (255, 0, 0)  # the first stripe is red, the others black
    found = descriptors.color_histogram(images).reshape(2, 8, 64)
    np.testing.assert_array_equal(found[0, 0], np.eye(64)[3 * 16])
    np.testing.assert_array_equal(found[0, 1:], np.tile(np.eye(64)[0], (7, 1)))
    images[1, :, :16] = 100
    small = descriptors.pixels(images).reshape(2, 32, 16, 3)
    np.testing.assert_allclose(small[1, :, :8], 50)
    np.testing.assert_allclose(small[1, :, 8:], -50)


@pytest.mark.parametrize("name", descriptors.__all__)
@pytest.mark.parametrize("size", [(128, 64), (33, 17), (4, 3)])
def test_descriptors_of_any_size(name, size):
    images = np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8)
    found = getattr(descriptors, name)(images)
    assert found.shape[0] == 3
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_a_training_is_told_at_once_what_cannot_be_judged():
    """By what its evaluator would say after the first epoch."""
    many = rows(np.repeat([3, 4, 5], 10), np.full(30, -1))
    dataset = Dataset(Schema("made", {}), lambda split: many)
    reid.check(dataset, protocols=("course",), metric="euclidean")
    message = r"'market' is not possible .* \(the camera of 30 images is not known\); possible: c"
    with pytest.raises(InputError, match=message):
        reid.check(dataset)
    assert reid.evaluate.check is reid.check
