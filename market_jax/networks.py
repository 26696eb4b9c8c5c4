"""Networks from names and plain fields, and the published weights they begin from."""

import functools
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from market_jax import models
from market_jax.errors import InputError
from market_jax.models import heads
from market_jax.models.backbones import efficientnet_lite
from market_jax.registry import choose, find_module, parse
from market_jax.typing import PyTree
from market_jax.weights import pretrained

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def find(name: str, what: str):
    """The file of `market_jax.models` that defines the network `name`."""
    files = [find_module(models, m.name, what) for m in pkgutil.iter_modules(models.__path__)]
    known = {f.__name__.rpartition(".")[2]: f for f in files if hasattr(f, "Model")}
    return choose(name, known, what)


def _bind(make: Callable, what: str, fields: dict) -> Callable:
    """`make` with the fields; an unknown one's error lists the known ones."""
    known = {n: n for n in inspect.signature(make).parameters if n not in ("parent", "name")}
    for name in fields:
        choose(name, known, f"field of {what}")
    return functools.partial(make, **fields)


def build(fields: dict, dtype: str):
    """The network of a config.

    Args:
      fields: "name" is a file of `market_jax.models`; the rest are its fields. The field
        "backbone" is another file with fields of its own, "resnet depth=34", and "head" one of
        `heads.HEADS` likewise; "pretrained" is for `with_weights`.
      dtype: of the computation.

    Raises:
      InputError: a name or a field does not exist.
    """
    fields = {key: value for key, value in fields.items() if key != "pretrained"}
    fields["dtype"] = choose(dtype, _DTYPES, "dtype")
    name = fields.pop("name")
    if "backbone" in fields:
        backbone, arguments = parse(fields["backbone"], "backbone")
        arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
        arguments["dtype"] = fields["dtype"]
        module = find(backbone, "backbone")
        fields["backbone"] = _bind(module.Model, backbone, arguments)()
    if "head" in fields:
        head, arguments = parse(fields["head"], "head")
        fields["head"] = _bind(choose(head, heads.HEADS, "head"), head, arguments)
    return _bind(find(name, "model").Model, name, fields)()


def with_weights(fields: dict, variables: PyTree) -> PyTree:
    """The variables, those of the backbone from the file that "pretrained" names.

    Args:
      fields: of the config; "pretrained" is "", nothing is read; "auto", the package; a path; or
        "hf:REPO/FILE", see `pretrained.find`.
      variables: of the network.

    Raises:
      InputError: there is no such file, or it does not fit the backbone.
    """
    source = fields.get("pretrained", "")
    if not source:
        return variables
    backbone = parse(fields["backbone"], "backbone")[0]
    namings = getattr(find(backbone, "backbone"), "TORCH_NAMES", None)
    if namings is None:
        raise InputError(f"no published weights of {backbone!r} can be read")
    if source == "auto" and backbone != "efficientnet_lite":
        raise InputError(
            f"model.pretrained is 'auto', which brings efficientnet_lite's weights, and not "
            f"{backbone}'s; name a file, or hf:REPO/FILE"
        )
    path = pretrained.find(source)
    template = {kind: tree["backbone"] for kind, tree in variables.items() if "backbone" in tree}
    loaded, unused = pretrained.load(path, template, namings)
    logging.info(
        "%s: %d tensors read; not used: %s",
        *(path, len(jax.tree.leaves(loaded)), ", ".join(unused) or "none"),
    )
    return {kind: tree | {"backbone": loaded[kind]} for kind, tree in variables.items()}


def make_pretrained() -> tuple[Any, PyTree]:
    """EfficientNet-Lite0 with ImageNet's weights: (model, variables).

    Raises:
      InputError: the package with the weights is not installed.
    """
    model = efficientnet_lite.Model(same_padding=True)
    example = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    template = jax.eval_shape(model.init, jax.random.key(0), example)
    path = pretrained.find("auto")
    return model, pretrained.load(path, template, efficientnet_lite.TORCH_NAMES)[0]
