"""A folder is added: nothing is described twice, files that change, tables, and what is bad."""

import shutil
from pathlib import Path

import pytest

from market_jax.errors import InputError
from market_jax.galleries import adding
from market_jax.galleries.gallery import Gallery
from market_jax.tasks import index
from tests.galleries.conftest import draw

pytest.importorskip("pymilvus")


def test_nothing_is_described_twice(gallery, crops, network, tmp_path):
    assert len(gallery) == 30
    shutil.copy(next(crops.iterdir()), crops / "0999_c1s1_000999_00.png")  # the same content
    draw(crops, 2, first=100)
    network.seen.clear()
    added = gallery.add(crops)
    assert (added.described, added.known, added.moved) == (2, 30, 0)
    assert sorted(network.seen) == ["0100_c2s1_000100_00.png", "0101_c3s1_000101_00.png"]
    assert len(gallery) == 32


def test_pictures_that_have_moved_are_found_where_they_are(gallery, crops, network, tmp_path):
    network.seen.clear()
    shutil.move(crops, tmp_path / "elsewhere")
    added = gallery.add(tmp_path / "elsewhere")
    assert (added.described, added.known, added.moved) == (0, 30, 30)
    assert network.seen == []
    assert all(Path(hit.path).exists() for hit in gallery.all())
    hits = gallery.search(next((tmp_path / "elsewhere").iterdir()), top_k=1)
    assert hits[0].distance == pytest.approx(0, abs=1e-6)


def test_camera_and_time_stay_until_others_are_said(tmp_path, network, place):
    crops = draw(tmp_path / "crops", 1)
    next(crops.iterdir()).rename(crops / "yard.png")
    table = tmp_path / "crops.csv"
    table.write_text("name,camid,time\nyard.png,4,2026-05-01 10:00\n")
    with Gallery(place, network, create=True) as gallery:
        gallery.add(crops, table=table)
        (before,) = gallery.all()
        crops.rename(tmp_path / "moved")
        added = gallery.add(tmp_path / "moved")
        assert (added.known, added.moved, added.updated) == (1, 1, 0)
        (hit,) = gallery.all()
        assert (hit.path, hit.camid) == (str(tmp_path / "moved" / "yard.png"), 4)
        assert hit.time == before.time > 0
        table.write_text("name,camid,frame,time\nyard.png,5,7,\n")
        added = gallery.add(tmp_path / "moved", table=table)
        assert (added.known, added.moved, added.updated) == (1, 0, 1)
        (hit,) = gallery.all()
        assert (hit.camid, hit.frame, hit.time) == (5, 7, before.time)
        assert gallery.add(tmp_path / "moved", table=table).updated == 0


def test_what_was_described_leaves_with_the_file(gallery, crops, network):
    """Files that are overwritten: by new pictures, by each other's, by one that is none."""
    first, second, third, *_ = paths = sorted(crops.iterdir())
    before = {hit.path: hit.id for hit in gallery.all()}
    shutil.copy(next(draw(crops.parent / "new", 1, first=500).iterdir()), third)
    added = gallery.add(crops)
    assert (added.described, added.known, added.replaced) == (1, 29, 1)
    after = {hit.path: hit.id for hit in gallery.all()}
    assert len(after) == len(gallery) == 30
    assert [path for path in after if after[path] != before[path]] == [str(third)]
    assert gallery.search(third, top_k=1)[0].path == str(third)
    assert gallery.add(crops).replaced == 0
    shutil.copy(paths[5], paths[4])  # equal files now: the gallery has the first of them
    added = gallery.add(crops)
    assert (added.described, added.known, added.moved, added.replaced) == (0, 29, 0, 1)
    assert len(gallery) == 29
    second.write_bytes(b"no picture")
    added = gallery.add(crops, skip_bad=True)
    assert (added.described, added.replaced, len(added.skipped)) == (0, 0, 1)
    assert str(second) in {hit.path for hit in gallery.all()}
    assert str(first) in {hit.path for hit in gallery.all()}


def test_the_paths_of_the_gallery_are_read_once(gallery, crops, monkeypatch):
    monkeypatch.setattr(adding, "_CHUNK", 4)
    read, rows = [], gallery._store.rows
    monkeypatch.setattr(gallery._store, "rows", lambda *a: read.append(a) or rows(*a))
    shutil.copy(next(draw(crops.parent / "new", 1, first=500).iterdir()), crops / "0001.png")
    assert gallery.add(crops).described == 1
    assert len(read) == 1


@pytest.mark.parametrize("chunk", [1, 256])
def test_files_that_change_places_are_both_found(gallery, crops, monkeypatch, chunk):
    monkeypatch.setattr(adding, "_CHUNK", chunk)
    first, *_, last = sorted(crops.iterdir())
    for path, other in ((first, "kept"), (last, first), (crops / "kept", last)):
        path.rename(crops / other)
    gallery.add(crops)
    assert len(gallery) == 30
    for path in (first, last):
        (hit,) = gallery.search(path, top_k=1)
        assert (hit.path, hit.distance) == (str(path), pytest.approx(0, abs=1e-6))


