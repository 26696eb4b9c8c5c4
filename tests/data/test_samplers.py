import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_jax.data import samplers
from market_jax.errors import InputError


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 3))
def test_an_epoch_shows_no_image_twice(size, batch_size, seed):
    if batch_size > size:
        with pytest.raises(InputError, match=f"the training split has {size} images"):
            samplers.shuffled(size, batch_size, seed=seed)
        return
    sampler = samplers.shuffled(size, batch_size, seed=seed)
    for epoch in range(2):
        steps = range(epoch * sampler.steps, (epoch + 1) * sampler.steps)
        rows = np.concatenate([sampler.indices(step) for step in steps])
        assert len(np.unique(rows)) == len(rows) == size // batch_size * batch_size


def test_order_is_a_function_of_seed_and_step():
    a, b = (samplers.shuffled(50, 8, seed=3) for _ in range(2))
    for step in (17, 2, 40):  # b is asked in another order
        a.indices(step - 1)
        np.testing.assert_array_equal(a.indices(step), b.indices(step))
    assert not np.array_equal(a.indices(0), a.indices(6))
    assert not np.array_equal(a.indices(0), samplers.shuffled(50, 8, seed=4).indices(0))


@given(st.integers(1, 40), st.integers(1, 12))
def test_sequential_shows_all_once(size, batch_size):
    sampler = samplers.sequential(size, batch_size)
    rows = np.concatenate([sampler.indices(step) for step in range(sampler.steps)])
    assert len(rows) % batch_size == 0
    np.testing.assert_array_equal(rows[rows != samplers.PADDING], np.arange(size))


