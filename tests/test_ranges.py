"""Every number that a config or a word of the command line may set has a range, and keeps to it."""

import math
import typing
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_jax import build, kinds, losses, models, registry
from market_jax.data import transforms
from market_jax.errors import InputError
from market_jax.losses import annealing
from market_jax.models import backbones, heads
from market_jax.retrieval import chain
from market_jax.training import hooks, optimizer, schedules, trackers
from market_jax.typing import FractionBelow1, NonNegative, Positive, Range

KNOWN = {  # what a spec may name
    "transform": registry.names_of(transforms),
    "loss": losses.TERMS,
    "metric": losses.METRICS,
    "schedule of a weight": annealing.SCHEDULES,
    "hook": registry.names_of(hooks),
    "optimizer": optimizer.OPTIMIZERS,
    "schedule": schedules.SCHEDULES,
    "model": build._defining("Model", models, backbones),
    "head": heads.HEADS,
    "transform of features": chain.TRANSFORMS,
    "re-ranker": chain.RERANKERS,
    "writer": trackers.TRACKERS,
}
ARGUMENTS = {  # (what, name, argument) -> annotation
    (what, name, key): kind
    for what, known in KNOWN.items()
    for name, make in known.items()
    for key, kind in registry._hints(make).items()
    if kinds.is_plain(kind)
}


def numbers_in(kind: Any) -> list[Any]:
    """The numbers of an annotation, each with its range: [Annotated[int, ...], float, ...]."""
    if kind in (int, float):
        return [kind]
    if typing.get_origin(kind) is Annotated:
        kinds = numbers_in(typing.get_args(kind)[0])
        return [kind] if any(isinstance(a, Range) for a in typing.get_args(kind)) else kinds
    if typing.get_origin(kind) is typing.Literal:
        return []
    return [found for argument in typing.get_args(kind) for found in numbers_in(argument)]


@pytest.mark.parametrize("where", ARGUMENTS, ids="-".join)
def test_every_number_has_a_range_that_its_default_is_in(where):
    what, name, key = where
    kind = ARGUMENTS[where]
    bare = [found for found in numbers_in(kind) if found in (int, float)]
    assert not bare, f"{what} {name!r}: {key} needs a range, see market_jax.typing"
    make = KNOWN[what][name]
    default = registry.inspect.signature(make).parameters[key].default
    if default is not registry.inspect.Parameter.empty:
        assert kinds.convert(default, kind) == default


