"""Conditions on a gallery's pictures: "gender = 'female' and backpack > 0.7 and camid in (3, 4)".

A label is compared by its probabilities: `up_color in ('red', 'purple')` holds where those of red
and purple add up to more than one half, `backpack > 0.7` where that of "yes" is above 0.7, and
`up_color.red > 0.3` where that of red is above 0.3. The grammar:

    either    = both {"or" both}
    both      = single {"and" single}
    single    = "not" single | "(" either ")" | NAME ["." CLASS] comparison
    comparison = ("=" | "!=" | "<" | "<=" | ">" | ">=") VALUE
               | ["not"] "in" "(" VALUE {"," VALUE} ")" | ["not"] "like" 'BEGINNING%'
"""

import datetime
import json
import math
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from market_jax.errors import InputError
from market_jax.registry import choose

FIELDS = {"path": str, "camid": int, "sequence": int, "frame": int, "time": float}
LIKELY = 0.5  # the probability above which a picture is taken to show a class

_COMPARE = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda value, values: value in values,
    "not in": lambda value, values: value not in values,
    "like": lambda value, beginning: value.startswith(beginning),
    "not like": lambda value, beginning: not value.startswith(beginning),
}
_OPPOSITE = {"==": "!=", "<": ">=", "<=": ">", "in": "not in", "like": "not like"}
_OPPOSITE |= {other: name for name, other in _OPPOSITE.items()}
_TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*'|\"[^\"]*\")|(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)"
    r"|(?P<name>[^\W\d]\w*)|(?P<sign><=|>=|!=|<>|==|[=<>().,]))",
    re.IGNORECASE,
)
_LAST = "\U0010ffff"  # no sign comes after it
_ROUNDING = 1e-6  # of float32 probabilities


class Field(NamedTuple):
    """A comparison of what is known of a picture: `camid in (3, 4)`."""

    name: str
    sign: str
    value: Any

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Whether it holds for a picture."""
        return bool(_COMPARE[self.sign](row[self.name], self.value))

    def negated(self) -> "Field":
        """The opposite."""
        return self._replace(sign=_OPPOSITE[self.sign])

    def filter(self) -> str:
        """The same for the database.

        A beginning is a range of texts: how `like` reads a "_" depends on Milvus's version.
        """
        sign, value = self.sign.removeprefix("not "), self.value
        pairs = [(sign, value)] if sign != "like" else [(">=", value), ("<", value + _LAST)]
        texts = [f"{self.name} {s} {json.dumps(v, ensure_ascii=False)}" for s, v in pairs]
        return f"{'not ' * (sign != self.sign)}({' and '.join(texts)})"


class Probability(NamedTuple):
    """A comparison of the sum of some classes' probabilities with a limit."""

    at: tuple[int, ...]  # their positions in a picture's "probabilities"
    sign: str
    limit: float

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Whether it holds for a picture."""
        total = sum(float(row["probabilities"][i]) for i in self.at)
        return bool(_COMPARE[self.sign](total, self.limit))

    def negated(self) -> "Probability":
        """The opposite."""
        return self._replace(sign=_OPPOSITE[self.sign])

    def filter(self) -> str:
        """What the database can say of it, which adds up no fields: it holds wherever this does."""
        above = self.sign in (">", ">=")
        limit = self.limit
        if len(self.at) > 1:  # one of n is above an n-th, or all are below the whole
            limit = limit / len(self.at) - _ROUNDING if above else limit + _ROUNDING
        parts = [f"probabilities[{i}] {self.sign} {limit:.9g}" for i in self.at]
        return f"({(' or ' if above else ' and ').join(parts)})"


class Several(NamedTuple):
    """Conditions of which all hold ("and"), or one ("or")."""

    word: str
    parts: tuple

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Whether it holds for a picture."""
        return {"and": all, "or": any}[self.word](part.holds(row) for part in self.parts)

    def negated(self) -> "Several":
        """The opposite."""
        word = {"and": "or", "or": "and"}[self.word]
        return Several(word, tuple(part.negated() for part in self.parts))

    def filter(self) -> str:
        """What the database can say of it."""
        return f"({f' {self.word} '.join(part.filter() for part in self.parts)})"


