import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from market_jax import kinds, models, registry
from market_jax.errors import InputError


def rank(
    query, gallery, *, k: int = 5, alpha: float = 3.0, metric: str = "cosine", fast: bool = False
):
    """A function as a spec names it."""
    return k, alpha, metric, fast


@dataclasses.dataclass
class Net:
    """A class as a spec names it."""

    widths: tuple[int, ...] = (1, 2)
    pool: tuple[int, int] = (4, 4)
    classes: Mapping[str, int] | None = None
    make: Callable = print


KNOWN = {"rank": rank, "net": Net}


def test_a_spec_binds_its_arguments():
    made = registry.bind({"name": "rank", "k": 7, "alpha": 1}, KNOWN, "stage", metric="euclidean")
    assert made(None, None) == (7, 1.0, "euclidean", False)
    net = registry.bind(
        {"name": "net", "widths": [3], "classes": {"hat": 2}}, KNOWN, "net", dtype=1
    )()
    assert net == Net(widths=(3,), classes={"hat": 2})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "rnak"}, "unknown stage 'rnak'; did you mean 'rank'. known: net, rank"),
        ({"k": 1}, "a stage has no name"),
        ({"name": "rank", "kk": 1}, "unknown argument of stage 'rank': 'kk'"),
        ({"name": "rank", "k": 1.5}, "stage 'rank': k is 1.5; it must be a whole number"),
        ({"name": "rank", "k": True}, "k is True; it must be a whole number"),
        ({"name": "rank", "fast": 1}, "fast is 1; it must be true or false"),
        ({"name": "rank", "metric": "cosine"}, "unknown argument of stage 'rank': 'metric'"),
        ({"name": "net", "widths": "12"}, "widths is '12'; it must be a list of values"),
        ({"name": "net", "pool": (4,)}, r"pool is \(4,\); it must be 2 values, each a whole"),
        ({"name": "net", "classes": {"a": "b"}}, "classes.a is 'b'; it must be a whole number"),
        ({"name": "net", "classes": {1: 2}}, "classes.1 is 1; it must be a text"),
        ({"name": "net", "classes": 3}, "classes is 3; it must be names, each with a whole"),
        ({"name": "net", "pool": (4, 2.5)}, r"pool is \(4, 2.5\); it must be 2 values"),
        ({"name": "rank", "alpha": float("nan")}, "alpha is nan; it must be a finite number"),
        ({"name": "rank", "alpha": 10**400}, "alpha is 10+; it must be a finite number"),
        ({"name": "rank", "k": 2**63}, "k is 9223372036854775808; it must be .* of 64 bits"),
        ({"name": "net", "make": "print"}, "unknown argument of stage 'net': 'make'"),
        ({"name": "no.where:X"}, "stage 'no.where:X' cannot be imported"),
        ({"name": "tests.test_registry:Nothing"}, "cannot be imported .*Nothing"),
    ],
)
def test_a_wrong_spec_ends_in_a_message(spec, message):
    with pytest.raises(InputError, match=message):
        registry.bind(spec, KNOWN, "stage", metric="cosine")


def test_names_outside_are_as_good_as_ours():
    made = registry.bind({"name": "tests.test_registry:rank", "k": 2}, {}, "stage")
    assert made(None, None)[0] == 2
    assert registry.find_file(models, "tests.test_registry:Net", "model", "Model") is Net


@pytest.mark.parametrize("word", ["False", "false", "0"])
def test_false_is_one_thing(word):
    assert registry.read_words(f"rank fast={word}", KNOWN, "stage") == {
        "name": "rank",
        "fast": False,
    }


@pytest.mark.parametrize("word", ["True", "true", "1"])
def test_true_is_one_thing(word):
    assert registry.read_words(f"rank fast={word}", KNOWN, "stage") == {
        "name": "rank",
        "fast": True,
    }


def test_words_become_values():
    spec = registry.read_words("net widths=(3,4) classes={'hat':2}", KNOWN, "net")
    assert spec == {"name": "net", "widths": (3, 4), "classes": {"hat": 2}}
    assert registry.read_words("rank metric=12", KNOWN, "stage")["metric"] == "12"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a stage has no name"),
        ("rank k", "'k' is not KEY=VALUE"),
        ("rank k=", "'k=' is not KEY=VALUE"),
        ("rank k=1 k=2", "'k' is given twice"),
        ("rnak k=1", "unknown stage 'rnak'"),
    ],
)
def test_wrong_words_end_in_a_message(text, message):
    with pytest.raises(InputError, match=message):
        registry.read_words(text, KNOWN, "stage")


def test_a_wrong_kind_in_words_is_refused():
    for text in ("rank k=twenty", "rank fast=2", "rank alpha=x", "rank k=1_0", "rank alpha=1e999"):
        spec = registry.read_words(text, KNOWN, "stage")
        with pytest.raises(InputError, match="it must be"):
            registry.bind(spec, KNOWN, "stage")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1_0", "1_0"), ("-1_0.5", "-1_0.5"), ("(1,1_0)", "(1,1_0)"), ("{'a': 1_0}", "{'a': 1_0}"),
        ("{'a1_0': 2}", {"a1_0": 2}), ("10", 10), ("up_color", "up_color"), ("true", True),
    ],
)  # fmt: skip
def test_a_number_with_underscores_is_a_text(text, value):
    assert registry.read_value(text) == value


def test_numpy_numbers_are_numbers():
    assert kinds.convert(np.int64(3), int) == 3
    assert kinds.convert(3, float) == 3.0
