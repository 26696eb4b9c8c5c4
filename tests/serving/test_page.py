"""The page in a browser: a person asks, marks answers, and takes the marks home."""

import pytest

from market_jax.data import folders
from market_jax.galleries.gallery import Gallery
from market_jax.tasks import inputs
from tests.galleries.conftest import draw
from tests.serving.conftest import Served, serving

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
    with Gallery(tmp_path / "gallery", Served(), create=True) as gallery:
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
