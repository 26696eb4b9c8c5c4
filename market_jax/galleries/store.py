"""The database of a gallery: Milvus, embedded in a folder, or a server or cluster by its address.

Every picture is a row: "id", a digest of the file; "path", "camid", "sequence", "frame" and "time",
-1 where they are not known; "embedding" [D], and "probabilities", those of the classes of all
labels side by side. Rows of different networks lie in collections of their own.
"""

import contextlib
import fcntl
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from market_jax.errors import InputError
from market_jax.galleries.where import FIELDS as KNOWN
from market_jax.registry import choose

PREFIX = "market_jax_"
FILE = "gallery.db"
MOST = 16_384  # answers that a server gives at a time
_PAGE = 1000  # rows at a time
_LONGEST = 4096  # path
_CLASSES = 4096  # probabilities of a picture
INDICES = {  # neighbours and lists of each kind of index
    "FLAT": {},
    "HNSW": {"M": 16, "efConstruction": 200},
    "IVF_FLAT": {"nlist": 1024},
    "IVF_PQ": {"nlist": 1024, "nbits": 8},
}
_CALM = {"grpc.keepalive_time_ms": 600_000}  # the embedded server hangs up on more than it expects
_PROBES, _WIDTH = 64, 200  # lists and neighbours that a search looks at
_SAID = ("id", *KNOWN, "probabilities")
FIELDS = (*_SAID, "embedding")  # of a row


def _milvus():
    try:
        import pymilvus
    except ImportError:
        raise InputError("a gallery needs: pip install 'market_jax[gallery]'") from None
    for name in ("pymilvus", "grpc._server"):  # what they say comes as an exception, too
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return pymilvus


@contextlib.contextmanager
def _said(where: str) -> Iterator[None]:
    """Errors of the database as `InputError`."""
    milvus = _milvus()
    try:
        yield
    except milvus.MilvusException as error:
        raise InputError(f"{where}: the gallery's database says: {error.message}") from None


def public(where: str | Path) -> str:
    """A place without the name and the password in its address, as messages and pages show it.

    Args:
      where: a folder, or an address.
    """
    return re.sub(r"^(\w+://).*@", r"\1", str(where))