INF, NAN, HUGE = math.inf, math.nan, 10**30
BAD = [
    ("schedule", "multistep", "at", (1.5,), "each a number, 0 to 1"),
    ("schedule", "multistep", "factor", 0.0, "it must be above 0 and at most 1"),
    ("schedule", "cosine", "flat", 2.0, "it must be 0 to 1"),
    ("schedule", "cosine", "end", -0.1, "it must be 0 to 1"),
    ("loss", "circle_softmax", "margin", -0.1, "it must be"),
    ("loss", "cosine_softmax", "scale", 0.0, "it must be above 0"),
    ("loss", "weighted_cross_entropies", "sigma", 0.1, "it must be 0.2 or more"),
    ("hook", "centers", "rate", 2.0, "it must be"),
    ("model", "parts", "stripes", 1, "it must be 2 to 64"),
    ("model", "parts", "drop", 1.0, "below 1"),
    ("model", "efficientnet_lite", "variant", 5, "it must be"),
    ("transform", "flip", "probability", 2.0, "it must be 0 to 1"),
    ("transform", "flip", "probability", -1, "it must be 0 to 1"),
    ("transform", "crop", "padding", -1, "it must be 0 to 1,024"),
    ("transform", "crop", "padding", 10**9, "it must be 0 to 1,024"),
    ("transform", "crop", "padding", HUGE, "it must be a whole number of 64 bits"),
    ("transform", "rotate", "degrees", INF, "it must be a finite number"),
    ("transform", "rotate", "degrees", -5.0, "it must be 0 to 180"),
    ("transform", "rotate", "probability", 1.5, "it must be 0 to 1"),
    ("transform", "jitter", "brightness", -0.2, "it must be 0 to 10"),
    ("transform", "jitter", "contrast", NAN, "it must be a finite number"),
    ("transform", "jitter", "saturation", 1e30, "it must be 0 to 10"),
    ("transform", "noise", "std", NAN, "it must be a finite number"),
    ("transform", "noise", "std", 1e300, "it must be a finite number, in float32"),
    ("transform", "erase", "area", (-0.1, 0.5), "it must be 2 values, each a number, 0 to 1"),
    ("transform", "erase", "area", (0.1,), "it must be 2 values, each a number, 0 to 1"),
    ("transform", "erase", "area", (0.1, NAN), "it must be 2 values, each a number, 0 to 1"),
    ("transform", "erase", "aspect", 0.0, "it must be above 0 and at most 1"),
    ("transform", "erase", "aspect", 1e-300, "it must be above 0 and at most 1"),
    ("transform", "erase", "fill", 2.0, "it must be 0 to 1"),
    ("transform", "erase", "times", -1, "it must be 0 to 100"),
    ("transform", "erase", "times", 10**9, "it must be 0 to 100"),
    ("loss", "cross_entropy", "label_smoothing", 2.0, "it must be 0 or more and below 1"),
    ("loss", "cross_entropy", "label_smoothing", 1.0, "it must be 0 or more and below 1"),
    ("loss", "cross_entropy", "label_smoothing", 1 - 1e-12, "it must be 0 or more and below 1"),
    ("loss", "triplet", "margin", -0.3, "it must be 0 or more"),
    ("loss", "triplet", "margin", NAN, "it must be a finite number"),
    ("metric", "active_dimensions", "threshold", -1.0, "it must be 0 or more"),
    ("schedule of a weight", "linear", "share", 1.5, "it must be 0 to 1"),
    ("schedule of a weight", "logistic", "share", NAN, "it must be a finite number"),
    ("schedule of a weight", "cyclical", "cycles", 0, "it must be 1 to 1,000"),
    ("hook", "ema", "decay", 1.5, "it must be 0 or more and below 1"),
    ("hook", "ema", "decay", 1.0, "it must be 0 or more and below 1"),
    ("optimizer", "adam", "weight_decay", -1.0, "it must be 0 or more"),
    ("optimizer", "sgd", "weight_decay", INF, "it must be a finite number"),
    ("optimizer", "sgd", "momentum", 1.0, "it must be 0 or more and below 1"),
    ("schedule", "exponential", "end", 0.0, "it must be above 0 and at most 1"),
    ("schedule", "exponential", "end", 2.0, "it must be above 0 and at most 1"),
    ("model", "attributes_cnn", "widths", (4,), "it must be 4 values, each a whole number"),
    ("model", "attributes_cnn", "widths", (4, 0, 4, 4), "it must be 4 values, each a whole number"),
    ("model", "attributes_cnn", "final_pool", (4,), "it must be 2 values, each a whole number"),
    ("model", "attributes_cnn", "final_pool", (4, 0), "it must be 2 values, each a whole number"),
    ("model", "attributes_cnn", "head_width", 0, "it must be 1 to 65,536"),
    ("model", "attributes_cnn", "dropout", 1.5, "it must be 0 or more and below 1"),
    ("model", "attributes_cnn", "dropout", -0.1, "it must be 0 or more and below 1"),
    ("model", "autoencoder", "bottleneck", -1, "it must be 0 to 65,536"),
    ("model", "autoencoder", "widths", (4, 0), "it must be a list of values, each a whole number"),
    ("model", "vae", "latent", 0, "it must be 1 to 65,536"),
    ("model", "vae", "latent", 10**12, "it must be 1 to 65,536"),
    ("model", "vae", "widths", [4, -1], "it must be a list of values, each a whole number"),
    ("model", "classifier", "identities", -3, "it must be 0 or more"),
    ("model", "resnet", "depth", 35, "it must be 18 or 34 or 50 or 101"),
    ("model", "resnet", "last_stride", 3, "it must be 1 or 2"),
    ("model", "resnet", "last_stride", True, "it must be 1 or 2"),
    ("model", "resnet", "attention", (5,), "each a whole number, 1 to 4"),
    ("model", "densenet", "attention", (0,), "each a whole number, 1 to 4"),
    ("model", "efficientnet_lite", "attention", (8,), "each a whole number, 1 to 7"),
    ("model", "efficientnet_lite", "last_stride", 0, "it must be 1 or 2"),
    ("model", "osnet", "attention", (4,), "each a whole number, 1 to 3"),
    ("model", "osnet", "width", 0.3, "it must be 0.25 or 0.5 or 0.75 or 1.0"),
    ("model", "osnet", "instance_norm", "all", "it must be none or ibn or ain"),
    ("model", "alexnet", "attention", (6,), "each a whole number, 1 to 5"),
    ("model", "alexnet", "dropout", 1.0, "it must be 0 or more and below 1"),
    ("head", "dense", "width", 0, "it must be 1 to 65,536"),
    ("head", "normalized", "width", -1, "it must be 1 to 65,536"),
    ("transform of features", "alpha_query_expansion", "k", 0, "it must be 1 or more"),
    ("transform of features", "alpha_query_expansion", "alpha", -1.0, "it must be 0 to 100"),
    ("transform of features", "average_query_expansion", "k", -1, "it must be 1 or more"),
    ("transform of features", "database_augmentation", "alpha", NAN, "it must be a finite number"),
    ("transform of features", "mahalanobis", "rank", -1, "it must be 0 to 65,536"),
    ("transform of features", "mahalanobis", "steps", -1, "it must be 0 or more"),
    ("transform of features", "mahalanobis", "seed", -1, "it must be 0 to 4,294,967,295"),
    ("re-ranker", "k_reciprocal", "k1", 0, "it must be 1 or more"),
    ("re-ranker", "k_reciprocal", "k2", -1, "it must be 1 or more"),
    ("re-ranker", "k_reciprocal", "lambda_value", 2, "it must be 0 to 1"),
    ("re-ranker", "agglomerative", "clusters", -1, "it must be 0 or more"),
    ("re-ranker", "agglomerative", "threshold", -1.0, "it must be 0 or more"),
    ("re-ranker", "agglomerative", "neighbours", -1, "it must be 0 or more"),
    ("re-ranker", "agglomerative", "soft", 2, "it must be 0 to 1"),
    ("re-ranker", "kmeans", "clusters", -1, "it must be 0 or more"),
    ("re-ranker", "kmeans", "size", INF, "it must be a finite number"),
    ("re-ranker", "gaussian_mixture", "seed", 2**32, "it must be 0 to 4,294,967,295"),
    ("re-ranker", "spatio_temporal", "alpha", 0.0, "it must be above 0 and at most 80"),
    ("re-ranker", "spatio_temporal", "beta", -1.0, "it must be 0 or more"),
    ("re-ranker", "spatio_temporal", "bin_frames", 0, "it must be 1 or more"),
    ("re-ranker", "spatio_temporal", "sigma", 1e9, "it must be 0.01 to 5,000"),
]


