import functools
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from market_jax import devices
from market_jax.kernels import convolution, fused, planned
from market_jax.kernels.fused import Pending, Spec
from market_jax.kernels.planned import Planned
from market_jax.kernels.xla_convolution import Geometry

pytestmark = pytest.mark.skipif(
    not convolution.has_onednn(), reason="needs the extra: pip install ./onednn"
)

# the largest difference, of the largest value
CLOSE = {jnp.float32: 3e-5, jnp.bfloat16: 2e-2}
COMPUTED = [dtype for dtype in CLOSE if convolution.onednn_computes(dtype)]
DTYPES = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(
            dtype,
            marks=pytest.mark.skipif(dtype not in COMPUTED, reason="oneDNN needs AVX-512 for it"),
        )
        for dtype in CLOSE
    ],
)
ACTIVATIONS = pytest.mark.parametrize("activation", fused.ACTIVATIONS)


def sides(*padding):
    top, bottom, left, right = padding
    return (top, bottom), (left, right)


def geometry(shape, window, stride=1, padding=None, groups=1):
    padding = sides(*[window // 2] * 4) if padding is None else padding
    return Geometry(shape, (window, window), (stride, stride), padding, (1, 1), groups)


# name -> (geometry, transposed, channels of the convolution's input and output)
KINDS = {
    "1x1": (geometry((9, 7), 1), False, 20, 33),
    "1x1, many rows": (geometry((60, 40), 1), False, 3, 24),
    "1x1, strided": (geometry((9, 8), 1, 2), False, 5, 8),
    "depthwise 3x3": (geometry((9, 7), 3, 1, None, 20), False, 20, 20),
    "depthwise 3x3, strided": (geometry((9, 7), 3, 2, None, 16), False, 16, 16),
    "depthwise 5x5": (geometry((6, 5), 5, 1, None, 70), False, 70, 70),
    "depthwise 5x5, strided": (geometry((40, 12), 5, 2, sides(1, 2, 1, 2), 17), False, 17, 17),
    "depthwise, not padded": (geometry((5, 6), 5, 1, sides(0, 0, 0, 0), 4), False, 4, 4),
    "grouped": (geometry((6, 5), 3, 1, None, 2), False, 8, 16),
    "depthwise, two outputs each": (geometry((6, 5), 3, 1, None, 4), False, 4, 8),
    "3x3": (geometry((6, 5), 3), False, 5, 8),
    "3x3, strided": (geometry((8, 6), 3, 2), False, 5, 8),
    "7x7, strided": (geometry((12, 8), 7, 2), False, 3, 16),
    "transposed": (geometry((6, 5), 3), True, 5, 8),
    "transposed, strided": (geometry((8, 6), 3, 2), True, 5, 8),
}


def draw(kind, dtype, images=3, seed=0):
    """Input, scale and shift, weights, bias of a kind, and the shape of its output."""
    g, transposed, channels, outputs = KINDS[kind] if isinstance(kind, str) else kind
    ends = ((*g.shape, channels), (*g.output, outputs))
    inside, outside = ends[::-1] if transposed else ends
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(images, *inside)), dtype)
    affine = jnp.asarray(rng.normal(size=(2, inside[-1])), jnp.float32)
    w = jnp.asarray(rng.normal(size=(*g.window, channels // g.groups, outputs)), dtype)
    bias = jnp.asarray(rng.normal(size=outside[-1]), jnp.float32)
    return (x, affine, w.astype(jnp.float32) / 3, bias), (images, *outside)


def assert_close(found, expected, dtype):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=CLOSE[dtype] * (1 + np.abs(b).max(initial=0)))


def derivatives(function, spec, arrays):
    """The values of a convolution, and the gradients for cotangents that differ everywhere."""

    def run(*arrays):
        values, pull = jax.vjp(functools.partial(function, spec), *arrays)
        cosines = [
            None if v is None else jnp.cos(jnp.arange(v.size)).reshape(v.shape).astype(v.dtype)
            for v in values
        ]
        if cosines[1] is not None:
            cosines[1] *= 0.01  # there are few pixels, and each counts
        return values, pull(tuple(cosines))

    return jax.jit(run)(*arrays)


def plain(spec, x, affine, w, bias):
    """In float32, whatever the dtype of x."""
    y, sums = fused.plain(spec, x.astype(jnp.float32), affine, w, bias, None)
    return y.astype(x.dtype), sums


@pytest.fixture(params=["two devices", "one device"])
def counted(request, monkeypatch):
    """The package is called directly where there is one device."""
    if request.param == "one device":
        monkeypatch.setattr(jax, "device_count", lambda: 1)


@DTYPES
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_plain_jax(kind, dtype, counted):
    arrays, _ = draw(kind, dtype)
    spec = Spec(*KINDS[kind][:2], before="relu6", moments=True)
    expected = derivatives(plain, spec, arrays)
    assert_close(derivatives(fused.convolve, spec, arrays), expected, dtype)


@ACTIVATIONS
@pytest.mark.parametrize("kind", ["1x1", "depthwise 5x5", "3x3"])
def test_every_activation_is_applied_before_and_behind(kind, activation):
    arrays, shape = draw(kind, jnp.float32)
    spec = Spec(*KINDS[kind][:2], before=activation)
    expected = derivatives(plain, spec, arrays)
    assert_close(derivatives(fused.convolve, spec, arrays), expected, jnp.float32)
    spec = spec._replace(after=activation)
    residual = jax.random.normal(jax.random.key(0), shape)
    expected = fused.plain(spec, *arrays, residual)
    assert_close(
        jax.jit(planned.infer, static_argnums=0)(spec, *arrays, residual), expected, jnp.float32
    )


@DTYPES
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_given_is_left_out(kind, dtype):
    (x, _, w, _), _ = draw(kind, dtype)
    spec = Spec(*KINDS[kind][:2])
    expected = derivatives(plain, spec, (x, None, w, None))
    assert_close(derivatives(fused.convolve, spec, (x, None, w, None)), expected, dtype)


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    window=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 2),
    padding=st.tuples(*[st.integers(0, 3)] * 4),
    channels=st.integers(1, 40),
    outputs=st.integers(1, 40),
    depthwise=st.booleans(),
    images=st.integers(1, 5),
    dtype=st.sampled_from(COMPUTED or list(CLOSE)),
)
def test_any_shape(shape, window, stride, padding, channels, outputs, depthwise, images, dtype):
    outputs = channels if depthwise else outputs
    padding = sides(*(min(side, window - 1) for side in padding))  # every window sees the map
    g = geometry(shape, window, stride, padding, channels if depthwise else 1)
    arrays, _ = draw((g, False, channels, outputs), dtype, images)
    spec = Spec(g, before="leaky_relu", moments=True)
    expected = derivatives(plain, spec, arrays)
    assert_close(derivatives(fused.convolve, spec, arrays), expected, dtype)


