"""Conditions: what they mean, what the database is told, and what is no condition."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_jax.errors import InputError
from market_jax.galleries import where

LABELS = {
    "gender": ("male", "female"),
    "backpack": ("no", "yes"),
    "up_color": ("black", "red", "pink", "light blue"),
}


def is_exact(condition):
    """Whether the database's filter says all of a condition."""
    if isinstance(condition, where.Several):
        return all(map(is_exact, condition.parts))
    return isinstance(condition, where.Field) or len(condition.at) == 1


def row(**changes):
    """A woman in something red or pink, with a backpack."""
    usual = {"path": "/yard/a.jpg", "camid": 3, "sequence": 1, "frame": 70, "time": 1000.0}
    return usual | {"probabilities": [0.2, 0.8, 0.25, 0.75, 0.1, 0.4, 0.3, 0.2]} | changes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gender = 'female'", True),
        ("gender != 'female'", False),
        ("gender.male > 0.1", True),
        ("gender.male > 0.2", False),
        ("up_color = 'red'", False),
        ("up_color in ('red', 'pink')", True),
        ("up_color not in ('red', 'pink')", False),
        ("up_color.'light blue' >= 0.2", True),
        ('up_color."light blue" < .2', False),
        ("backpack > 0.7", True),
        ("backpack <= 0.7", False),
        ("backpack = 'yes' and camid = 3", True),
        ("backpack = 'no' or camid = 4", False),
        ("not (backpack = 'no' or camid = 4)", True),
        ("not not camid in (3, 4)", True),
        ("camid NOT IN (3, 4)", False),
        ("camid <> 3", False),
        ("camid == 3 AND frame >= 70 AND frame < 71", True),
        ("path like '/yard/%'", True),
        ("path not like '/yard/%'", False),
        ("path = '/yard/a.jpg'", True),
        ("time < '1970-01-02'", True),
        ("time >= 1000", True),
        ("gender = 'male' and camid = 3 or frame = 70", True),
        ("gender = 'male' and (camid = 3 or frame = 70)", False),
    ],
)
def test_a_condition_means_what_it_says(text, expected):
    condition = where.parse(text, LABELS)
    assert condition.holds(row()) is expected
    assert condition.negated().holds(row()) is not expected


def test_the_database_adds_no_fields():
    several = where.parse("up_color in ('red', 'pink') and camid in (3)", LABELS)
    assert not is_exact(several)
    assert "+" not in several.filter().replace("e+", "")
    assert is_exact(where.parse("backpack > 0.7 or not camid = 3", LABELS))
    assert where.parse("backpack > 0.7", LABELS).filter() == "(probabilities[3] > 0.7)"


def test_quotes_and_signs_of_a_path_reach_the_database_as_they_are():
    condition = where.parse("path = '/it''s \"a\"/100%_.jpg'", LABELS)
    assert condition.holds(row(path='/it\'s "a"/100%_.jpg'))
    assert condition.filter() == '(path == "/it\'s \\"a\\"/100%_.jpg")'


fractions = st.lists(st.floats(0, 1, width=32), min_size=8, max_size=8)
texts = st.recursive(
    st.sampled_from(
        [
            "up_color in ('red', 'pink', 'black')",
            "up_color not in ('red', 'pink')",
            "gender = 'male'",
            "backpack < 0.3",
            "camid in (1, 2)",
            "frame != 2",
        ]
    ),
    lambda parts: st.one_of(
        st.tuples(parts, st.sampled_from(["and", "or"]), parts).map(lambda p: f"({' '.join(p)})"),
        parts.map(lambda part: f"not {part}"),
    ),
    max_leaves=6,
)


@given(texts, fractions, st.integers(1, 3), st.integers(1, 3))
def test_the_database_loses_nothing_that_holds(text, probabilities, camid, frame):
    """Its filter, read as Python, holds wherever the condition does, and is it where exact."""
    condition = where.parse(text, LABELS)
    shown = row(probabilities=probabilities, camid=camid, frame=frame)
    told = eval(condition.filter(), {}, shown)
    if condition.holds(shown):
        assert told
    elif is_exact(condition):
        assert not told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gendr = 'female'", "unknown name in --where=.* 'gendr'; did you mean 'gender'"),
        ("up_color = 'rad'", "unknown class of up_color in .* 'rad'; did you mean 'red'"),
        ("up_color > 0.5", "up_color has the classes black, .*; write .*: up_color.black"),
        ("backpack = 0.7", "unknown class of backpack .* '0.7'"),
        ("backpack > 'yes'", "backpack is compared with 'yes'; a probability is 0 to 1"),
        ("backpack > 7", "a probability is 0 to 1"),
        ("backpack.yes = 1", "backpack.yes is compared by <, <=, > or >="),
        ("camid = 'three'", "camid is compared with 'three', not a whole number"),
        ("camid = 3.5", "camid is compared with 3.5, not a whole number"),
        ("camid = 1e999", "camid is compared with inf, not a whole number of 64 bits"),
        ("camid in (1, -1e999)", "camid is compared with -inf, not a whole number of 64 bits"),
        ("frame < 9223372036854775808", "not a whole number of 64 bits"),
        ("time > 1e999", "time is compared with inf, not a finite number or a date"),
        ("path = 3", "path is compared with 3.0, not a text in quotes"),
        ("time > 'yesterday'", "'yesterday' is no time"),
        ("path like 'yard'", "'like' takes the beginning of a path and one %"),
        ("camid like '3%'", "'like' takes the beginning of a path"),
        ("gender like 'f%'", "=, !=, <, <=, >, >= or in is wanted"),
        ("camid = 3 camid", "at 'camid' 'and', 'or' or its end is wanted"),
        ("camid =", "at its end a number or a text in quotes is wanted"),
        ("camid in 3", "at '3' '\\(' is wanted"),
        ("(camid = 3", "at its end '\\)' is wanted"),
        ("camid not 3", "at '3' 'in' is wanted"),
        ("and", "at 'and' a name is wanted"),
        ("camid = 3 ; drop", "at '; drop' a name, a number, a text in quotes or a sign is wanted"),
        ("path = 'a", "at .* a name, a number, a text in quotes or a sign is wanted"),
        ("(" * 5000, "too many brackets"),
    ],
)
def test_what_is_no_condition_is_named(text, message):
    with pytest.raises(InputError, match=message):
        where.parse(text, LABELS)


@given(st.text(alphabet="()<>=!.,'\" nortiand0123abcgender%", max_size=40))
def test_any_text_is_a_condition_or_an_input_error(text):
    with contextlib.suppress(InputError):
        where.parse(text, LABELS)
