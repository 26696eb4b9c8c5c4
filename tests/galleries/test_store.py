"""Where a gallery is kept: kinds of index, a server, other programs, and what a stop leaves."""

import os
import signal
import subprocess
import sys
import time

import pytest

from market_jax.errors import InputError
from market_jax.galleries.gallery import Gallery
from market_jax.galleries.store import PREFIX
from tests.conftest import ROOT
from tests.galleries.conftest import Network, draw

pymilvus = pytest.importorskip("pymilvus")

embedded = pytest.mark.parametrize("place", ["folder"], indirect=True)


@embedded
def test_what_is_new_is_put_where_searches_are_fast(gallery, crops, monkeypatch):
    calls, flush = [], gallery._store._client.flush
    monkeypatch.setattr(
        gallery._store._client, "flush", lambda *args: calls.append(args) or flush(*args)
    )
    query = sorted(crops.iterdir())[0]
    for _ in range(2):
        gallery.search(query, top_k=2)
    assert len(calls) == 1
    draw(crops, 1, first=90)
    gallery.add(crops)
    assert len(calls) == 1
    assert len(gallery.search(query, top_k=99)) == len(gallery)
    assert len(calls) == 2


def test_a_gallery_belongs_to_its_network(gallery, place, tmp_path):
    names = gallery._store._client.list_collections()  # a server may have more than this one's
    count = sum(name.startswith(PREFIX) for name in names)
    gallery.close()
    assert count == 1 or isinstance(place, str)
    others = rf"no pictures of this network; others .*: {count} networks"
    with pytest.raises(InputError, match=others):
        Gallery(place, Network("b"))
    with Gallery(place, Network("b"), create=True) as other:
        assert len(other) == 0
    with Gallery(place, Network()) as again:
        assert len(again) == 30
    with pytest.raises(InputError, match="nowhere: holds no gallery; make one"):
        Gallery(tmp_path / "nowhere", Network())
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("index", ["HNSW", "IVF_FLAT", "IVF_PQ"])
def test_an_index_that_is_not_exact_is_made_and_kept(place, crops, network, index):
    with Gallery(place, network, index=index, create=True) as gallery:
        gallery.add(crops)
        query = sorted(crops.iterdir())[3]
        hits = gallery.search(query, top_k=3)
        assert (hits[0].path, len(hits)) == (str(query), 3)
        assert hits[0].distance == pytest.approx(0, abs=1e-6)
    with Gallery(place, network) as gallery:
        assert len(gallery) == 30
    with pytest.raises(InputError, match=f"has an index of the kind {index}; another, FLAT"):
        Gallery(place, network, index="FLAT")


def test_what_a_program_that_was_stopped_has_left_is_no_gallery(place, crops, network, monkeypatch):
    with pytest.raises(InputError, match="unknown index 'HNWS'; did you mean 'HNSW'"):
        Gallery(place, network, index="HNWS", create=True)

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pymilvus.MilvusClient, "create_index", stop)
        with pytest.raises(KeyboardInterrupt):
            Gallery(place, network, create=True)
    with pytest.raises(InputError, match="the gallery has no pictures of this network"):
        Gallery(place, network)
    with Gallery(place, network, create=True) as gallery:
        gallery.add(crops)
        assert len(gallery) == 30


@embedded
def test_two_programs_do_not_open_it_at_once(gallery, tmp_path):
    with pytest.raises(InputError, match="another program has this gallery open"):
        Gallery(tmp_path / "gallery", Network())


@pytest.mark.parametrize(
    ("before", "host", "message"),
    [
        ("", "127.0.0.1:9", "the gallery's database says"),
        ("me:secret@", "127.0.0.1:9", "the gallery's database says"),
        ("", "127.0.0.1:port", "is no address of a server"),
        ("me:a/secret@", "127.0.0.1:9", "is no address of a server"),
    ],
)
def test_a_server_that_is_not_there_is_named_without_a_password(before, host, message):
    with pytest.raises(InputError, match=f"^http://{host}: {message}") as error:
        Gallery(f"http://{before}{host}", Network())
    assert "secret" not in str(error.value)


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(InputError, match=r"pip install 'market_jax\[gallery\]'"):
        Gallery(tmp_path / "gallery", Network(), create=True)


SLOW = """
import sys, time
from pathlib import Path
from market_jax.galleries import adding, gallery
from tests.galleries.conftest import Network
class Slow(Network):
    def describe(self, pictures, **settings):
        time.sleep(0.3)
        print(len(pictures), flush=True)
        return super().describe(pictures, **settings)
adding._CHUNK = 4
with gallery.Gallery(sys.argv[2], Slow(), create=True) as opened:
    print(opened.add(sys.argv[1]).described, "described at the end", flush=True)
"""


def test_killed_at_any_moment_it_goes_on(place, crops, network):
    command = [sys.executable, "-c", SLOW, str(crops), str(place)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "4\n"
        assert process.stdout.readline() == "4\n"
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
    with Gallery(place, network) as gallery:
        kept = len(gallery)
        assert 4 <= kept < 30
        added = gallery.add(crops)
        assert (added.described, added.known) == (30 - kept, kept)
        assert len(gallery) == 30
        vectors = {hit.path: hit for hit in gallery.all()}
        assert len(vectors) == 30