def test_gradients_that_nobody_wants_are_not_computed():
    (x, affine, w, bias), _ = draw("3x3", jnp.float32)
    spec = Spec(KINDS["3x3"][0], before="relu")

    def loss(function, wanted):
        arrays = {"x": x, "affine": affine, "w": w, "bias": bias}
        return lambda value: jnp.sum(function(spec, **(arrays | {wanted: value}))[0] ** 2)

    for wanted, value in {"affine": affine, "w": w, "bias": bias, "x": x}.items():
        found = jax.grad(loss(fused.convolve, wanted))(value)
        assert_close(found, jax.grad(loss(plain, wanted))(value), jnp.float32)
    text = jax.jit(jax.grad(loss(fused.convolve, "w"))).lower(w).as_text()
    (call,) = [line for line in text.splitlines() if "market_jax_Backward" in line]
    assert f"-> tensor<{'x'.join(map(str, x.shape))}xf32>" not in call


@pytest.mark.parametrize("kind", ["1x1", "depthwise 3x3", "3x3"])
def test_second_derivatives(kind):
    arrays, _ = draw(kind, jnp.float32)
    spec = Spec(*KINDS[kind][:2], before="leaky_relu", moments=True)

    def squares(function):
        def total(*arrays):
            leaves = jax.tree.leaves(derivatives(function, spec, arrays))
            return 1e-6 * sum(jnp.sum(v**2) for v in leaves)

        return jax.grad(total, (0, 1, 2, 3))(*arrays)

    assert_close(squares(fused.convolve), squares(plain), jnp.float32)


@DTYPES
@pytest.mark.parametrize("kind", ["1x1", "depthwise 5x5, strided", "3x3", "transposed"])
def test_devices_share_the_images_and_sum_what_is_summed(kind, dtype):
    arrays, _ = draw(kind, dtype, images=16)
    spec = Spec(*KINDS[kind][:2], before="relu", moments=True)
    expected = derivatives(plain, spec, arrays)
    mesh = devices.make_mesh()
    placed = (
        jax.device_put(arrays[0], jax.NamedSharding(mesh, PartitionSpec("data"))),
        *devices.replicate(mesh, arrays[1:]),
    )
    found = derivatives(fused.convolve, spec, placed)
    assert_close(found, expected, dtype)
    (y, sums), (gx, *_) = found
    assert y.sharding.shard_shape(y.shape)[0] == gx.sharding.shard_shape(gx.shape)[0] == 8
    assert sums.sharding.is_fully_replicated


def test_results_do_not_depend_on_timing():
    arrays, _ = draw("1x1, many rows", jnp.float32)
    spec = Spec(KINDS["1x1, many rows"][0], before="relu", moments=True)
    runs = [derivatives(fused.convolve, spec, arrays) for _ in range(5)]
    for other in runs[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, runs[0])


def test_many_threads_at_once():
    jobs = []
    for kind in ("1x1", "depthwise 3x3", "3x3", "transposed"):
        arrays, _ = draw(kind, jnp.float32)
        spec = Spec(*KINDS[kind][:2], before="relu", moments=True)
        jobs.append((spec, arrays, derivatives(plain, spec, arrays)))
    with futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: derivatives(fused.convolve, *job[:2]), jobs * 8))
    for values, (*_, expected) in zip(found, jobs * 8, strict=True):
        assert_close(values, expected, jnp.float32)