Condition = Field | Probability | Several


def parse(text: str, labels: Mapping[str, Sequence[str]]) -> Condition:
    """Reads a condition.

    Args:
      text: as at the top of this file.
      labels: label -> the names of its classes, in the order of a picture's "probabilities".

    Raises:
      InputError: the text is no condition, or names a field, a label or a class that is not known.
    """
    reader = _Reader(text, labels)
    try:
        condition = reader.either()
    except RecursionError:
        raise InputError(
            f"--where: has too many brackets within each other: {text[:40]}..."
        ) from None
    if reader.kind:
        reader.fail("'and', 'or' or its end")
    return condition


class _Reader:
    """Reads a condition token by token: `kind` and `token` are the next one's."""

    def __init__(self, text: str, labels: Mapping[str, Sequence[str]]):
        self.text, self.labels, self.at = text, labels, 0
        counts = [len(classes) for classes in labels.values()]
        self.first = {name: sum(counts[:i]) for i, name in enumerate(labels)}
        self.next()

    def next(self) -> str:
        """Goes on to the next token, and returns the one before."""
        before = getattr(self, "token", "")
        found = _TOKEN.match(self.text, self.at)
        self.start, self.kind, self.token = self.at, "", ""
        if found:
            self.kind, self.token = found.lastgroup, found.group(found.lastgroup)
            self.at = found.end()
        elif self.text[self.at :].strip():
            self.fail("a name, a number, a text in quotes or a sign")
        return before

    def fail(self, wanted: str):
        """Says what stands where something else is wanted."""
        found = self.text[self.start :].strip()
        place = f"at {found!r}" if found else "at its end"
        raise InputError(f"--where={self.text!r}: {place} {wanted} is wanted")

    def is_word(self, *words: str) -> bool:
        """Whether the next token is one of some words, however written."""
        return self.kind == "name" and self.token.lower() in words

    def expect(self, sign: str) -> None:
        """Goes on beyond a sign that must stand here."""
        if self.token != sign:
            self.fail(repr(sign))
        self.next()

    def either(self) -> Condition:
        """Conditions with "or" between them."""
        return self._several("or", self.both)

    def both(self) -> Condition:
        """Conditions with "and" between them."""
        return self._several("and", self.single)

    def _several(self, word: str, part) -> Condition:
        parts = [part()]
        while self.is_word(word):
            self.next()
            parts.append(part())
        return Several(word, tuple(parts)) if len(parts) > 1 else parts[0]

    def single(self) -> Condition:
        """One condition, or several in brackets."""
        if self.is_word("not"):
            self.next()
            return self.single().negated()
        if self.token == "(":
            self.next()
            condition = self.either()
            self.expect(")")
            return condition
        if self.kind != "name" or self.is_word("and", "or", "in", "like"):
            self.fail("a name")
        name = self.next()
        choose(name, FIELDS | dict(self.labels), f"name in --where={self.text!r}:")
        return self.field(name) if name in FIELDS else self.label(name)

    def sign(self) -> str:
        """A comparison's sign: "==", "in", "not in" and so on."""
        denied = self.is_word("not")
        if denied:
            self.next()
        if self.is_word("in", "like"):
            return f"{'not ' * denied}{self.next().lower()}"
        found = {"=": "==", "<>": "!="}.get(self.token, self.token)
        if denied or found not in _COMPARE:
            self.fail("'in'" if denied else "=, !=, <, <=, >, >=, in or like")
        self.next()
        return found

    def value(self) -> str | float:
        """A text or a number."""
        kind, token = self.kind, self.token
        if kind not in ("text", "number"):
            self.fail("a number or a text in quotes")
        self.next()
        if kind == "number":
            return float(token)
        return token[1:-1].replace("''", "'") if token[0] == "'" else token[1:-1]

    def values(self, sign: str) -> list:
        """What stands after a sign: one value, or several in brackets."""
        if not sign.endswith("in"):
            return [self.value()]
        self.expect("(")
        found = [self.value()]
        while self.token == ",":
            self.next()
            found.append(self.value())
        self.expect(")")
        return found

    def field(self, name: str) -> Field:
        """A comparison of what is known of a picture."""
        sign = self.sign()
        values = self.values(sign)
        if not sign.endswith("like"):
            values = [self._of_kind(name, value) for value in values]
            return Field(name, sign, values if sign.endswith("in") else values[0])
        if FIELDS[name] is not str or not re.fullmatch("[^%]*%", str(values[0]), re.DOTALL):
            raise InputError(
                f"--where={self.text!r}: 'like' takes the beginning of a path and one %, 'yard/%'"
            )
        return Field(name, sign, values[0][:-1])

    def _of_kind(self, name: str, value: str | float) -> str | float | int:
        """A value of a field's kind; a time may be a date."""
        kind = FIELDS[name]
        if name == "time" and isinstance(value, str):
            return seconds(value, f"--where={self.text!r}")
        if isinstance(value, str) == (kind is str) and (kind is str or _fits(value, kind)):
            return kind(value)
        wanted = {
            str: "a text in quotes",
            int: "a whole number of 64 bits",
            float: "a finite number or a date",
        }[kind]
        raise InputError(f"--where={self.text!r}: {name} is compared with {value!r}, not {wanted}")

    def label(self, name: str) -> Probability:
        """A comparison of a label's probabilities."""
        classes = self.labels[name]
        if self.token == ".":
            self.next()
            found = self.next() if self.kind == "name" else self.value()
            return self._limit(self._at(name, found), f"{name}.{found}")
        if self.kind == "sign" and self.token[0] in "<>" and self.token != "<>":
            if set(classes) != {"no", "yes"}:
                raise InputError(
                    f"--where={self.text!r}: {name} has the classes {', '.join(classes)}; write "
                    f"which one's probability is meant: {name}.{classes[0]}"
                )
            return self._limit(self._at(name, "yes"), name)
        sign = self.sign()
        if sign.endswith("like"):
            self.fail("=, !=, <, <=, >, >= or in")
        at = tuple(dict.fromkeys(self._at(name, value) for value in self.values(sign)))
        return Probability(at, ">" if sign in ("==", "in") else "<=", LIKELY)

    def _at(self, name: str, value: str | float) -> int:
        """The position of a class's probability."""
        classes = {each: i for i, each in enumerate(self.labels[name])}
        what = f"class of {name} in --where={self.text!r}:"
        return self.first[name] + choose(str(value), classes, what)

    def _limit(self, at: int, name: str) -> Probability:
        """A comparison of one probability with a number."""
        sign = self.sign()
        if sign not in ("<", "<=", ">", ">="):
            raise InputError(f"--where={self.text!r}: {name} is compared by <, <=, > or >=")
        limit = self.value()
        if isinstance(limit, str) or not 0 <= limit <= 1:
            raise InputError(
                f"--where={self.text!r}: {name} is compared with {limit!r}; a probability is 0 to 1"
            )
        return Probability((at,), sign, limit)


def _fits(value: float, kind: type) -> bool:
    """Whether a number is one of a kind, as the database keeps it: int64 or float64."""
    is_whole = value.is_integer() and -(2**63) <= value < 2**63
    return is_whole if kind is int else math.isfinite(value)


def seconds(text: str, where: str) -> float:
    """A time as seconds since 1970.

    Args:
      text: a date and time as in ISO 8601, "2026-05-01 10:30"; of this machine's zone where it
        names none.
      where: what it is of, for the message.

    Raises:
      InputError: it is no such date.
    """
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise InputError(
            f"{where}: {text!r} is no time; write it as 2026-05-01 or 2026-05-01 10:30:00"
        ) from None
