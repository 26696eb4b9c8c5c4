"""The review page, in a headless browser where there is one."""

import csv

import numpy as np
import pytest

from market_jax.report import pictures, review
from market_jax.tasks import inputs
from tests.browser import Browser

NAMES = [f"{i:06d}.jpg" for i in range(12)]
ARROWS = {"right": "\ue014", "left": "\ue012", "down": "\ue015", "up": "\ue013"}
SHIFT = "\ue008"


@pytest.fixture
def page(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.random((12, 16, 8, 3))
    candidates = [
        review.Candidate(
            name,
            1.0 - i / 20,
            (pictures.to_uint8(image), pictures.to_uint8(image / 2), review.error_map(image, 0.5)),
        )
        for i, (name, image) in enumerate(zip(NAMES, images, strict=True))
    ]
    path = tmp_path / "review.html"
    path.write_text(review.page("Is it <junk>?", "12 of 90 images & more", "key", candidates))
    return path


def test_the_page_holds_all_that_it_shows(page):
    text = page.read_text()
    assert "Is it &lt;junk&gt;?" in text
    assert "images &amp; more" in text
    assert text.count('class="card"') == 12
    assert text.count("data:image/jpeg;base64,") == 36
    assert "http" not in text


def test_the_error_map_goes_from_dark_to_bright():
    image = np.zeros((4, 5, 3))
    remade = np.linspace(0, 1, 20).reshape(4, 5)[..., None] * np.ones(3)
    shown = review.error_map(image, remade).astype(int).sum(axis=-1).ravel()
    assert shown[0] == 13 + 8 + 45
    assert np.all(np.diff(shown) >= 0)
    assert shown[-1] == 252 + 240 + 180
    assert review.error_map(image, image).sum() == 20 * shown[0], "no error is dark all over"


class Page(Browser):
    """The review page, by mouse and keys."""

    def press(self, *keys, shift=False):
        taps = [{"type": t, "value": ARROWS.get(k, k)} for k in keys for t in ("keyDown", "keyUp")]
        if shift:
            taps = [{"type": "keyDown", "value": SHIFT}, *taps, {"type": "keyUp", "value": SHIFT}]
        self.call("actions", {"actions": [{"type": "key", "id": "keys", "actions": taps}]})

    def click(self, card, shift=False):
        element = self.call(
            "element", {"using": "css selector", "value": f".card:nth-child({card + 1})"}
        )
        point = {"type": "pointerMove", "duration": 0, "x": 0, "y": 0, "origin": element}
        press = [{"type": t, "button": 0} for t in ("pointerDown", "pointerUp")]
        mouse = {"type": "pointer", "id": "mouse", "actions": [point, *press]}
        held = [{"type": "keyDown", "value": SHIFT}] if shift else []
        actions = [{"type": "key", "id": "keys", "actions": held}] if held else []
        if held:
            mouse["actions"].insert(0, {"type": "pause", "duration": 0})
            actions[0]["actions"] += [{"type": "pause", "duration": 0}] * 3
            actions[0]["actions"].append({"type": "keyUp", "value": SHIFT})
        self.call("actions", {"actions": [*actions, mouse]})

    def states(self):
        script = "return [...document.querySelectorAll('.card')].map(c => c.classList[1] || '')"
        return ["" if s in ("at", "chosen") else s for s in self.run(script)]


def test_a_person_decides_by_mouse_and_keys(page, open_browser, tmp_path):
    browser = open_browser(Page)
    browser.call("url", {"url": page.as_uri()})
    assert browser.states() == [""] * 12
    browser.click(0)
    browser.click(1)
    browser.click(1)
    assert browser.states()[:3] == ["reject", "keep", ""]
    browser.click(4)
    browser.click(7, shift=True)
    assert browser.states()[4:9] == ["reject"] * 4 + [""]
    browser.press("right", "k", "r", "u")
    assert browser.states()[7:] == ["reject", "keep", "reject", "", ""]
    browser.press("left", "left")
    browser.press("left", shift=True)
    browser.press("k")
    assert browser.states()[7:] == ["reject", "keep", "keep", "", ""]
    said = browser.run("return document.getElementById('count').textContent")
    assert said == "5 rejected, 3 kept, 4 open"
    before = browser.states()
    browser.close()

    browser = open_browser(Page)
    browser.call("url", {"url": page.as_uri()})
    assert browser.states() == before, "what was decided is still there"
    browser.press("s")
    saved = tmp_path / "junk_reviewed.csv"
    rows = list(csv.DictReader(browser.saved(saved).splitlines()))
    assert [row["name"] for row in rows] == NAMES
    assert [row["rejected"] for row in rows] == [str(int(s == "reject")) for s in before]
    assert [row["decided"] for row in rows] == [str(int(bool(s))) for s in before]
    rejected = {name for name, s in zip(NAMES, before, strict=True) if s == "reject"}
    assert inputs.read_excluded(saved) == rejected
    browser.run("window.confirm = () => true; document.getElementById('clear').click()")
    assert browser.states() == [""] * 12