@pytest.mark.parametrize("kind", ["1x1", "depthwise 3x3", "3x3"])
def test_what_is_not_a_number_stays_so(kind):
    (x, affine, w, bias), _ = draw(kind, jnp.float32)
    spec = Spec(*KINDS[kind][:2], before="relu6")
    y, _ = fused.convolve(spec, x.at[1, 2, 3, 0].set(jnp.nan), affine, w, bias)
    assert not np.isfinite(y[1, 2, 3]).all()
    assert np.isfinite(y[0]).all()


@DTYPES
@ACTIVATIONS
@pytest.mark.parametrize("residual", [False, True])
def test_finish_is_plain_jax_in_one_pass(residual, activation, dtype, counted):
    x, affine, _, _ = draw("1x1, many rows", dtype)[0]
    more = x[::-1] if residual else None

    def run(function):
        def values(*arrays):
            z, pull = jax.vjp(function, *arrays)
            return z, pull(jnp.cos(jnp.arange(z.size)).reshape(z.shape).astype(z.dtype))

        return jax.jit(values)(x, affine, more)

    expected = run(lambda x, affine, more: fused.activate(x, affine, activation, more))
    found = run(lambda x, affine, more: fused.finish(Pending(x, affine), more, activation))
    assert_close(found, expected, dtype)


def test_finish_applies_what_is_pending_first():
    x, affine, _, _ = draw("1x1", jnp.float32)[0]
    found = fused.finish(Pending(x, affine, "relu"), x, "relu6")
    expected = fused.activate(fused.activate(x, affine, "relu"), None, "relu6", x)
    assert_close(found, expected, jnp.float32)
    assert_close(fused.finish(Pending(x, None, "relu")), jax.nn.relu(x), jnp.float32)


@DTYPES
@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("kind", ["3x3", "3x3, strided", "7x7, strided", "grouped"])
def test_packed_weights(kind, images, dtype):
    (x, _, w, bias), shape = draw(kind, dtype, images)
    spec = Spec(*KINDS[kind][:2], after="relu")
    residual = jnp.ones(shape, dtype)
    packed = planned.pack(spec, w, dtype)
    assert packed.dtype == jnp.uint8
    found = planned.infer(spec, x, None, packed, bias, residual)
    expected = fused.plain(spec, x, None, w, bias, residual)
    assert_close(found, expected, dtype)


BLOCKS = {  # map, window, stride, channels in, wide, out
    "narrow": ((9, 7), 3, 1, 8, 48, 8),
    "strided": ((9, 8), 5, 2, 8, 140, 16),
    "many rows": ((70, 40), 3, 2, 6, 96, 10),
    "not widened": ((9, 7), 3, 1, 0, 32, 16),
}


def run_planned(block, dtype, images, residual):
    """The same block planned step by step, and in plain JAX."""
    shape, window, stride, narrow, wide, slim = BLOCKS[block]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(images, *shape, narrow or wide)), dtype)
    middle = geometry(shape, window, stride, None, wide)
    steps = [
        (Spec(geometry(shape, 1), after="relu6"), (1, 1, narrow, wide)),
        (Spec(middle, after="relu6"), (window, window, 1, wide)),
        (Spec(geometry(middle.output, 1)), (1, 1, wide, slim)),
    ][not narrow :]
    more = jnp.ones((images, *middle.output, slim), dtype) if residual else None
    found = expected = x
    for i, (spec, size) in enumerate(steps):
        w = jnp.asarray(rng.normal(size=size), dtype).astype(jnp.float32) / size[2] ** 0.5
        bias = jnp.asarray(rng.normal(size=size[-1]), jnp.float32)
        last = i == len(steps) - 1
        found = planned.plan(found, spec, w, bias, more if last else None)
        assert isinstance(found, Planned) != last
        expected, _ = fused.plain(spec, expected, None, w, bias, more if last else None)
    return found, expected


@DTYPES
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
def test_an_inverted_residual_as_a_whole(block, residual, images, dtype, counted):
    found, expected = run_planned(block, dtype, images, residual)
    assert_close(found, expected, dtype)


def test_what_makes_no_block_is_computed_step_by_step():
    (x, _, w, bias), _ = draw("1x1", jnp.float32)
    spec = Spec(KINDS["1x1"][0], after="relu")
    found = planned.plan(x, spec, w, bias, None)
    assert found.shape == (3, 9, 7, 33)
    expected, _ = fused.plain(spec, x, None, w, bias, None)
    assert_close(fused.finish(found), expected, jnp.float32)
    other = Spec(geometry((9, 7), 3), after="relu")
    weights = jnp.ones((3, 3, 33, 4)) / 99
    found = planned.plan(found, other, weights, jnp.zeros(4), None)
    assert_close(
        found, fused.plain(other, expected, None, weights, jnp.zeros(4), None)[0], jnp.float32
    )
