"""What the file names of person crops say.

A grammar, a regular expression for whole names, turns a name into its columns. Unknown values are
-1; but a pid of -1 means junk, and an unknown pid is -2.
"""

import re

from market_jax.errors import InputError
from market_jax.registry import choose

JUNK, DISTRACTOR, UNKNOWN_PID = -1, 0, -2

_GRAMMARS = {
    # pid, camera, sequence, frame, box: 0002_c1s1_000451_03.jpg, -1_c3s2_014566_01.jpg; the
    # official pictures of identity 1488 end in .jpg.jpg
    "market1501": re.compile(
        r"(?P<pid>-1|\d{4})_c(?P<camid>\d)s(?P<sequence>\d)_(?P<frame>\d{6})_(?P<box>\d{2})\.jpg(\.jpg)?"
    ),
    # pid, camera, and a number without meaning: 0002_c1_016620005.jpg
    "unitn": re.compile(r"(?P<pid>\d{4})_c(?P<camid>\d)_\d{9}\.jpg"),
    # nothing known: 000123.jpg
    "anonymous": re.compile(r"\d{6}\.jpg"),
}
_STRAY = re.compile(r".*\(\d+\)\.[^.]+")  # 000123(1).jpg, left behind by a second download
_NOT_IMAGES = re.compile(r"\..*|Thumbs\.db|desktop\.ini|.*\.txt|.*\.csv", re.IGNORECASE)


def parse(name: str, grammar: str | re.Pattern) -> dict[str, int] | None:
    """Name -> {"pid", "camid", "sequence", "frame"}; None if the name does not follow the grammar.

    camid and sequence count from 1, as in the names; frame is the official frame number.

    Args:
      name: the file's name.
      grammar: the name of a known naming, or a regular expression for whole names with the groups
        "pid" and, if they are known, "camid", "sequence" and "frame".

    Raises:
      InputError: there is no such naming.
    """
    if isinstance(grammar, str):
        grammar = choose(grammar, _GRAMMARS, "naming")
    match = grammar.fullmatch(name)
    if match is None:
        return None
    found = match.groupdict()
    pid = int(found.get("pid", UNKNOWN_PID))
    return {"pid": pid} | {k: int(found.get(k, -1)) for k in ("camid", "sequence", "frame")}


def is_stray(name: str) -> bool:
    """True for a stray copy such as `000123(1).jpg`."""
    return _STRAY.fullmatch(name) is not None


def is_image(name: str) -> bool:
    """False for hidden files and for text files and others that are often left beside pictures."""
    return _NOT_IMAGES.fullmatch(name) is None


def detect(names: list[str]) -> str:
    """The first known naming that fits one of the names.

    Args:
      names: file names.

    Raises:
      InputError: no naming fits; the message shows a name and the known namings.
    """
    for grammar in _GRAMMARS:
        if any(parse(name, grammar) for name in names):
            return grammar
    example = names[0] if names else "(no file)"
    raise InputError(f"{example!r} is in no known naming; known: {', '.join(_GRAMMARS)}")
