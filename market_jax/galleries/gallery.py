"""A gallery of a user's pictures: described once, searched by picture and by what people wear."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from market_jax import calibration, devices
from market_jax.api import Model, Picture
from market_jax.calibration import Calibration
from market_jax.data import folders
from market_jax.errors import InputError
from market_jax.galleries import records, reranking
from market_jax.galleries import where as where_
from market_jax.galleries.adding import Added, Adding
from market_jax.galleries.store import FIELDS, MOST, Store, public

_DEPTH = 5  # times as many answers are re-ranked as are wanted
_LEAST = 100  # answers that are re-ranked


class Hit(NamedTuple):
    """A picture of the gallery that answers a query.

    Attributes:
      id: a digest of the picture's file.
      path: the file.
      distance: to the query; after re-ranking the re-ranker's.
      attributes: label -> (its most likely class, that class's probability).
      camid: the camera; -1 where it is not known, as with the next ones.
      sequence: of the camera's recordings.
      frame: in the sequence.
      time: seconds since 1970.
    """

    id: str
    path: str
    distance: float
    attributes: dict[str, tuple[str, float]]
    camid: int = -1
    sequence: int = -1
    frame: int = -1
    time: float = -1.0


class Gallery:
    """Pictures that a network has described, kept by a database.

    Args:
      place: a folder, or the address of a Milvus server, "http://...".
      model: the network. What another one has described is not seen by it.
      flip: describe a picture by the mean with its mirror image; another gallery than without.
      index: Milvus's kind of index, FLAT, which searches exactly, if it is "".
      create: make the gallery if it is not there.

    Raises:
      InputError: there is no such gallery, or it cannot be opened; see `Store`.
    """

    def __init__(
        self,
        place: str | Path,
        model: Model,
        *,
        flip: bool = False,
        index: str = "",
        create: bool = False,
    ):
        self.place, self.model, self.flip = public(place), model, flip
        schema, names = model.run.schema.labels, model.output_names()
        self.labels = {name: classes for name, classes in schema.items() if name in names}
        self._store = None
        self._size = model.embed([], flip=flip).shape[1]  # by all processes together
        if devices.share()[0] == 0:  # other processes describe, this one writes
            network = hashlib.sha256(f"{model.digest}{flip}".encode()).hexdigest()[:16]
            self._store = Store(place, network, size=self._size, index=index, create=create)

    def __enter__(self) -> "Gallery":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Closes the database; nothing can be asked of the gallery then."""
        if self._store is not None:
            self._store.close()

    def __len__(self) -> int:
        """The number of pictures; every process gets it."""
        return int(devices.from_first(len(self._store) if self._store is not None else 0))

    def add(
        self, folder: str | Path, *, table: str | Path | None = None, skip_bad: bool = False
    ) -> Added:
        """Describes the pictures of a folder that are not in the gallery yet.

        Each few hundred are written before the next, so that, stopped at any moment, the same call
        goes on. Of equal files the first is kept. What is said of the camera and the time of a
        picture that is known replaces what was, and what is not said stays. Where a file of the
        folder has another content than was described, what was described leaves the gallery; an
        equal file in another folder comes back as that one is added.

        Args:
          folder: the folder with the pictures, and with folders of them.
          table: a CSV that lists them: name, and camid, sequence, frame or time as far as they are
            known; None reads camera and frame from names that follow a known naming.
          skip_bad: leave out bad pictures and rows, instead of raising an error.

        Returns:
          How many were new, known and so on.

        Raises:
          InputError: the folder or the table is not as it should be, or a picture is none.

        >>> gallery.add(folder)
        Added(described=6, known=0, moved=0, updated=0, replaced=0, skipped=())
        >>> gallery.add(folder).known
        6
        """
        report = folders.Report(skip_bad)
        found = records.read(Path(folder), Path(table) if table else None, report)
        adding = Adding(self.model, self._store, self.flip, report)
        return adding.add(found, records.absolute(folder))

    def remove(self, paths: Sequence[str | Path]) -> int:
        """Removes pictures from the gallery, not from the disk.

        Args:
          paths: pictures, or folders whose pictures are meant.

        Returns:
          How many were removed.

        Raises:
          InputError: the gallery has none in one of these places.

        >>> gallery.remove([folder])
        6
        >>> gallery.add(folder).described
        6
        """
        if self._store is None:
            return 0
        ids: dict[str, None] = {}
        for path in paths:
            place = str(records.absolute(path))
            within = where_.Field("path", "like", place).filter()
            rows = self._store.rows(within, ("id", "path"))
            found = [r["id"] for r in rows if r["path"] == place or place in _above(r["path"])]
            if not found:
                raise InputError(f"{place}: the gallery {self.place} has no picture there")
            ids |= dict.fromkeys(found)
        self._store.remove(list(ids))
        return len(ids)

    def search(
        self,
        query: Picture,
        *,
        where: str = "",
        top_k: int = 20,
        rerank: Sequence[str] = (),
    ) -> list[Hit]:
        """The pictures that are most like a query, and hold a condition.

        Args:
          query: one picture, a path or uint8 [H, W, 3]; or its embedding, float [D].
          where: the condition, see `galleries.where`; "" takes all.
          top_k: the number of answers, 1 to 16,384.
          rerank: re-rankers in words, such as "k_reciprocal k1=20", which change the order of the
            nearest: of the answers and of a few times as many behind them.

        Returns:
          Answers by ascending distance; fewer where not as many hold the condition.

        Raises:
          InputError: the query is not one picture, `top_k` is out of range, or a condition or
            re-ranker is none.

        >>> hits = gallery.search(pictures[0], where="hat <= 1.0 and camid > 0", top_k=3)
        >>> len(hits), hits[0].path == str(folder / pictures[0].name)
        (3, True)
        """
        if not 1 <= top_k <= MOST:
            raise InputError(f"top_k is {top_k}; it must be 1 to {MOST}")
        condition = where_.parse(where, self.labels) if where.strip() else None
        rerankers = [reranking.bind(text) for text in rerank]
        vector = self._embed(query)
        count = min(max(_DEPTH * top_k, _LEAST), MOST) if rerankers else top_k
        rows = self._nearest(vector, count, condition, embeddings=bool(rerankers))
        if rerankers and rows:
            rows = reranking.apply(vector, rows, rerankers)
        return [self._hit(row) for row in rows[:top_k]]

    def _embed(self, query: Picture) -> np.ndarray:
        """The embedding of a query float [D], which is one picture or an embedding."""
        is_path, is_array = isinstance(query, str | Path), isinstance(query, np.ndarray)
        if (is_array and query.ndim == 3) or (is_path and not Path(query).is_dir()):
            return self.model.embed(query, flip=self.flip)[0]
        is_vector = is_array and query.dtype.kind == "f" and query.shape == (self._size,)
        if is_vector and np.isfinite(query).all():
            return query
        found = f"{query.dtype} {query.shape}" if is_array else f"a {type(query).__name__}"
        raise InputError(
            f"the query is {f'the folder {query}' if is_path else found}; it must be one picture, "
            f"a path or uint8 [height, width, 3], or its embedding, {self._size} finite floats"
        )

    def _nearest(
        self,
        vector: np.ndarray,
        count: int,
        condition: where_.Condition | None,
        embeddings: bool,
    ) -> list[dict[str, Any]]:
        """The nearest rows that hold a condition, of which the database knows a part."""
        text = condition.filter() if condition else ""
        store, limit = self._opened(), count
        while True:
            rows = store.search(vector, limit, text, embeddings=embeddings)
            held = [row for row in rows if condition is None or condition.holds(row)]
            if len(held) >= count or len(rows) < limit:
                return held[:count]
            if limit >= MOST:
                raise InputError(
                    f"more than {MOST} pictures are as near and nearly hold the condition; give "
                    "one that says more, or a smaller top_k"
                )
            limit = min(4 * limit, MOST)

    def all(self, where: str = "") -> Iterator[Hit]:
        """Yields the pictures that hold a condition, in no order; their distance is NaN.

        Args:
          where: the condition, see `galleries.where`; "" takes all.

        Raises:
          InputError: the condition is none.

        >>> len([hit.path for hit in gallery.all("camid > 0")])
        6
        """
        condition = where_.parse(where, self.labels) if where.strip() else None
        for row in self._opened().rows(condition.filter() if condition else ""):
            if condition is None or condition.holds(row):
                yield self._hit(row | {"distance": np.nan})

    def folder(self) -> Path:
        """The folder that holds all pictures of the gallery; "/" where there is none.

        A few rows are read of a gallery of any size: one picture outside, as long as there is one.

        >>> gallery.folder() == folder
        True
        """
        outside = self._a_path("like", "/")
        common = os.path.dirname(outside or "/")
        while (outside := self._a_path("not like", common)) is not None:
            shorter = os.path.commonpath([common, os.path.dirname(outside)])
            if shorter == common:  # a name that the database takes to be outside
                break
            common = shorter
        return Path(common)

    def holds(self, folder: str | Path) -> bool:
        """Whether a picture of the gallery is in a folder, or in one within.

        Args:
          folder: the folder.

        >>> gallery.holds(folder), gallery.holds(folder / "elsewhere")
        (True, False)
        """
        return self._a_path("like", str(records.absolute(folder))) is not None

    def _a_path(self, sign: str, folder: str) -> str | None:
        """The path of some picture in a folder ("like") or not in it ("not like")."""
        within = where_.Field("path", sign, f"{folder.rstrip('/')}/")
        found = self._opened().some(within.filter(), ("path",), count=1)
        return found[0]["path"] if found else None

    def find(self, id: str) -> tuple[Hit, np.ndarray]:
        """Finds a picture of the gallery.

        Args:
          id: the picture's.

        Returns:
          The picture, its distance NaN, and its embedding float32 [D].

        Raises:
          InputError: the gallery has no such picture.

        >>> hit, embedding = gallery.find(next(gallery.all()).id)
        >>> embedding.shape
        (12,)
        """
        rows = self._opened().get([id], FIELDS)
        if not rows:
            raise InputError(f"{id}: the gallery {self.place} has no such picture")
        return self._hit(rows[0] | {"distance": np.nan}), np.float32(rows[0]["embedding"])

    def _opened(self) -> Store:
        if self._store is None:
            raise InputError("of several processes the first one alone can search a gallery")
        return self._store

    def calibration(self) -> Calibration | None:
        """Finds the distance up to which two pictures show the same person.

        Returns:
          It, and how often it is right; None where no evaluation has found it.

        >>> gallery.calibration() is None  # this one describes pictures without their mirror image
        True
        """
        try:
            found = calibration.find(self.model.run)
        except InputError:
            return None
        return found if (found.metric, found.flip) == ("cosine", self.flip) else None

    def _hit(self, row: Mapping[str, Any]) -> Hit:
        attributes, first = {}, 0
        for label, classes in self.labels.items():
            values = list(row["probabilities"])[first : first + len(classes)]
            best = int(np.argmax(values))
            attributes[label] = classes[best], float(values[best])
            first += len(classes)
        known = {name: row[name] for name in where_.FIELDS}
        return Hit(row["id"], distance=float(row["distance"]), attributes=attributes, **known)


def _above(path: str) -> set[str]:
    return {str(parent) for parent in Path(path).parents}
