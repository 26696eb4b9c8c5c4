"""A gallery: nothing is described twice, what is asked for is found, and bad input."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from market_jax.errors import InputError
from market_jax.galleries import gallery as gallery_
from market_jax.galleries.gallery import Gallery
from market_jax.retrieval import distances
from market_jax.tasks import search
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