def test_of_equal_files_the_first_counts(gallery, crops, monkeypatch):
    monkeypatch.setattr(adding, "_CHUNK", 1)
    first = sorted(crops.iterdir())[0]
    shutil.copy(first, crops / "0999_c6s1_000999_00.png")
    assert gallery.add(crops)[:4] == (0, 30, 0, 0)
    assert {hit.path: hit.camid for hit in gallery.all()}[str(first)] == 1


def test_index_says_what_has_become_of_known_pictures(tmp_path, network, monkeypatch):
    monkeypatch.setattr(index, "model_of", lambda run: network)
    settings = {"gallery": str(tmp_path / "gallery"), "images": str(draw(tmp_path / "crops", 2))}
    assert index.run(None, **settings).startswith("2 pictures described, 0 known; 2 in")
    table = tmp_path / "crops.csv"
    table.write_text("name,camid\n0000_c1s1_000000_00.png,9\nnone.png,1\n")
    text = index.run(None, **settings, annotations=str(table), skip_bad=True)
    assert text.startswith("0 pictures described, 1 known, 1 updated, 1 skipped; 2 in")


def test_a_table_says_camera_and_time(tmp_path, network, place):
    crops = tmp_path / "crops"
    crops.mkdir()
    for name in ("yard.png", "gate.png"):
        shutil.copy(next(draw(tmp_path / name, 1, first=len(name) + ord(name[0])).iterdir()),
                    crops / name)  # fmt: skip
    table = tmp_path / "crops.csv"
    table.write_text("name,camid,time\nyard.png,4,2026-05-01 10:00\ngate.png,,\n")
    with Gallery(place, network, create=True) as gallery:
        gallery.add(crops, table=table)
        (hit,) = gallery.search(crops / "gate.png", where="time >= '2026-05-01'")
        assert (Path(hit.path).name, hit.camid, hit.sequence) == ("yard.png", 4, -1)
        (hit,) = gallery.search(crops / "gate.png", where="camid = -1")
        assert Path(hit.path).name == "gate.png"
        for rows, message in (
            ("yard.png,4,soon", "column 'time': 'soon' is no time"),
            ("yard.png,four,", "column 'camid'"),
            ("../yard.png,4,", "'../yard.png' is no path within"),
            ("none.png,4,", "there is no picture .*none.png"),
            ("yard.png,4,\n./yard.png,5,", "row 3: 'yard.png' comes twice"),
            ("", "lists no picture"),
        ):
            table.write_text(f"name,camid,time\n{rows}\n")
            with pytest.raises(InputError, match=f"crops.csv.*{message}"):
                gallery.add(crops, table=table)


def test_bad_rows_of_a_table_are_left_out(tmp_path, network):
    crops = draw(tmp_path / "crops", 2)
    names = sorted(path.name for path in crops.iterdir())
    table = tmp_path / "crops.csv"
    table.write_text(f"name,camid\n{names[0]},4\nnone.png,1\n{names[0]},5\n{names[1]},x\n")
    with Gallery(tmp_path / "gallery", network, create=True) as gallery:
        added = gallery.add(crops, table=table, skip_bad=True)
        assert added.described == 1
        assert [hit.camid for hit in gallery.all()] == [4]
        for message, row in zip(added.skipped, (3, 4, 5), strict=True):
            assert message.startswith(f"{table}, row {row}: ")


def test_a_column_that_is_not_known_is_refused(tmp_path, network):
    crops = draw(tmp_path / "crops", 1)
    (name,) = (path.name for path in crops.iterdir())
    table = tmp_path / "crops.csv"
    with Gallery(tmp_path / "gallery", network, create=True) as gallery:
        for column, message in (
            ("camera", "'camera'; known: camid, frame, pid"),
            ("camdi", "'camdi'; did you mean 'camid'"),
        ):
            table.write_text(f"name,{column}\n{name},4\n")
            with pytest.raises(InputError, match=f"unknown column in {table}: {message}"):
                gallery.add(crops, table=table, skip_bad=True)
        table.write_text(f"name,pid,camid\n{name},12,4\n")  # as --task=reid reads it
        assert gallery.add(crops, table=table).described == 1


def test_a_bad_picture_stops_it_or_is_left_out(tmp_path, network, crops, place):
    """Those before it are kept."""
    before = sorted(crops.iterdir())[:20]
    bad = before[-1].with_name(before[-1].stem + "_.png")  # directly after it
    bad.write_bytes(b"no picture")
    with Gallery(place, network, create=True) as gallery:
        with pytest.raises(InputError, match=rf"{bad.name}: the picture"):
            gallery.add(crops)
        assert {hit.path for hit in gallery.all()} == set(map(str, before))
        added = gallery.add(crops, skip_bad=True)
        assert (added.described, added.known, len(added.skipped)) == (10, 20, 1)
