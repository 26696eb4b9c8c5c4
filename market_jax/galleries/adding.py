"""Adds the pictures of a folder to a gallery's database: none is described twice."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from market_jax import devices, progress
from market_jax.api import Model
from market_jax.data import decoding, folders
from market_jax.errors import InputError
from market_jax.galleries import records
from market_jax.galleries import where as where_
from market_jax.galleries.records import Record
from market_jax.galleries.store import Store

_CHUNK = 256  # pictures that are described and written at a time


class Added(NamedTuple):
    """What has become of the pictures of a folder.

    Attributes:
      described: the number that were described and are new in the gallery.
      known: the number that were there already.
      moved: how many of these were in another place, which is gone.
      updated: how many of these have now another camera, sequence, frame or time.
      replaced: the number that left the gallery, because their file has another content now.
      skipped: what is wrong with each that was left out.
    """

    described: int
    known: int
    moved: int
    updated: int
    replaced: int
    skipped: tuple[str, ...]


class Adding:
    """Adds pictures a chunk at a time; every process describes, the one with the database writes.

    Args:
      model: the network.
      store: the database; None in processes that do not write.
      flip: describe a picture by the mean with its mirror image.
      report: collects the bad pictures and rows that are left out.
    """

    def __init__(self, model: Model, store: Store | None, flip: bool, report: folders.Report):
        self.model, self.store, self.flip, self.report = model, store, flip, report
        self._done: set[str] = set()  # digests of pictures that are in the gallery
        self._at: dict[str, set[str]] = {}  # path -> digests of the rows that say so, before

    def add(self, found: list[Record], folder: Path) -> Added:
        """Adds pictures.

        Args:
          found: their records.
          folder: the folder that has them all.
        """
        counts = np.zeros(5, int)
        if self.store is not None:
            within = where_.Field("path", "like", f"{str(folder).rstrip('/')}/")
            for row in self.store.rows(within.filter(), ("id", "path")):
                self._at.setdefault(row["path"], set()).add(row["id"])
        chunks = [found[i : i + _CHUNK] for i in range(0, len(found), _CHUNK)]
        for chunk in progress.track(chunks, "described"):
            digests = records.digests(chunk, self.report)
            by_id: dict[str, Record] = {}
            for record in chunk:
                digest = digests.get(record["path"])
                if digest and digest not in self._done:
                    by_id.setdefault(digest, record)  # of equal files the first
            counts[:4] += self._write(by_id)
            counts[4] += self._replace(digests)
        return Added(*counts.tolist(), tuple(self.report.skipped))

    def _write(self, by_id: Mapping[str, Record]) -> tuple[int, int, int, int]:
        """Adds some pictures: how many were described, known, moved, updated."""
        known = self._known(list(by_id))
        new, stop = self._readable({k: record for k, record in by_id.items() if k not in known})
        if new:
            found = self.model.describe([r["path"] for r in new.values()], flip=self.flip)
            if self.store is not None:
                self.store.add(list(records.rows(new, *found)))
        changes = {key: records.changes(row, by_id[key]) for key, row in known.items() if row}
        changes = {key: fields for key, fields in changes.items() if fields}
        if changes:
            self.store.update(changes)
        for key, fields in changes.items():
            if "path" in fields:
                self._at.get(known[key]["path"], set()).discard(key)
        if stop is not None:
            raise stop
        self._done |= known.keys() | new.keys()
        moved = sum("path" in fields for fields in changes.values())
        updated = sum(bool(fields.keys() & records.UNKNOWN) for fields in changes.values())
        return len(new), len(known), moved, updated

    def _readable(self, new: Mapping[str, Record]) -> tuple[dict[str, Record], InputError | None]:
        """Those that can be read; where one that cannot stops it, those before, and the error."""
        found = {}
        for key, record in new.items():
            try:
                decoding.read(record["path"])
                found[key] = record
            except InputError as error:
                try:
                    self.report.bad(str(error))
                except InputError as stop:
                    return found, stop
        return found, None

    def _known(self, ids: list[str]) -> dict[str, dict[str, Any]]:
        """Id -> row of those that are there; processes that do not write get empty rows."""
        fields = ("id", *where_.FIELDS)
        rows = self.store.get(ids, fields) if self.store is not None else ()
        found = {row["id"]: row for row in rows}
        there = devices.from_first(np.array([key in found for key in ids], bool))
        return {ids[i]: found.get(ids[i], {}) for i in np.flatnonzero(there)}

    def _replace(self, digests: Mapping[str, str]) -> int:
        """Removes rows whose files have another content now, which is in the gallery: how many."""
        gone = [
            key
            for path, now in digests.items()
            for key in self._at.pop(path, ())
            if key != now and now in self._done
        ]
        if gone:
            self.store.remove(gone)
        return len(gone)
