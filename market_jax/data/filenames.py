"""What the file names of person crops say.

A grammar, a regular expression for whole names, turns a name into its columns. Unknown values are
-1; but a pid of -1 means junk, and an unknown pid is -2.
"""

import re

from market_jax.errors import InputError
from market_jax.registry import choose

JUNK, DISTRACTOR, UNKNOWN_PID = -1, 0, -2

_ENDING = r"(?i:\.(jpe?g|png|webp|bmp))"
_PERSON = r"(?P<pid>-1|\d{4,9})"


def _naming(pattern: str) -> re.Pattern:
    """A pattern for names, without the ending."""
    return re.compile(pattern + _ENDING, re.ASCII)


_GRAMMARS = {
    # pid, camera, sequence, frame, box: 0002_c1s1_000451_03.jpg, -1_c3s2_014566_01.jpg; the
    # official pictures of identity 1488 end in .jpg.jpg
    "market1501": _naming(
        _PERSON
        + r"_c(?P<camid>\d{1,4})s(?P<sequence>\d{1,4})_(?P<frame>\d{6,9})_\d{2}(\.jpg(?=\.jpg$))?"
    ),
    # pid, camera, and a number without meaning: 0002_c1_016620005.jpg
    "unitn": _naming(r"(?P<pid>\d{4,9})_c(?P<camid>\d{1,4})_\d{9}"),
    # pid, camera, frame: 0001_c2_f0046182.jpg
    "dukemtmc": _naming(_PERSON + r"_c(?P<camid>\d{1,4})_f(?P<frame>\d{7,9})"),
    # pid, number, camera, time of day, frame, box: 0000_000_01_0303morning_0015_0.jpg; persons are
    # counted from 0, and 1 is added
    "msmt17": _naming(r"(?P<pid>\d{4,9})_\d{3}_(?P<camid>\d{2})_\d{4}[a-z]+_(?P<frame>\d{4})_\d+"),
    # pid, camera, frame, box: 0001_c001_00016450_0.jpg
    "veri": _naming(r"(?P<pid>\d{4,9})_c(?P<camid>\d{3})_(?P<frame>\d{8})_\d+"),
    # pid, camera, and numbers: 0001_c1_1.png
    "cuhk03_np": _naming(_PERSON + r"_c(?P<camid>\d{1,4})_\d{1,4}(_\d+)?"),
    # pid, camera, tracklet, frame: 0001C1T0002F003.jpg, 00-1C1T0001F001.jpg
    "mars": _naming(r"(00(?=-1))?" + _PERSON + r"C(?P<camid>\d)T\d{4}F(?P<frame>\d{3})"),
    # nothing known: 000123.jpg
    "anonymous": _naming(r"\d{6}"),
}
ANY = re.compile(r".*", re.DOTALL)  # a naming of which nothing is read
_FROM_ZERO = ("msmt17",)
_STRAY = re.compile(r"(.*\S)\s*\(\d+\)(\.[^.]+)")  # 000123(1).jpg, left by a second download
_NOT_IMAGES = re.compile(r"\..*|Thumbs\.db|desktop\.ini|.*\.(txt|csv|mat|md|json)", re.IGNORECASE)


def parse(name: str, grammar: str | re.Pattern) -> dict[str, int] | None:
    """Name -> {"pid", "camid", "sequence", "frame"}; None if the name does not follow the grammar.

    camid and sequence count from 1, as in the names; frame is the official frame number.

    Args:
      name: the file's name.
      grammar: the name of a known naming, or a regular expression for whole names with the groups
        "pid", "camid", "sequence" and "frame", as far as they are known.

    Raises:
      InputError: there is no such naming.
    """
    first = int(grammar in _FROM_ZERO) if isinstance(grammar, str) else 0
    if isinstance(grammar, str):
        grammar = choose(grammar, _GRAMMARS, "naming")
    match = grammar.fullmatch(name)
    if match is None:
        return None
    found = {key: value for key, value in match.groupdict().items() if value is not None}
    numbers = {k: int(found.get(k, -1)) for k in ("camid", "sequence", "frame")}
    pid = int(found["pid"]) + first if "pid" in found else UNKNOWN_PID
    return {"pid": pid} | numbers


def original_of(name: str) -> str | None:
    """`000123.jpg` for `000123(1).jpg`, which may be a stray copy of it; None for other names."""
    match = _STRAY.fullmatch(name)
    return "".join(match.groups()) if match else None


def is_image(name: str) -> bool:
    """False for hidden files and for text files and others that are often left beside pictures."""
    return _NOT_IMAGES.fullmatch(name) is None


def detect(names: list[str]) -> str:
    """The known naming that fits the most names.

    Args:
      names: file names.

    Raises:
      InputError: no naming fits any; the message shows a name and the known namings.
    """
    counts = {g: sum(parse(name, g) is not None for name in names) for g in _GRAMMARS}
    best = max(counts, key=counts.get)  # the first of several
    if not counts[best]:
        example = names[0] if names else "(no file)"
        raise InputError(f"{example!r} is in no known naming; known: {', '.join(_GRAMMARS)}")
    return best