@given(st.lists(st.integers(1, 7), min_size=4, max_size=12), st.integers(1, 3), st.integers(2, 4))
def test_a_batch_by_identity_has_so_many_persons_with_so_many_images(sizes, each, people):
    pids = np.repeat(np.arange(len(sizes)), sizes)  # the first is nobody
    if people > len(sizes) - 1:
        with pytest.raises(InputError, match=f"the training split has {len(sizes) - 1} identities"):
            samplers.by_identity(pids, people * each, num_instances=each, seed=0)
        return
    sampler = samplers.by_identity(pids, people * each, num_instances=each, seed=0)
    assert sampler.steps == max(len(pids) // (people * each), 1)
    lap = (len(sizes) - 1) // people
    seen = []
    for step in range(lap):
        rows = sampler.indices(step).reshape(people, each)
        shown = pids[rows]
        assert (shown == shown[:, :1]).all()
        assert shown.min() > 0
        for pid, own in zip(shown[:, 0], rows, strict=True):
            if sizes[pid] >= each:
                assert len(set(own)) == each
        seen.extend(shown[:, 0])
    assert len(set(seen)) == len(seen) == lap * people  # nobody twice before all were shown
    np.testing.assert_array_equal(sampler.indices(5), sampler.indices(5))


@pytest.mark.parametrize("each", [0, 2])
def test_each_data_set_has_its_part_of_a_batch(each):
    datasets = np.repeat([0, 1], [60, 12])
    pids = 1 + np.arange(72) // 3
    sampler = samplers.in_equal_parts(pids, datasets, 8, num_instances=each, seed=0)
    assert sampler.steps == 9
    shown = set()
    for step in range(15):
        rows = sampler.indices(step)
        np.testing.assert_array_equal(datasets[rows], [0] * 4 + [1] * 4)
        if each:
            persons = pids[rows].reshape(4, 2)
            assert len(set(persons[:, 0])) == 4
            np.testing.assert_array_equal(persons[:, 0], persons[:, 1])
        shown.update(rows)
    assert len(shown) > 40  # both are shuffled
    with pytest.raises(InputError, match="batch_size is 9; it must be a multiple of 2"):
        samplers.in_equal_parts(pids, datasets, 9, num_instances=each, seed=0)
    with pytest.raises(InputError, match="each of 2 data sets has its part of 28 images: batch_s"):
        samplers.in_equal_parts(pids, datasets, 28, num_instances=each, seed=0)


@pytest.mark.parametrize("each", [0, 2])
def test_without_images_there_are_no_batches(each):
    nothing = np.zeros(0, int)
    with pytest.raises(InputError, match="the training split has 0 i"):
        samplers.in_equal_parts(nothing, nothing, 8, num_instances=each, seed=0)


@pytest.mark.parametrize("each", [0, 2])
def test_one_part_is_the_sampler_itself(each):
    pids, draw = 1 + np.arange(40) // 4, {"seed": 3, **({"num_instances": 2} if each else {})}
    sampler = samplers.in_equal_parts(pids, np.zeros(40, int), 8, num_instances=each, seed=3)
    usual = samplers.by_identity(pids, 8, **draw) if each else samplers.shuffled(40, 8, **draw)
    assert sampler.steps == usual.steps
    for step in range(7):
        np.testing.assert_array_equal(sampler.indices(step), usual.indices(step))


def test_batches_by_identity_must_be_whole():
    with pytest.raises(InputError, match="batch_size is 10; it must be 2 or more times"):
        samplers.by_identity(np.arange(1, 50), 10, num_instances=4, seed=0)


@given(st.lists(st.integers(-1, 9), min_size=1, max_size=90), st.integers(1, 5), st.integers(0, 3))
def test_grouped_gives_every_row_once_and_few_of_a_person_side_by_side(pids, each, seed):
    pids = np.array(pids)
    sampler = samplers.grouped(pids, 16, num_instances=each, seed=seed)
    rows = np.concatenate([sampler.indices(step) for step in range(sampler.steps)])
    used = rows[rows != samplers.PADDING]
    assert sorted(used.tolist()) == list(range(len(pids)))
    assert np.all(rows[len(used) :] == samplers.PADDING)
    people = pids[used]
    assert np.all(np.diff((people <= 0).astype(int)) >= 0), "nobody comes last"
    known = people[people > 0]
    first = known[: min(len(known), each * len(np.unique(known)))]
    starts = np.flatnonzero(np.r_[True, first[1:] != first[:-1]])
    if len(np.unique(known)) > 1:
        lengths = np.diff(np.r_[starts, len(first)])
        assert lengths[:-1].max(initial=0) <= 2 * each


def test_grouped_batches_hold_many_persons():
    """Sorted by name, a batch of 64 would hold four of these."""
    pids = np.repeat(np.arange(1, 41), 16)
    sampler = samplers.grouped(pids, 64, num_instances=4)
    for step in range(sampler.steps):
        found, counts = np.unique(pids[sampler.indices(step)], return_counts=True)
        assert len(found) == 16
        assert set(counts) == {4}


def test_grouped_needs_images_of_a_person():
    with pytest.raises(InputError, match="num_instances is 0; it must be 1 or more"):
        samplers.grouped(np.array([1, 2]), 4, num_instances=0)


def test_images_of_a_person_are_of_as_many_cameras_as_can_be():
    pids = np.repeat([1, 2, 3, 4], 12)
    camids = np.tile([1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4], 4)
    sampler = samplers.by_identity(pids, 16, num_instances=4, seed=0, camids=camids)
    for step in range(50):
        rows = sampler.indices(step).reshape(4, 4)
        assert [sorted(camids[r]) for r in rows] == [[1, 2, 3, 4]] * 4
    many = samplers.by_identity(pids, 20, num_instances=10, seed=0, camids=camids)
    counts = np.bincount(camids[many.indices(0)[:10]], minlength=5)
    assert counts.tolist() == [0, 6, 2, 1, 1], "each camera's turn until it has no more"
    drawn = {row for step in range(50) for row in sampler.indices(step).tolist()}
    assert drawn == set(range(48)), "every image comes up"


def test_a_person_comes_up_again_in_a_batch_only_when_asked():
    pids = np.repeat([1, 2, 3], 4)
    with pytest.raises(InputError, match="the training split has 3 identities"):
        samplers.by_identity(pids, 16, num_instances=2, seed=0)
    rows = samplers.by_identity(pids, 16, num_instances=2, seed=0, again=True).indices(0)
    assert sorted(np.bincount(pids[rows], minlength=4)[1:].tolist()) == [4, 6, 6]


def test_two_samplers_side_by_side():
    first, second = samplers.sequential(8, 4), samplers.shuffled(6, 2, seed=0)
    both = samplers.side_by_side(first, second)
    assert both.steps == 2
    assert both.indices(1).tolist() == [4, 5, 6, 7, *second.indices(1).tolist()]


@pytest.mark.parametrize(
    ("size", "multiple", "expected"),
    [
        (0, 1, []),
        (1, 1, [1]),
        (2, 1, [4]),
        (5, 1, [8]),
        (63, 1, [8] * 8),
        (75, 1, [64, 8, 4]),
        (64, 1, [64]),
        (65, 1, [64, 1]),
        (141, 1, [64, 64, 8, 8]),
        (3, 16, [16]),
        (70, 16, [64, 16]),
    ],
)
def test_few_sizes_cover_every_image_once_in_order(size, multiple, expected):
    sampler = samplers.few_sizes(size, 64, multiple)
    batches = [sampler.indices(step) for step in range(sampler.steps)]
    assert [len(batch) for batch in batches] == expected
    rows = np.concatenate([*batches, np.empty(0, int)])
    assert rows[rows != samplers.PADDING].tolist() == list(range(size))
    assert (np.diff((rows != samplers.PADDING).astype(int)) <= 0).all()  # padding comes last


def test_a_small_batch_has_its_size():
    assert [len(samplers.few_sizes(7, 4).indices(step)) for step in range(2)] == [4, 4]
