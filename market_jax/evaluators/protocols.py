"""Evaluation protocols: which images are queries, and which are the gallery.

Results under different protocols are not comparable, so they are kept apart. "market" is
Market-1501's: matches from the query's own camera do not count. "course" is the course's, which
uses no cameras: a share of the images are queries and the rest is the gallery. In
"course_with_self" the gallery is all images, the queries too, as on the course release, where each
query has a byte-identical twin.
"""

from typing import NamedTuple

import numpy as np

from market_jax.data.columns import select
from market_jax.errors import InputError
from market_jax.metrics.ranking import find_matches
from market_jax.typing import Columns

COURSE_SHARE = 0.2
NAMES = ("market", "course", "course_with_self")


class Protocol(NamedTuple):
    """Which images are queries, which are searched, and what counts as a match.

    Attributes:
      query: columns of the queries.
      gallery: columns of the images that are searched.
      by_camera: whether images of the same person from the query's own camera are left out.
    """

    query: Columns
    gallery: Columns
    by_camera: bool

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """The identities and cameras as keyword arguments for `market_jax.metrics.ranking`."""
        sides = {"query": self.query, "gallery": self.gallery}
        keys = {"pids": "pid"} | ({"camids": "camid"} if self.by_camera else {})
        return {f"{s}_{k}": rows[c] for s, rows in sides.items() for k, c in keys.items()}


def _persons(rows: Columns) -> np.ndarray:
    found = np.flatnonzero(rows["pid"] > 0)
    if len(found) == 0:
        raise InputError("no image shows a known person (pid above 0): nothing can be judged")
    return found


def market(rows: Columns, seed: int = 0) -> Protocol:
    """One query for each person and camera; the gallery is all images.

    Args:
      rows: columns of the images, with "pid" and "camid".
      seed: seeds the choice of queries.

    Raises:
      InputError: no image shows a known person, or an image's camera is not known.
    """
    persons = _persons(rows)
    if rows["camid"][persons].min() < 0:
        raise InputError("the protocol 'market' needs every image's camera; some have none")
    shuffled = np.random.default_rng(seed).permutation(persons)
    pairs = np.stack([rows["pid"][shuffled], rows["camid"][shuffled]], axis=1)
    first = np.unique(pairs, axis=0, return_index=True)[1]
    return Protocol(select(rows, np.sort(shuffled[first])), rows, by_camera=True)


def course(rows: Columns, seed: int = 0, *, with_self: bool = False) -> Protocol:
    """A fifth of the persons' images are queries; the gallery is the rest, or all images.

    Args:
      rows: columns of the images, with "pid".
      seed: seeds the choice of queries.
      with_self: whether the queries are in the gallery too.

    Raises:
      InputError: no image shows a known person.
    """
    persons = _persons(rows)
    count = max(round(COURSE_SHARE * len(persons)), 1)
    chosen = np.zeros(len(rows["pid"]), bool)
    chosen[np.random.default_rng(seed).permutation(persons)[:count]] = True
    gallery = rows if with_self else select(rows, ~chosen)
    return Protocol(select(rows, chosen), gallery, by_camera=False)


def count_without_match(protocol: Protocol) -> int:
    """The number of queries that have no true match, and do not count.

    Args:
      protocol: the queries and the gallery.
    """
    return int((~(find_matches(**protocol.labels).true >= 0).any(axis=1)).sum())


def why_left_out(name: str, rows: Columns, queries: Columns | None) -> str:
    """Why `make` has left a protocol out, in words.

    Args:
      name: the name of the protocol.
      rows: columns of the images.
      queries: columns of the data set's own queries, if there are any.
    """
    unknown = int((rows["camid"][rows["pid"] > 0] < 0).sum())
    if name == "market" and queries is None and unknown:
        return f"the camera of {unknown} images is not known"
    where = " from another camera" if name == "market" else ""
    return f"no query has a match{where}"


def make(rows: Columns, queries: Columns | None = None, seed: int = 0) -> dict[str, Protocol]:
    """Makes every protocol that the images allow: name -> protocol.

    A protocol in which no query has a match is left out: with one camera, "market" has none.

    Args:
      rows: columns of the images, with "pid" and "camid".
      queries: columns of the data set's own queries, for "market"; None chooses them from `rows`.
      seed: seeds the choice of queries.

    Raises:
      InputError: no image shows a known person, or no protocol has a match.
    """
    made = {}
    if queries is not None:
        if min(side["camid"].min(initial=0) for side in (queries, rows)) < 0:
            raise InputError("a query's or a gallery image's camera is not known")
        made["market"] = Protocol(queries, rows, by_camera=True)
    elif rows["camid"][_persons(rows)].min() >= 0:
        made["market"] = market(rows, seed)
    made["course"] = course(rows, seed)
    made["course_with_self"] = course(rows, seed, with_self=True)
    possible = {
        name: protocol
        for name, protocol in made.items()
        if count_without_match(protocol) < len(protocol.query["pid"])
    }
    if not possible:
        raise InputError("no query has a true match in the gallery: nothing can be judged")
    return possible
