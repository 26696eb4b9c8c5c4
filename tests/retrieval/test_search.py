import jax
import numpy as np
import pytest

from market_jax import devices
from market_jax.errors import InputError
from market_jax.retrieval import distances, search


def sort(far, k):
    at = np.argsort(far, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(far, at, axis=1), at


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("gallery", "k"), [(5, 5), (40, 3), (700, 7), (701, 1)])
def test_is_a_sort(metric, gallery, k):
    rng = np.random.default_rng(gallery)
    x, y = rng.normal(size=(9, 8)), rng.normal(size=(gallery, 8))
    near, at, far = search.top_k(x, y, k, metric=metric, farthest=True)
    matrix = distances.compute(x, y, metric)
    expected = sort(matrix, k)
    np.testing.assert_array_equal(at, expected[1])
    np.testing.assert_allclose(near, expected[0], atol=1e-5)
    np.testing.assert_allclose(far, matrix.max(axis=1), atol=1e-5)


@pytest.mark.parametrize("devices_used", [1, 2])
@pytest.mark.parametrize("piece", [None, 100, 64])
def test_of_equals_the_first_comes_first(devices_used, piece):
    """Features of few values, so that nearly everything ties, in every cut and on every mesh."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 3, (11, 2)), rng.integers(0, 3, (650, 2))
    mesh = devices.make_mesh(jax.devices()[:devices_used])
    _, at = search.top_k(x, y, 9, metric="euclidean", mesh=mesh, piece=piece)
    matrix = ((x[:, None] - y) ** 2).sum(-1)
    np.testing.assert_array_equal(at, sort(matrix, 9)[1])


@pytest.mark.parametrize("size", [5, 8, 9, 31, 33, 64, 65])
def test_a_gallery_of_any_size_is_searched_in_pieces(size):
    """Pieces are filled up; what fills them is never an answer, whatever its distance were."""
    rng = np.random.default_rng(size)
    x, y = rng.normal(size=(3, 4)), 5 + rng.normal(size=(size, 4))
    near, at, far = search.top_k(x, y, 5, metric="euclidean", piece=32, farthest=True)
    matrix = ((x[:, None] - y) ** 2).sum(-1)
    np.testing.assert_array_equal(at, sort(matrix, 5)[1])
    np.testing.assert_allclose(near, sort(matrix, 5)[0], rtol=1e-5)
    np.testing.assert_allclose(far, matrix.max(axis=1), rtol=1e-5)


def test_a_gallery_on_disk(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.normal(size=(300, 4)).astype(np.float32)
    stored = search.store(tmp_path / "gallery.npy", np.split(y, 3), y.shape)
    assert isinstance(stored, np.memmap)
    x = rng.normal(size=(5, 4))
    found, expected = (search.top_k(x, g, 4, piece=64) for g in (stored, y))
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("devices_used", [1, 2])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("value", [np.nan, -np.inf, 3e19])
def test_a_row_that_is_not_finite_is_named(devices_used, metric, value):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3, 4)), rng.normal(size=(650, 4)).astype(np.float32)
    y[437, 2] = value
    mesh = devices.make_mesh(jax.devices()[:devices_used])
    for piece in (None, 100):
        with pytest.raises(InputError, match="gallery features: row 437 is not finite, or too"):
            search.top_k(x, y, 5, metric=metric, mesh=mesh, piece=piece)
    with pytest.raises(InputError, match="query features: row 0 is not finite"):
        search.top_k(np.full((1, 4), np.nan), x, 1, metric=metric, mesh=mesh)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8])
def test_features_of_any_kind_are_those_of_float32(dtype):
    rng = np.random.default_rng(0)
    x, y = ((4 * rng.normal(size=(count, 6))).astype(dtype) for count in (7, 333))
    near, at = search.top_k(x, y, 5)
    matrix = distances.compute(x, y)
    np.testing.assert_allclose(near, sort(matrix, 5)[0], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(matrix, at, axis=1), near, atol=1e-6)


def test_a_store_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "gallery.npy"
    for blocks in ([np.zeros((2, 4))], [np.zeros((4, 4))], [np.zeros((3, 5))]):
        with pytest.raises(InputError, match=r"gallery.npy: .* \(3, 4\)"):
            search.store(path, blocks, (3, 4))
    assert list(tmp_path.iterdir()) == []


def test_recall_is_the_share_that_was_found():
    assert search.recall([[1, 2], [3, 4]], [[2, 1], [3, 5]]) == 0.75


@pytest.mark.parametrize("k", [0, 4])
def test_k_is_at_most_the_gallery(k):
    with pytest.raises(InputError, match=f"k is {k}; it must be 1 to 3"):
        search.top_k(np.ones((1, 2)), np.ones((3, 2)), k)


def test_approximate_indexes_say_how_much_they_find():
    pytest.importorskip("faiss", reason="needs the extra: pip install faiss-cpu")
    rng = np.random.default_rng(0)
    y = rng.normal(size=(2000, 16))
    x = y[:50] + 0.1 * rng.normal(size=(50, 16))
    exact = search.top_k(x, y, 5)[1]
    for kind, least in (("Flat", 1.0), ("IVF16,Flat", 0.5)):
        index = search.build_index(y, kind)
        near, at = search.search_index(index, x, 5)
        assert search.recall(at, exact) >= least
        np.testing.assert_allclose(
            near, np.take_along_axis(distances.compute(x, y), at, axis=1), atol=1e-5
        )
    with pytest.raises(InputError, match="'nonsense'"):
        search.build_index(y, "nonsense")