def _lock(folder: Path) -> TextIO:
    """Makes a folder this program's alone, until what is returned is closed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise InputError(f"{folder}: cannot be opened ({error.strerror})") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise InputError(f"{folder}: another program has this gallery open") from None
    return lock


class Store:
    """The rows of one network's pictures.

    Args:
      where: a folder, which is made if it is not there; or the address of a server, "http://...",
        with "USER:PASSWORD@" before the host where it wants them.
      network: a digest of the network.
      size: D, of the embeddings.
      metric: "cosine" or "euclidean".
      index: a name in `INDICES`, Milvus's kind of index: FLAT searches exactly, others do not. ""
        takes the one that is there, and makes FLAT.
      create: whether the collection is made if it is not there.

    Raises:
      InputError: the package is not installed, another program has the folder open, the server
        does not answer, there is nothing of this network, or it has another index.
    """

    def __init__(
        self,
        where: str | Path,
        network: str,
        *,
        size: int,
        metric: str = "cosine",
        index: str = "",
        create: bool = False,
    ):
        self.where, self.metric = public(where), metric
        self._unsettled = True  # rows of a program that was stopped, or those that are added
        self._name = PREFIX + network
        self._open(str(where), create)
        try:
            with _said(self.where):
                if not self._is_whole():
                    if not create:
                        self._refuse()
                    self._create(size, index or "FLAT")
                elif index:
                    self._check_index(index)
                self._client.load_collection(self._name)
        except BaseException:
            self.close()
            raise

    def _open(self, where: str, create: bool) -> None:
        """Opens the folder, which is then nobody else's, or connects to the server."""
        milvus, self._lock = _milvus(), None
        if re.match(r"https?://|unix:|tcp://", where):
            with _said(self.where):
                try:
                    self._client = milvus.MilvusClient(where, timeout=60)
                except ValueError:
                    text = f"{self.where}: is no address of a server, as http://HOST:19530 is"
                    raise InputError(text) from None
            return
        folder = Path(where).expanduser()
        if not (folder / FILE).exists() and not create:
            raise InputError(
                f"{folder}: holds no gallery; make one: python evaluate.py --task=index "
                f"--images=FOLDER --gallery={folder}"
            )
        self._lock = _lock(folder)
        with _said(self.where):
            self._client = milvus.MilvusClient(str(folder / FILE), grpc_options=_CALM)

    def _refuse(self) -> None:
        """Says that no picture of this network is here."""
        others = [n for n in self._client.list_collections() if n.startswith(PREFIX)]
        text = f"; others have described some: {len(others)} networks" if others else ""
        raise InputError(f"{self.where}: the gallery has no pictures of this network{text}")

    def _is_whole(self) -> bool:
        """Whether the collection is there, with the index that is made last."""
        client, name = self._client, self._name
        return client.has_collection(name) and bool(client.list_indexes(name))

    def _check_index(self, index: str) -> None:
        """Refuses another kind of index than there is."""
        found = self._client.describe_index(self._name, "embedding")["index_type"]
        if found != index:
            raise InputError(
                f"{self.where}: the gallery has an index of the kind {found}; another, {index}, "
                "is made with a new gallery alone"
            )

    def _create(self, size: int, index: str) -> None:
        kinds = _milvus().DataType
        if self._client.has_collection(self._name):  # a program that was stopped has left it
            self._client.drop_collection(self._name)
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", kinds.VARCHAR, is_primary=True, max_length=64)
        schema.add_field("embedding", kinds.FLOAT_VECTOR, dim=size)
        schema.add_field("path", kinds.VARCHAR, max_length=_LONGEST)
        for name in ("camid", "sequence", "frame"):
            schema.add_field(name, kinds.INT64)
        schema.add_field("time", kinds.DOUBLE)
        floats = {"element_type": kinds.FLOAT, "max_capacity": _CLASSES}
        schema.add_field("probabilities", kinds.ARRAY, **floats)
        indices = self._client.prepare_index_params()
        metric = {"cosine": "COSINE", "euclidean": "L2"}[self.metric]
        given = dict(choose(index, INDICES, "index"))
        if index == "IVF_PQ":  # bytes that are kept of an embedding: one for eight numbers
            given["m"] = max(m for m in range(1, max(size // 8, 1) + 1) if size % m == 0)
        indices.add_index("embedding", index_type=index, metric_type=metric, params=given)
        self._client.create_collection(
            self._name, schema=schema, index_params=indices, consistency_level="Strong"
        )

    def close(self) -> None:
        """Closes the database; nothing can be asked of it then."""
        self._client.close()
        if self._lock:
            self._lock.close()

    def __len__(self) -> int:
        with _said(self.where):
            (row,) = self._client.query(self._name, filter="", output_fields=["count(*)"])
        return int(row["count(*)"])

    def get(self, ids: Sequence[str], fields: Sequence[str] = _SAID) -> list[dict[str, Any]]:
        """The rows of those of some pictures that are in the gallery, in no order.

        Args:
          ids: digests of pictures.
          fields: of a row, that are read.
        """
        found: list[dict[str, Any]] = []
        for start in range(0, len(ids), _PAGE):
            some = list(ids[start : start + _PAGE])
            with _said(self.where):
                found += self._client.get(self._name, ids=some, output_fields=list(fields))
        return [dict(row) for row in found]

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes rows; one whose id is there already replaces it.

        Args:
          rows: all of a row's fields, see the top of this file.

        Raises:
          InputError: a path is too long, or the database refuses them.
        """
        for row in rows:
            if len(row["path"].encode()) > _LONGEST:
                raise InputError(f"{row['path'][:80]}...: the path is longer than {_LONGEST} bytes")
        self._unsettled = True
        for start in range(0, len(rows), _PAGE):
            with _said(self.where):
                self._client.upsert(self._name, data=list(rows[start : start + _PAGE]))

    def _settle(self) -> None:
        """Puts what was written last where searches are fast; a server does so by itself.

        An embedded database looks at such rows one by one: 20,000 take it 1.4 s instead of 0.06.
        They are safe, and found, before.
        """
        if self._lock and self._unsettled:
            with _said(self.where):
                self._client.flush(self._name)
            self._unsettled = False

    def update(self, changes: Mapping[str, Mapping[str, Any]]) -> None:
        """Changes some fields of rows that are there.

        Args:
          changes: id -> the fields that are changed.
        """
        rows = self.get(list(changes), FIELDS)
        self.add([row | changes[row["id"]] for row in rows])

    def remove(self, ids: Sequence[str]) -> None:
        """Removes rows.

        Args:
          ids: those of the rows.
        """
        for start in range(0, len(ids), _PAGE):
            with _said(self.where):
                self._client.delete(self._name, ids=list(ids[start : start + _PAGE]))

    def rows(self, filter: str = "", fields: Sequence[str] = _SAID) -> Iterator[dict[str, Any]]:
        """Yields all rows, in no order.

        Args:
          filter: Milvus's expression; "" takes all.
          fields: of a row, that are read.
        """
        self._settle()
        size = _PAGE if "probabilities" in fields else MOST  # a page looks through all before it
        with _said(self.where):
            pages = self._client.query_iterator(
                self._name, filter=filter, batch_size=size, output_fields=list(fields)
            )
            try:
                while page := pages.next():
                    yield from page
            finally:
                pages.close()

    def some(self, filter: str, fields: Sequence[str], *, count: int) -> list[dict[str, Any]]:
        """Some rows, as many as there are at most.

        Args:
          filter: Milvus's expression.
          fields: of a row, that are read.
          count: the number of rows.
        """
        with _said(self.where):
            found = self._client.query(
                self._name, filter=filter, output_fields=list(fields), limit=count
            )
        return [dict(row) for row in found]

    def search(
        self, query: np.ndarray, count: int, filter: str = "", *, embeddings: bool = False
    ) -> list[dict[str, Any]]:
        """The rows that are nearest to a query, in the order of their distances.

        Args:
          query: float32 [D].
          count: the number of answers, at most `MOST`.
          filter: Milvus's expression; "" takes all rows.
          embeddings: also read the rows' embeddings.

        Returns:
          Rows with "distance"; fewer than `count` where there are no more.
        """
        self._settle()
        fields = list(FIELDS if embeddings else _SAID)
        with _said(self.where):
            (hits,) = self._client.search(
                self._name,
                data=[np.asarray(query, np.float32).tolist()],
                limit=count,
                filter=filter,
                output_fields=fields,
                search_params={"params": {"nprobe": _PROBES, "ef": max(_WIDTH, 2 * count)}},
            )
        cosine = self.metric == "cosine"
        return [
            dict(hit["entity"])
            | {"id": hit["id"], "distance": 1 - hit["distance"] if cosine else hit["distance"]}
            for hit in hits
        ]
