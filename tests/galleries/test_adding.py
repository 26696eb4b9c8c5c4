"""Adding, in any order of what may happen to files, and stopped at any of its writes."""

import contextlib
import hashlib
import shutil
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from market_jax.data import decoding, folders
from market_jax.errors import InputError
from market_jax.galleries import adding, records

NAMES = ("a/0", "a/1", "a/2", "b/0", "b/1")


class StoppedError(Exception):
    """The program ends here."""


class Rows:
    """A database in memory, which fails after some writes."""

    def __init__(self):
        self.kept, self.left = {}, np.inf

    def _count(self):
        self.left -= 1
        if self.left < 0:
            raise StoppedError

    def get(self, ids, fields):
        return [dict(self.kept[key]) for key in ids if key in self.kept]

    def rows(self, folder, fields):
        return [dict(row) for row in self.kept.values() if row["path"].startswith(folder)]

    def add(self, rows):
        self._count()
        self.kept |= {row["id"]: dict(row) for row in rows}

    def update(self, changes):
        self._count()
        for key, fields in changes.items():
            self.kept[key] |= fields

    def remove(self, ids):
        self._count()
        for key in ids:
            del self.kept[key]


class Network:
    def describe(self, paths, flip):
        return np.zeros((len(paths), 2), np.float32), {}


def change(root, kind, name, other, content):
    """Something that happens to files: written, lost, exchanged, renamed."""
    path, second = root / name, root / other
    if kind == "write":
        path.write_bytes(content)
    elif kind == "lose":
        path.unlink(missing_ok=True)
    elif kind == "exchange" and path.exists() and second.exists():
        first = path.read_bytes()
        path.write_bytes(second.read_bytes())
        second.write_bytes(first)
    elif kind == "rename" and path.exists():
        path.rename(second)


def check(root, kept):
    """Every picture is in the gallery, and every row of a file that is there is that picture's."""
    content = {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    ids = {path: hashlib.sha256(data).hexdigest() for path, data in content.items()}
    pictures = {path: key for path, key in ids.items() if not content[path].startswith(b"bad")}
    assert set(pictures.values()) <= set(kept)
    for key, row in kept.items():
        assert pictures.get(row["path"], key) == key
        assert row["path"] in pictures or key not in pictures.values()


NAME = st.sampled_from(NAMES)
CONTENT = st.sampled_from([b"x0", b"x1", b"x2", b"x3", b"bad0", b"bad1"])
CHANGE = st.tuples(st.sampled_from(["write", "lose", "exchange", "rename"]), NAME, NAME, CONTENT)
ADD = st.tuples(st.just("add"), st.sampled_from(["", "a", "b"]), st.sampled_from([0, 1, 2, 99]))


def test_no_picture_is_lost_whatever_happens(tmp_path, monkeypatch, often):
    def read(path):
        if Path(path).read_bytes().startswith(b"bad"):
            raise InputError(f"{path}: is none")

    monkeypatch.setattr(decoding, "read", read)
    monkeypatch.setattr(adding.where_.Field, "filter", lambda field: field.value)
    root = tmp_path / "crops"

    def add(store, folder, chunk):
        monkeypatch.setattr(adding, "_CHUNK", chunk)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        found = [{"path": str(path), **records.UNKNOWN} for path in paths]
        report = folders.Report(skip_bad=True)
        return adding.Adding(Network(), store, False, report).add(found, folder)

    @often(200)
    @given(st.lists(st.one_of(CHANGE, ADD), max_size=12), st.sampled_from([1, 2, 256]))
    def run(history, chunk):
        shutil.rmtree(root, ignore_errors=True)
        for number, name in enumerate(NAMES):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(b"x%d" % number)
        store = Rows()
        for kind, *settings in history:
            if kind != "add":
                change(root, kind, *settings)
                continue
            store.left = settings[1]
            with contextlib.suppress(StoppedError):
                add(store, root / settings[0], chunk)
        store.left = np.inf
        add(store, root, chunk)
        check(root, store.kept)
        before = {key: dict(row) for key, row in store.kept.items()}
        added = add(store, root, chunk)
        assert (added.described, added.moved, added.replaced) == (0, 0, 0)
        assert store.kept == before

    run()
