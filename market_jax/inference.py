"""A model over images: every output that is asked for, in one pass.

`Predictor` is what evaluators are handed. Called twice for the same outputs of the same images it
computes them once.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from market_jax import devices, progress
from market_jax.data import cached, pipeline, samplers, transforms
from market_jax.errors import InputError
from market_jax.kernels import convolution
from market_jax.models import inputs, norms
from market_jax.registry import choose
from market_jax.typing import Array, Columns, Outputs, PyTree

NOTHING: Columns = {}  # beside the images


def _mirror(value: Array) -> Array:
    """Images and maps [N, H, W, ...] with left and right exchanged; vectors as they are."""
    return value[:, :, ::-1] if value.ndim > 2 else value


def make_forward(
    apply: Callable, names: Sequence[str], *, flip: bool, derive: Callable[[Outputs], Outputs]
) -> Callable[[PyTree, Array, Columns], Outputs]:
    """The jitted (variables, uint8 images [N, H, W, 3], inputs [N] by name) -> the named outputs.

    Args:
      apply: `model.apply`.
      names: of the outputs.
      flip: the mean with the outputs for the mirrored images; maps are mirrored back.
      derive: outputs -> outputs, what is made of them before they leave the device.

    Raises:
      InputError: (when called) the model has no such output.
    """

    def outputs_of(variables, images, given):
        outputs = derive(apply(variables, images, **given))
        return {name: choose(name, outputs, "output of the model") for name in names}

    def forward(variables, images, given):
        images = transforms.to_float(images)
        outputs = outputs_of(variables, images, given)
        if not flip:
            return outputs
        mirrored = outputs_of(variables, _mirror(images), given)
        return {name: (value + _mirror(mirrored[name])) / 2 for name, value in outputs.items()}

    return jax.jit(functools.partial(_in_parts, forward, _images_at_once(apply)))


def _images_at_once(apply: Callable) -> int:
    """Images whose maps fit into the last cache of a CPU; the package writes fewer maps."""
    with convolution.using(getattr(apply, "implementation", "auto")):
        return 8 if convolution.is_fused(jnp.float32) else 4


def _in_parts(
    forward: Callable, size: int, variables: PyTree, images: Array, given: Columns = NOTHING
) -> Outputs:
    """On one CPU the images some at a time, so that their maps stay in its cache."""
    alone = jax.default_backend() == "cpu" and jax.device_count() == 1
    if not alone or len(images) <= size or len(images) % size:
        return forward(variables, images, given)
    parts = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), (images, given))
    outputs = jax.lax.map(lambda part: forward(variables, *part), parts)
    return jax.tree.map(lambda value: value.reshape(-1, *value.shape[2:]), outputs)


def _own_part(size: int) -> tuple[slice, int]:
    """The rows that this process computes, and how many each does at the most."""
    index, count = devices.share()
    most = -(-size // count)
    return slice(min(index * most, size), min((index + 1) * most, size)), most


def _gather(parts: dict[str, np.ndarray], most: int, size: int) -> dict[str, np.ndarray]:
    """The rows of all processes, in their order, in each of them."""
    from jax.experimental import multihost_utils

    def gather(value):
        padded = np.zeros((most, *value.shape[1:]), value.dtype)
        padded[: len(value)] = value
        gathered = multihost_utils.process_allgather(padded)
        return np.asarray(gathered).reshape(-1, *value.shape[1:])[:size]

    return {name: gather(value) for name, value in parts.items()}


def _local(variables: PyTree) -> PyTree:
    """Replicated arrays as this process has them."""
    return jax.tree.map(
        lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, variables
    )


def run(
    forward: Callable[[PyTree, Array, Columns], Outputs],
    variables: PyTree,
    images,
    *,
    batch_size: int,
    given: Columns = NOTHING,
) -> dict[str, np.ndarray]:
    """Runs a function over all images; where there are several processes, each does its share.

    Args:
      forward: (variables, uint8 [N, H, W, 3], inputs [N] by name) -> outputs, jitted.
      variables: of the model, the same in every process.
      images: [M, H, W, 3] uint8, indexed by arrays of positions.
      batch_size: images at a time, fewer in the end, see `samplers.few_sizes`.
      given: what the model sees beside the images, by name [M]; padding is given 0.

    Returns:
      Output name -> [M, ...], in the order of the images.
    """
    size, several = len(images), devices.share()[1] > 1
    own, most = _own_part(size)
    mesh = devices.make_mesh(jax.local_devices())
    if several:
        variables = devices.replicate(mesh, _local(variables))
    batch_size = -(-batch_size // mesh.size) * mesh.size
    first = min(own.start, size - 1)  # without a share of its own, a process repeats the last one
    last = max(own.stop, first + 1)
    own_images = (
        images[first:last]
        if isinstance(images, np.ndarray)
        else images.take(np.arange(first, last))
    )
    parts: list[dict[str, np.ndarray]] = []
    order = samplers.few_sizes(last - first, batch_size, mesh.size)
    for step, batch in enumerate(progress.track(batches(own_images, order), "images", order.steps)):
        rows = order.indices(step)
        beside = {name: np.where(rows < 0, 0, x[first:last][rows]) for name, x in given.items()}
        placed = devices.place_batch(mesh, {"image": batch, **beside})
        parts.append(jax.device_get(forward(variables, placed.pop("image"), placed)))
    count = own.stop - own.start
    found = {key: np.concatenate([part[key] for part in parts])[:count] for key in parts[0]}
    return _gather(found, most, size) if several else found


_FEW_CORES = 4  # measured with two, see docs/performance.md


def batches(images, order: samplers.Sampler) -> Iterator[np.ndarray]:
    """Yields the batches of a pass over images; those on disk are decoded on the way.

    With few cores and no other device they are decoded between the computations: beside them, each
    takes the cores from the other, whose threads wait for each other. Else tf.data decodes ahead.

    Args:
      images: [M, H, W, 3] uint8, indexed by arrays of positions.
      order: the positions of each batch; padding repeats the first image.
    """
    few_cores = jax.default_backend() == "cpu" and (os.cpu_count() or 1) <= _FEW_CORES
    if isinstance(images, np.ndarray) or few_cores:
        for step in range(order.steps):
            yield images[np.maximum(order.indices(step), 0)]
    else:
        for batch in pipeline.batches({"image": images}, order, last=order.steps):
            yield batch["image"]


def _identity(outputs: Outputs) -> Outputs:
    return outputs


class Predictor:
    """A model with its variables: (columns, output names) -> outputs of every image.

    Args:
      apply: `model.apply`, its convolutions chosen.
      variables: of the model.
      model: the Flax module; None for descriptors.
      batch_size: images at a time.
      cache: the folder where outputs are kept as files; None keeps the last ones in memory alone.
      key: JSON, what the outputs follow from beside the images: the checkpoint.
    """

    def __init__(
        self,
        apply: Callable,
        variables: PyTree,
        *,
        model=None,
        batch_size: int = 64,
        cache: Path | None = None,
        key=None,
    ):
        self.apply, self.variables, self.model = apply, variables, model
        self._batch_size, self._cache, self._key = batch_size, cache, key
        self._memory: dict[str, dict[str, np.ndarray]] = {}
        self._forwards: dict[tuple, Callable] = {}
        self._folded: dict[tuple, PyTree] = {}
        self._names: dict[tuple, tuple[str, ...]] = {}

    def with_variables(self, variables: PyTree) -> "Predictor":
        """The same model, compiled once, with other variables; nothing is remembered."""
        other = Predictor(self.apply, variables, model=self.model, batch_size=self._batch_size)
        other._forwards = self._forwards
        return other

    def __call__(
        self,
        columns: Columns,
        names: Sequence[str],
        *,
        flip: bool = False,
        derive: Callable[[Outputs], Outputs] = _identity,
        keep: bool = False,
    ) -> dict[str, np.ndarray]:
        """Outputs of every image.

        Args:
          columns: "image" and "name" of M images; and what the model takes beside them, see
            `models.inputs`.
          names: of the outputs.
          flip: the mean with the mirrored images' outputs; maps are mirrored back.
          derive: outputs -> outputs, traced; the names are those of what it returns.
          keep: remembers them, in the cache too where there is one; for small outputs.

        Returns:
          Name -> [M, ...].

        Raises:
          InputError: the model has no such output.
        """
        names = tuple(dict.fromkeys(names))
        what = (names, flip, derive)

        def compute():
            if what not in self._forwards:
                self._forwards[what] = make_forward(self.apply, names, flip=flip, derive=derive)
            forward, images = self._forwards[what], columns["image"]
            return run(
                *(forward, self._fold(images), images), batch_size=self._batch_size, given=given
            )

        given = inputs.of(self.apply, columns)
        key = self._describe(columns, what, given) if keep else None
        if key is None:
            return compute()
        if key not in self._memory:
            path = self._path(key)
            self._memory[key] = cached.cached(path, key, compute) if path else compute()
        return self._memory[key]

    def _fold(self, images) -> PyTree:
        """The variables, each BatchNorm in its convolution; made at the first call, then kept."""
        if self.model is None:
            return self.variables
        size = images[np.arange(1)].shape[1:3]  # weights may be packed for it
        if size not in self._folded:
            if ("fold", size) not in self._forwards:
                fold = functools.partial(norms.fold, self.apply, image_size=size)
                self._forwards["fold", size] = jax.jit(fold)
            folded = self._forwards["fold", size](self.variables)
            self._folded = {size: {**self.variables, **folded}}  # the last size's alone
        return self._folded[size]

    def output_names(self, columns: Columns) -> tuple[str, ...]:
        """The names of the model's outputs for images such as these columns have."""
        shape = columns["image"][np.arange(1)].shape
        if shape not in self._names:  # JAX keeps something of every trace
            image = jax.ShapeDtypeStruct(shape, np.float32)
            self._names[shape] = tuple(jax.eval_shape(self.apply, self.variables, image))
        return self._names[shape]

    def _describe(self, columns: Columns, what: tuple, given: Columns) -> str | None:
        """What the outputs follow from, as text; None where the pictures have no fingerprint."""
        fingerprint = getattr(columns["image"], "fingerprint", None)
        if fingerprint is None:
            return None
        seen = [*columns["name"].tolist(), *(f"{k}={v.tolist()}" for k, v in given.items())]
        listed = hashlib.sha256("\n".join(seen).encode()).hexdigest()[:16]
        names, flip, derive = what
        parts = [self._key, fingerprint, listed, names, flip, derive.__qualname__]
        return json.dumps(parts, sort_keys=True)

    def _path(self, key: str) -> Path | None:
        """The cache's file; the same name for another checkpoint, whose outputs replace it."""
        if self._cache is None or devices.share()[1] > 1:
            return None  # several processes would not agree on whether it is there
        digest = hashlib.sha256(json.dumps(json.loads(key)[1:]).encode()).hexdigest()[:8]
        return self._cache / f"outputs-{digest}.npz"


def features(
    predict: Callable,
    columns: Columns,
    names: Sequence[str] = ("embedding",),
    *,
    flip: bool = False,
) -> Columns:
    """Columns with "feature" float32 [M, D], the named outputs side by side, and no image.

    Args:
      predict: a `Predictor`.
      columns: of M images.
      names: of outputs [M, D] each.
      flip: the mean with the mirrored images' outputs.

    Raises:
      InputError: the model has no such output, a value is not finite, or an output is no vector.
    """
    outputs = predict(columns, names, flip=flip, keep=True)
    for name in names:
        if outputs[name].ndim != 2:
            raise InputError(f"output {name!r} is {outputs[name].shape}; features are [images, D]")
    feature = np.concatenate([outputs[name] for name in names], axis=1).astype(np.float32)
    check_finite(feature, columns["name"])
    return {k: v for k, v in columns.items() if k != "image"} | {"feature": feature}


def check_finite(values: np.ndarray, names: np.ndarray) -> None:
    """Refuses outputs that are not finite.

    Args:
      values: [M, ...].
      names: of the pictures, str [M].

    Raises:
      InputError: a value is not finite; the message names the first such picture.
    """
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if len(bad):
        raise InputError(f"the features of {names[bad[0]]} are not finite")
