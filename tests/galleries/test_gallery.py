"""A gallery: nothing is described twice, what is asked for is found, and bad input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from market_jax.errors import InputError
from market_jax.galleries import adding
from market_jax.galleries import gallery as gallery_
from market_jax.galleries.gallery import Gallery
from market_jax.retrieval import distances
from market_jax.tasks import index, search
from tests.conftest import ROOT
from tests.galleries.conftest import calibrate, draw

pytest.importorskip("pymilvus")


def test_the_answers_are_those_of_an_exact_search(gallery, crops, network):
    paths = sorted(crops.iterdir())
    vectors = network.embed(paths)
    query = np.random.default_rng(99).integers(0, 256, (16, 8, 3), np.uint8)
    expected = distances.compute(network.embed(query), vectors)[0]
    hits = gallery.search(query, top_k=7)
    order = np.argsort(expected, kind="stable")[:7]
    assert [hit.path for hit in hits] == [str(paths[i]) for i in order]
    np.testing.assert_allclose([hit.distance for hit in hits], expected[order], atol=1e-6)
    assert [hit.camid for hit in hits] == [i % 3 + 1 for i in order]
    assert [hit.frame for hit in hits] == order.tolist()
    assert set(hits[0].attributes) == {"gender", "up_color"}
    again = gallery.search(network.embed(query)[0], top_k=7)
    assert [hit.id for hit in again] == [hit.id for hit in hits]


def test_only_what_holds_the_condition_is_found(gallery, crops, network):
    paths = sorted(crops.iterdir())
    _, found = network.describe([str(path) for path in paths])
    female, colors = found["gender"].probabilities[:, 1], found["up_color"].probabilities
    hold = (female > 0.45) & (colors[:, 1] + colors[:, 2] > 0.5) & (np.arange(30) % 3 != 0)
    assert 0 < hold.sum() < 20
    text = "gender.female > 0.45 and up_color in ('red', 'pink') and camid != 1"
    hits = gallery.search(paths[0], where=text, top_k=30)
    assert sorted(hit.path for hit in hits) == [str(paths[i]) for i in np.flatnonzero(hold)]
    assert np.all(np.diff([hit.distance for hit in hits]) >= 0)
    few = gallery.search(paths[0], where=text, top_k=2)
    assert [hit.id for hit in few] == [hit.id for hit in hits[:2]]
    assert {hit.path for hit in gallery.all(text)} == {hit.path for hit in hits}
    assert gallery.search(paths[0], where="camid = 9") == []


def test_the_nearest_are_looked_through_until_enough_hold(tmp_path, network, monkeypatch, place):
    """The sum is above one half for few of those for whom one part is above a quarter."""
    with Gallery(place, network, create=True) as gallery:
        gallery.add(draw(tmp_path / "many", 120))
        asked = []
        search = gallery._store.search
        monkeypatch.setattr(
            gallery._store, "search", lambda *a, **k: asked.append(a[1]) or search(*a, **k)
        )
        query = sorted((tmp_path / "many").iterdir())[0]
        text = "up_color in ('black', 'red')"
        hits = gallery.search(query, where=text, top_k=40)
        everyone = gallery.search(query, top_k=120)
        probability = {hit.id for hit in gallery.all(text)}
        expected = [hit.id for hit in everyone if hit.id in probability][:40]
        assert [hit.id for hit in hits] == expected
        assert asked[0] == 40


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


def test_pictures_and_folders_are_removed_from_the_gallery_alone(gallery, crops, tmp_path):
    draw(tmp_path / "crops_too", 3, first=200)
    gallery.add(tmp_path / "crops_too")
    assert gallery.remove([sorted(crops.iterdir())[0]]) == 1
    assert len(gallery) == 32
    assert gallery.remove([crops]) == 29
    assert {Path(hit.path).parent.name for hit in gallery.all()} == {"crops_too"}
    assert len(list(crops.iterdir())) == 30
    with pytest.raises(InputError, match=f"{crops}: the gallery .* has no picture there"):
        gallery.remove([crops])


def test_paths_are_kept_without_dots(tmp_path, network, place):
    crops = draw(tmp_path / "crops", 2)
    with Gallery(place, network, create=True) as gallery:
        gallery.add(crops / ".." / "crops")
        assert {Path(hit.path).parent for hit in gallery.all()} == {crops}
        assert gallery.remove([tmp_path / "other" / ".." / "crops"]) == 2


def test_names_with_any_signs_are_removed(tmp_path, network, place):
    folder = draw(tmp_path / "100% 'of' \"it\"_\\", 2)
    other = draw(tmp_path / "100x 'of' \"it\"__", 2, first=2)
    with Gallery(place, network, create=True) as gallery:
        gallery.add(tmp_path / folder.name)
        gallery.add(other)
        assert gallery.remove([folder]) == 2
        assert {Path(hit.path).parent for hit in gallery.all()} == {other}


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
    (crops / "0500_c1s1_000500_00.png").write_bytes(b"no picture")
    with Gallery(place, network, create=True) as gallery:
        with pytest.raises(InputError, match=r"0500_c1s1_000500_00\.png: the picture"):
            gallery.add(crops)
        added = gallery.add(crops, skip_bad=True)
        assert (added.described, len(added.skipped)) == (30, 1)


def test_re_ranking_changes_the_order_of_the_nearest(gallery, crops):
    query = sorted(crops.iterdir())[0]
    plain = gallery.search(query, top_k=10)
    ranked = gallery.search(query, top_k=10, rerank=["k_reciprocal k1=5 k2=3"])
    assert ranked[0].id == plain[0].id
    assert [hit.id for hit in ranked] != [hit.id for hit in plain]
    few = gallery.search(query, where="camid = 1 and frame < 9", rerank=["k_reciprocal"])
    assert len(few) == 3
    with pytest.raises(InputError, match="spatio_temporal learns from training images"):
        gallery.search(query, rerank=["spatio_temporal"])


@pytest.mark.parametrize("top_k", [0, 16_385])
def test_a_number_of_answers_that_no_database_gives_is_refused(gallery, crops, top_k):
    with pytest.raises(InputError, match=f"top_k is {top_k}; it must be 1 to 16384"):
        gallery.search(sorted(crops.iterdir())[0], top_k=top_k)


def test_answers_are_never_cut_short_by_what_the_database_gives_at_most(
    gallery, crops, monkeypatch
):
    monkeypatch.setattr(gallery_, "MOST", 8)
    query, ranked = sorted(crops.iterdir())[0], {"rerank": ["k_reciprocal k1=3 k2=2"]}
    assert len(gallery.search(query, top_k=5, **ranked)) == 5
    for red in range(10):  # in all of them black is .3 and red .175
        Image.new("RGB", (8, 16), (red, 166, 0)).save(crops / f"plain{red}.png")
    gallery.add(crops)
    with pytest.raises(InputError, match="more than 8 pictures are as near and nearly hold"):
        gallery.search(query, where="up_color in ('black', 'red')", top_k=5, **ranked)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda crops: crops, "the query is the folder .*crops; it must be one picture"),
        (lambda crops: list(crops.iterdir()), "the query is a list; it must be one picture"),
        (lambda crops: [], "the query is a list"),
        (lambda crops: np.zeros((2, 16, 8, 3), np.uint8), r"the query is uint8 \(2, 16, 8, 3\)"),
        (lambda crops: np.zeros(5, np.float32), r"is float32 \(5,\); .* its embedding, 12 finite"),
        (lambda crops: np.full(12, np.nan), "its embedding, 12 finite floats"),
    ],
)
def test_a_query_is_one_picture_or_its_embedding(gallery, crops, make, message):
    with pytest.raises(InputError, match=message):
        gallery.search(make(crops))


def test_answers_are_written_to_a_home_folder(
    gallery, crops, place, network, monkeypatch, tmp_path
):
    gallery.close()
    monkeypatch.setattr(search, "model_of", lambda run: network)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    query, ranked = str(sorted(crops.iterdir())[0]), {"rerank": ["k_reciprocal k1=3 k2=2"]}
    search.run(None, gallery=str(place), query=query, output="~/answers.json", **ranked)
    record = json.loads((tmp_path / "home" / "answers.json").read_text())
    assert record["answers"][0]["path"] == query


def test_answers_say_up_to_where_it_is_the_same_person(
    gallery, crops, place, network, monkeypatch, tmp_path
):
    query = sorted(crops.iterdir())[0]
    calibrate(network, gallery.search(query, top_k=3)[2].distance + 1e-6)
    gallery.close()
    monkeypatch.setattr(search, "model_of", lambda run: network)
    asked = {"gallery": str(place), "query": str(query), "top_k": 5}
    text = search.run(None, **asked, output=str(tmp_path / "answers.html"))
    assert "3 of these are within" in text
    assert "90 % of such pairs were" in text
    page = (tmp_path / "answers.html").read_text()
    assert page.count('<figure class="near">') == 3
    assert "3 of these are within" in page
    search.run(None, **asked, output=str(tmp_path / "answers.json"))
    record = json.loads((tmp_path / "answers.json").read_text())
    assert record["same_person"] == network.extra["same_person"]
    text = search.run(None, **asked, rerank=["k_reciprocal k1=3 k2=2"])
    assert "within" not in text  # a re-ranker's distances are others


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"query": ""}, "--task=search needs --gallery and --query"),
        ({"output": "a.txt"}, "must end in .json or .html"),
        ({"query": "none.jpg"}, "none.jpg: there is no such file"),
    ],
)
def test_a_search_that_cannot_be_says_why(
    gallery, crops, place, network, monkeypatch, flags, message
):
    gallery.close()
    monkeypatch.setattr(search, "model_of", lambda run: network)
    usual = {"gallery": str(place), "query": str(sorted(crops.iterdir())[0])}
    with pytest.raises(InputError, match=message):
        search.run(None, **usual | flags)


def test_the_programs_index_and_search(workdir, synthetic_raw, tmp_path):
    def evaluate(task, *flags):
        command = [sys.executable, "evaluate.py", f"--task={task}", f"--workdir={workdir}"]
        command += [f"--gallery={tmp_path / 'gallery'}", *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    images = synthetic_raw / "bounding_box_train"
    count = len(list(images.iterdir()))
    found = evaluate("index", f"--images={images}")
    assert f"{count} pictures described, 0 known; {count} in the gallery" in found.stdout, found
    query = sorted(images.iterdir())[0]
    for name in ("answers.json", "answers.html"):
        flags = [
            f"--query={query}",
            "--top_k=3",
            "--where=camid > 0",
            f"--output={tmp_path / name}",
        ]
        found = evaluate("search", *flags)
        assert "0.0000" in found.stdout, found
    record = json.loads((tmp_path / "answers.json").read_text())
    assert record["answers"][0]["path"] == str(query)
    assert record["where"] == "camid > 0"
    page = (tmp_path / "answers.html").read_text()
    assert page.count("<figure") == 4
    assert query.name in page
    found = evaluate("search", f"--query={query}", "--where=hat")
    assert found.returncode == 1
    assert "at its end =, !=" in found.stderr
    assert "Traceback" not in found.stderr
    found = evaluate("index", f"--remove={query}")
    assert f"1 pictures removed; {count - 1} in the gallery" in found.stdout, found
