"""The page in a browser: a person asks, marks answers, and takes the marks home."""

import base64

import pytest

from market_jax.data import folders
from market_jax.galleries.gallery import Gallery
from market_jax.tasks import inputs
from tests.galleries.conftest import Network, calibrate, draw
from tests.serving.conftest import serving

pytest.importorskip("fastapi")
pytest.importorskip("pymilvus")


def test_a_person_uses_the_page(served, crops, open_browser, tmp_path):
    """Gives a picture, sets a filter, marks answers, and takes the marks home."""
    browser = open_browser()
    browser.call("url", {"url": served})
    browser.run("window.failed = []; window.onerror = (text) => window.failed.push(text)")
    browser.wait("return document.querySelectorAll('figure').length == 12")
    browser.send("#file", sorted(crops.iterdir())[0])
    browser.wait("return document.querySelector('.marks')")
    assert "0.000" in browser.run("return document.querySelector('figcaption').innerText")
    browser.send("#camid", "2")
    browser.run("document.querySelector('#search').click()")
    browser.wait("return document.querySelectorAll('figure').length == 4")
    browser.run("document.querySelectorAll('.marks .right')[0].click()")
    browser.run("document.querySelectorAll('.marks .wrong')[1].click()")
    browser.run("document.querySelector('#save').click()")
    path = tmp_path / "marks.csv"
    marks = [line.split(",") for line in browser.saved(path).splitlines()]
    assert marks[0] == ["name", "pid", "camid", "rejected", "query"]
    assert [row[1:4] for row in marks[1:]] == [["1", "2", "0"], ["0", "2", "1"]]
    assert all((crops / row[0]).exists() for row in marks[1:])
    assert inputs.read_excluded(path) == {marks[2][0]}
    browser.run("document.querySelectorAll('figure .picture')[1].click()")
    browser.wait("return document.querySelector('#drop img').src.includes('picture?id=')")
    browser.send("#where", "gendr = 'x'")
    browser.run("document.querySelector('#search').click()")
    text = browser.wait("return document.querySelector('#message.error')?.innerText")
    assert "did you mean 'gender'" in text
    assert browser.run("return window.failed") == []


def ask(browser, action):
    """Asks by an action, and waits for the answers."""
    action()
    browser.wait("return document.querySelector('#message').innerText.startsWith('The ')")


def mark(browser, **names):
    """Marks answers by their names, right or wrong."""
    for kind, name in ((kind, name) for kind, marked in names.items() for name in marked):
        browser.run(f"document.querySelector(`figure:has([alt='{name}']) .{kind}`).click()")


def test_marks_of_several_queries_are_read_by_other_tasks(open_browser, tmp_path):
    """Two files of one name, and an answer that is looked for; some judged twice."""
    crops = draw(tmp_path / "crops" / "yard", 6).parent
    names = [f"yard/{path.name}" for path in sorted((crops / "yard").iterdir())]
    for number, folder in ((70, tmp_path / "a"), (71, tmp_path / "b")):
        next(draw(folder, 1, first=number).iterdir()).rename(folder / "crop.png")
    browser, path = open_browser(), tmp_path / "marks.csv"
    with Gallery(tmp_path / "gallery", Network(), create=True) as gallery:
        gallery.add(crops)
        gallery.add(draw(tmp_path / "elsewhere", 1, first=50))
        with serving(gallery, crops) as address:
            browser.call("url", {"url": address})
            browser.wait("return document.querySelectorAll('figure').length == 7")
            ask(browser, lambda: browser.send("#file", tmp_path / "a" / "crop.png"))
            assert browser.run("return document.querySelectorAll('.marks').length") == 6
            mark(browser, right=names[:1], wrong=names[1:2])
            ask(browser, lambda: browser.send("#file", tmp_path / "b" / "crop.png"))
            mark(browser, right=[names[1], names[3]], wrong=names[2:3])
            click = f"document.querySelector(`.picture:has([alt='{names[0]}'])`).click()"
            ask(browser, lambda: browser.run(click))
            mark(browser, right=names[4:5], wrong=names[3:4])
            count = browser.run("return document.querySelector('#count').innerText")
            browser.run("document.querySelector('#save').click()")
            browser.saved(path)
    assert count == f"4 right, 3 wrong, of 3 queries; names are paths in {crops}"
    records = folders.read_list(crops, path, folders.Report())
    pids = {record["name"]: record["pid"] for record in records}
    assert set(pids) == set(names[:5])
    assert pids[names[0]] == pids[names[4]] > 0
    assert pids[names[1]] == pids[names[3]] > 0
    assert pids[names[0]] != pids[names[1]]
    assert pids[names[2]] == 0
    listed = inputs.read_folder(crops, (16, 8), table=path)
    assert listed["camid"].tolist() == [1, 2, 3, 1, 2]
    kept, _ = inputs.exclude(path, inputs.read_folder(crops, (16, 8)), None)
    assert kept["name"].tolist() == names[:2] + names[3:]


