"""The optional package's operations, each device computing its own part of the batch.

XLA cannot split a call into a library over devices by itself: it is told here that maps are split
by images, that everything else is the same on all devices, and which results are sums over images.
"""

import functools
from collections.abc import Callable, Sequence

import jax
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from market_jax.typing import Array


def _split(
    function: Callable, arrays: Sequence[Array | None], maps: Sequence[int], results: Sequence[bool]
) -> tuple[Array, ...]:
    """Calls a function of arrays; on several devices, on each with its part of the maps.

    Args:
      function: arrays -> arrays.
      arrays: its arguments, some of which may be None.
      maps: the positions of those that are split by their first axis.
      results: which results are split; the others are summed over the parts.
    """
    given = [i for i, array in enumerate(arrays) if array is not None]

    def call(*present):
        places = dict(zip(given, present, strict=True))
        return tuple(function(*(places.get(i) for i in range(len(arrays)))))

    present = [arrays[i] for i in given]
    if jax.device_count() == 1:
        return call(*present)
    split = [i in maps for i in given]

    def partition(mesh, arg_shapes, result_shapes):
        del result_shapes
        spec = arg_shapes[split.index(True)].sharding.spec
        axis = spec[0] if len(spec) else None

        def sharding(by_images):
            return NamedSharding(mesh, PartitionSpec(axis) if by_images else PartitionSpec())

        def part(*own):
            values = zip(call(*own), results, strict=True)
            return tuple(v if s or axis is None else lax.psum(v, axis) for v, s in values)

        return mesh, part, tuple(map(sharding, results)), tuple(map(sharding, split))

    wrapped = custom_partitioning(call)
    rule, whole = _rule(present, split, jax.eval_shape(call, *present), results)
    wrapped.def_partition(
        partition=partition,
        infer_sharding_from_operands=lambda *shapes: partition(*shapes)[2],
        sharding_rule=rule,
        need_replication_factors=whole,
    )
    return wrapped(*present)


def _rule(arrays, split, shapes, results) -> tuple[str, tuple[str, ...]]:
    """The same in Shardy's words: "n" is the axis of the images, and all others are whole."""
    whole: list[str] = []

    def axes(value, by_images):
        names = [f"a{len(whole) + i}" for i in range(value.ndim - by_images)]
        whole.extend(names)
        return " ".join(["n"] * by_images + names)

    sides = (zip(arrays, split, strict=True), zip(shapes, results, strict=True))
    return " -> ".join(", ".join(axes(*pair) for pair in side) for side in sides), tuple(whole)


def forward(spec, slope: float, x, affine, w, bias, residual) -> tuple[Array, Array | None]:
    """`fused.plain` by the package: the output, and the sums or None.

    Args:
      spec: a `fused.Spec`.
      slope: that of leaky_relu.
      x: the input, [N, H, W, C].
      affine: [2, C] float32, or None.
      w: the weights, in the dtype that the package wants.
      bias: [K] float32, or None.
      residual: of the output's shape and dtype, or None.
    """
    import market_jax_onednn as package

    def call(*arrays):
        y, sums = package.forward(
            spec.geometry, spec.transposed, *arrays, before=spec.before, after=spec.after,
            slope=slope, moments=spec.moments,
        )  # fmt: skip
        return (y, sums) if spec.moments else (y,)

    results = _split(
        call, (x, affine, w, bias, residual), (0, 4), (True, False)[: 1 + spec.moments]
    )
    return results if spec.moments else (results[0], None)


def block(specs, slope: float, x, weights, residual) -> Array:
    """A 1x1 convolution, which may be absent, a depthwise one and another 1x1 one.

    Args:
      specs: the three or two `fused.Spec`.
      slope: that of leaky_relu.
      x: the input, [N, H, W, C].
      weights: weights and bias of each, in the dtypes that the package wants.
      residual: of the output's shape and dtype, or None.
    """
    import market_jax_onednn as package

    *first, middle, _ = specs
    weights = weights if first else (None, None, *weights)

    def call(*arrays):
        before = first[0].after if first else ""
        settings = {"before": before, "after": middle.after, "slope": slope}
        return (package.block(middle.geometry, *arrays, **settings),)

    return _split(call, (x, *weights, residual), (0, 7), (True,))[0]


def backward(spec, slope: float, wanted: Sequence[bool], x, affine, w, y, gy, gsums) -> list:
    """The gradients of `forward` by x, affine, w and bias; None where they are not wanted.

    Args:
      spec: a `fused.Spec`.
      slope: that of leaky_relu.
      wanted: which of the four are.
      x: the input.
      affine: as for `forward`.
      w: as for `forward`.
      y: the output, or None without `gsums`.
      gy: the gradient by the output.
      gsums: the gradient by the sums, or None.
    """
    import market_jax_onednn as package

    def call(*arrays):
        gradients = package.backward(
            spec.geometry, spec.transposed, *arrays, before=spec.before, slope=slope, wanted=wanted
        )
        return [g for g, want in zip(gradients, wanted, strict=True) if want]

    results = [
        by_images for by_images, want in zip((True, *[False] * 3), wanted, strict=True) if want
    ]
    found = iter(_split(call, (x, affine, w, y, gy, gsums), (0, 3, 4), results))
    gradients = [next(found) if want else None for want in wanted]
    if gradients[0] is not None:
        gradients[0] = gradients[0].astype(x.dtype)
    return gradients


def finish(activation: str, slope: float, x, affine, residual) -> Array:
    """activation(scale * x + shift + residual).

    Args:
      activation: its name.
      slope: that of leaky_relu.
      x: [N, H, W, C].
      affine: [2, C] float32.
      residual: of the shape and dtype of x, or None.
    """
    import market_jax_onednn as package

    call = functools.partial(package.finish, activation=activation, slope=slope)
    return _split(lambda *arrays: (call(*arrays),), (x, affine, residual), (0, 2), (True,))[0]


def finish_gradient(activation: str, slope: float, residual: bool, x, affine, z, gz):
    """The gradients of `finish` by x, affine and the residual.

    Args:
      activation: its name.
      slope: that of leaky_relu.
      residual: whether there is one; otherwise its gradient is None.
      x: as for `finish`.
      affine: as for `finish`.
      z: what `finish` returned.
      gz: the gradient by it.
    """
    import market_jax_onednn as package

    def call(*arrays):
        gradients = package.finish_gradient(
            *arrays, residual=residual, activation=activation, slope=slope
        )
        return gradients[: 2 + residual]

    results = (True, False, True)[: 2 + residual]
    found = _split(call, (x, affine, z, gz), (0, 2, 3), results)
    return (*found, None)[:3]