@pytest.mark.parametrize(("what", "name", "key", "value", "rule"), BAD)
def test_a_value_out_of_range_is_refused(what, name, key, value, rule):
    with pytest.raises(InputError) as caught:
        registry.bind({"name": name, key: value}, KNOWN[what], what)
    message = str(caught.value)
    assert message.startswith(f"{what} {name!r}: {key} is {value!r}; it must be ")
    assert rule in message


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("classifier", "classes", {"hat": 2, "age": 1}, "classes.age is 1; it must be 2 or more"),
        ("classifier", "dropout", {"age": 1.5}, "dropout.age is 1.5; it must be 0 or more and bel"),
        ("resnet", "classes", {"hat": 0}, "classes.hat is 0; it must be 2 or more"),
        ("vae", "classes", {"hat": 2.0}, "classes.hat is 2.0; it must be a whole number"),
    ],
)
def test_a_value_in_a_mapping_is_named_by_its_key(name, key, value, message):
    with pytest.raises(InputError, match=message):
        registry.bind({"name": name, key: value}, KNOWN["model"], "model")


@given(st.sampled_from(sorted(ARGUMENTS)), st.floats() | st.integers())
def test_what_is_taken_is_finite_and_in_range(where, value):
    for kind in numbers_in(ARGUMENTS[where]):
        try:
            taken = kinds.convert(value, kind)
        except ValueError:
            continue
        assert taken == value
        assert math.isfinite(taken)
        assert all(taken in limit for limit in typing.get_args(kind)[1:])


@pytest.mark.parametrize(
    ("limits", "text", "inside", "outside"),
    [
        (Range(0, 1), "0 to 1", [0, 1], [-1e-9, 1.001]),
        (Range(0), "0 or more", [0, 1e30], [-1]),
        (Range(most=3), "at most 3", [3, -1e30], [4]),
        (Range(0, 1, below=True), "0 or more and below 1", [0, 0.99], [1, 1 - 1e-12]),
        (Range(0, 1, above=True), "above 0 and at most 1", [1e-9, 1], [0, 1e-60]),
        (Range(), "", [0, -1e30], []),
    ],
)
def test_a_range_and_its_words(limits, text, inside, outside):
    assert str(limits) == text
    assert all(value in limits for value in inside)
    assert not any(value in limits for value in outside)
    assert math.nan not in limits


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0}, "optimizer.learning_rate is 0; it must be above 0"),
        ({"learning_rate": NAN}, "optimizer.learning_rate is nan; it must be a finite number"),
        ({"learning_rate": INF}, "optimizer.learning_rate is inf; it must be a finite number"),
        ({"learning_rate": "x"}, "optimizer.learning_rate is 'x'; it must be a number"),
        ({"warmup_steps": -1}, "optimizer.warmup_epochs is -1; it must be 0 or more"),
    ],
)
def test_a_rate_out_of_range_is_refused(settings, message):
    given = {"learning_rate": 0.1, "total_steps": 3} | settings
    with pytest.raises(InputError, match=message):
        schedules.make_schedule(schedules.cosine, **given)


@pytest.mark.parametrize("key", ["learning_rate", "total_steps"])
def test_a_schedule_is_not_given_what_the_program_gives(key):
    with pytest.raises(InputError, match=f"unknown argument of schedule 'cosine': '{key}'"):
        registry.bind({"name": "cosine", key: 1}, schedules.SCHEDULES, "schedule")


@pytest.mark.parametrize("kind", [NonNegative, Positive, FractionBelow1])
def test_check_gives_the_value_of_its_kind(kind):
    assert kinds.check("x", 0.5, kind) == 0.5
    with pytest.raises(InputError, match="x is True; it must be a number"):
        kinds.check("x", True, kind)
