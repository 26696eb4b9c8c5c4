"""A page on which a person keeps or rejects candidates, by mouse or by keys.

The browser keeps the decisions under the page's key and shows them when the page is opened again;
the page saves them as a CSV, which `evaluate.py --exclude` reads.
"""

import html
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from market_jax.report.pictures import data_url

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 0; color: #1c1f23; background: #fff }
header { position: sticky; top: 0; background: #fff; border-bottom: 1px solid #dde1e6;
  padding: .7rem 1.2rem; z-index: 1 }
h1 { font-size: 1.2rem; margin: 0 } p { margin: .2rem 0; color: #5b6470; max-width: 62rem }
button { font: inherit; padding: .25rem .8rem; margin-right: .4rem; cursor: pointer }
kbd { border: 1px solid #c3c9d0; border-radius: 3px; padding: 0 .3em; font-size: .85em }
#count { display: inline-block; margin-left: .6rem; font-variant-numeric: tabular-nums }
#grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(13.2rem, 1fr)); gap: .7rem;
  padding: 1.2rem }
.card { border: 3px solid #dde1e6; border-radius: 5px; padding: .4rem; user-select: none;
  cursor: pointer; scroll-margin: 9rem }
.card img { width: 4rem; height: 8rem; object-fit: fill; margin-right: .1rem }
.card small { display: block; color: #5b6470; font-variant-numeric: tabular-nums }
.reject { border-color: #d22f27; background: #fdf0ef } .keep { border-color: #1a8f3c }
.at { outline: 3px solid #2c6fd6; outline-offset: 1px } .chosen { box-shadow: 0 0 0 6px #cfe0fb }
"""

_SCRIPT = """
const grid = document.getElementById('grid'), cards = [...grid.children];
const names = cards.map(c => c.dataset.name);
let decided = JSON.parse(localStorage.getItem(KEY) || '{}'), at = 0, anchor = 0;

function range() { return [Math.min(at, anchor), Math.max(at, anchor)]; }
function show() {
  const [first, last] = range();
  let rejected = 0, kept = 0;
  cards.forEach((card, i) => {
    const state = decided[names[i]];
    rejected += state === 'reject'; kept += state === 'keep';
    card.className = 'card ' + (state || '') + (i === at ? ' at' : '')
      + (first !== last && i >= first && i <= last ? ' chosen' : '');
  });
  document.getElementById('count').textContent =
    `${rejected} rejected, ${kept} kept, ${cards.length - rejected - kept} open`;
}
function decide(state) {
  const [first, last] = range();
  for (let i = first; i <= last; i++) {
    if (state) decided[names[i]] = state; else delete decided[names[i]];
  }
  localStorage.setItem(KEY, JSON.stringify(decided));
}
function go(to, extend) {
  at = Math.max(0, Math.min(cards.length - 1, to));
  if (!extend) anchor = at;
  cards[at].scrollIntoView({block: 'nearest'});
}
function columns() {
  const top = cards[0].offsetTop;
  return Math.max(1, cards.findIndex(c => c.offsetTop > top) < 0 ? cards.length
    : cards.findIndex(c => c.offsetTop > top));
}
grid.addEventListener('click', event => {
  const card = event.target.closest('.card');
  if (!card) return;
  const i = cards.indexOf(card);
  if (event.shiftKey) { go(i, true); decide(decided[names[anchor]]); }
  else { go(i, false); decide(decided[names[i]] === 'reject' ? 'keep' : 'reject'); }
  show();
});
document.addEventListener('keydown', event => {
  const steps = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns()};
  const states = {r: 'reject', k: 'keep', u: null};
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (key in steps) go(at + steps[key], event.shiftKey);
  else if (key in states) { decide(states[key]); go(Math.max(at, anchor) + 1, false); }
  else if (key === 's') save();
  else return;
  event.preventDefault();
  show();
});
function table() {
  const rows = cards.map(c => `${c.dataset.name},${c.dataset.score},`
    + (decided[c.dataset.name] === 'reject' ? 1 : 0) + ','
    + (decided[c.dataset.name] ? 1 : 0));
  return 'name,score,rejected,decided\\n' + rows.join('\\n') + '\\n';
}
function save() {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([table()], {type: 'text/csv'}));
  link.download = 'junk_reviewed.csv';
  link.click();
}
document.getElementById('save').onclick = save;
document.getElementById('clear').onclick = () => {
  if (confirm('Forget every decision on this page?')) {
    decided = {}; localStorage.removeItem(KEY); show();
  }
};
show();
"""

_HELP = (
    "Click: reject, again: keep. Shift and click: the same for all from the last one. "
    "Keys: arrows (with shift a range), <kbd>r</kbd> reject, <kbd>k</kbd> keep, <kbd>u</kbd> "
    "undecided, <kbd>s</kbd> save. Only what is rejected is left out by "
    "<code>evaluate.py --task=reid --exclude=junk_reviewed.csv</code>; nothing is ever deleted."
)


class Candidate(NamedTuple):
    """One image to decide on.

    Attributes:
      name: the image's file name.
      score: the score that candidates are sorted by.
      pictures: the image, its reconstruction and the error, each uint8 [H, W, 3].
    """

    name: str
    score: float
    pictures: Sequence[np.ndarray]


def error_map(image: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """A picture of each pixel's error, dark to bright: uint8 [H, W, 3].

    Args:
      image: float [H, W, 3] in [0, 1].
      reconstruction: float [H, W, 3] in [0, 1].
    """
    error = np.sqrt(np.mean(np.square(image - reconstruction), axis=-1))
    level = np.clip(error / max(float(np.quantile(error, 0.99)), 1e-6), 0, 1)[..., None]
    colors = np.array([[13, 8, 45], [190, 55, 82], [252, 240, 180]], float)  # below, middle, above
    low = colors[0] + (colors[1] - colors[0]) * np.minimum(2 * level, 1)
    return np.round(low + (colors[2] - colors[1]) * np.maximum(2 * level - 1, 0)).astype(np.uint8)


def page(title: str, about: str, key: str, candidates: Sequence[Candidate]) -> str:
    """The text of the self-contained HTML page.

    Args:
      title: the title and heading of the page.
      about: a sentence that stands below the heading.
      key: the name under which the browser keeps the decisions; use another key for other
        candidates.
      candidates: the images to decide on, in the order in which they are shown.
    """
    cards = []
    for name, score, pictures in candidates:
        shown = "".join(f'<img src="{data_url(picture)}" alt="">' for picture in pictures)
        name = html.escape(name, quote=True)
        cards.append(
            f'<div class="card" data-name="{name}" data-score="{score:.6g}">{shown}'
            f"<small>{name}</small><small>{score:.4g}</small></div>"
        )
    stored = json.dumps(key).replace("<", "\\u003c")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style><header><h1>{html.escape(title)}</h1><p>{html.escape(about)}</p>"
        f'<p>{_HELP}</p><button id="save">Save junk_reviewed.csv</button>'
        f'<button id="clear">Begin anew</button><span id="count"></span></header>'
        f'<div id="grid">{"".join(cards)}</div>'
        f"<script>const KEY = {stored};{_SCRIPT}</script></html>\n"
    )