def test_a_picture_is_dropped_and_what_is_none_leaves_no_answers(served, crops, open_browser):
    """Answers to another picture would be marked as this one's."""
    browser = open_browser()
    browser.call("url", {"url": served})
    browser.wait("return document.querySelectorAll('figure').length == 12")

    def drop(content):
        browser.run(
            f"const bytes = Uint8Array.from(atob('{base64.b64encode(content).decode()}'), "
            "(c) => c.charCodeAt(0)); const moved = new DataTransfer(); "
            "moved.items.add(new File([bytes], 'who.png')); document.dispatchEvent("
            "new DragEvent('drop', { dataTransfer: moved, cancelable: true }))"
        )

    picture = sorted(crops.iterdir())[3].read_bytes()
    ask(browser, lambda: drop(picture))
    assert "0.000" in browser.run("return document.querySelector('figcaption').innerText")
    assert browser.run("return document.querySelectorAll('#wears > span').length") == 4
    drop(picture[:-60])
    browser.wait("return document.querySelector('#message.error')")
    assert browser.run("return document.querySelectorAll('figure, #wears > *').length") == 0


def test_a_class_is_chosen(served, gallery, open_browser):
    browser = open_browser()
    browser.call("url", {"url": served})
    browser.wait("return document.querySelectorAll('figure').length == 12")
    browser.run(
        "const chosen = document.querySelector('[name=gender]'); chosen.value = 'female'; "
        "chosen.dispatchEvent(new Event('change', { bubbles: true }))"
    )
    women = {hit.id for hit in gallery.all("gender = 'female'")}
    assert 0 < len(women) < 12
    browser.wait(f"return document.querySelectorAll('figure').length == {len(women)}")
    shown = browser.run("return [...document.querySelectorAll('figure img')].map((i) => i.src)")
    assert {source.split("id=")[1] for source in shown} == women


def test_a_line_is_where_the_same_person_ends(crops, open_browser, tmp_path):
    """After some, after all, and before the first."""
    browser, query = open_browser(), sorted(crops.iterdir())[0]
    with Gallery(tmp_path / "gallery", Network(), create=True) as gallery:
        gallery.add(crops)
        distances = [hit.distance for hit in gallery.search(query)]
        for near in (3, 12, 0):
            calibrate(gallery.model, [-1.0, *distances][near] + 1e-6)
            with serving(gallery) as address:
                browser.call("url", {"url": address})
                browser.wait("return document.querySelectorAll('figure').length == 12")
                assert browser.run("return document.querySelector('.limit')") is None
                ask(browser, lambda: browser.send("#file", query))
                kinds = browser.run(
                    "return [...document.querySelectorAll('#answers > *')].map((e) => e.className)"
                )
                text = browser.run("return document.querySelector('.limit').innerText")
            assert kinds == ["same"] * near + ["limit"] + [""] * (12 - near)
            assert ("90 % of such pairs" if near else "nobody here is near enough") in text
