"""Shared by all pages: their look, tables, and the frame of a self-contained document."""

import html
from collections.abc import Iterable, Sequence

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; color: #1c1f23;
  padding: 0 1rem; background: #fff }
h1 { font-size: 1.5rem; margin: 0 0 .2rem } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem }
p { margin: .3rem 0; max-width: 48rem } .about { color: #5b6470 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #dde1e6 }
td:first-child, th:first-child { text-align: left; padding-left: 0 }
svg { max-width: 34rem; height: auto }
"""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The HTML of a table.

    Args:
      header: names of the columns.
      rows: the cells of each row, as text.
    """

    def line(cells, tag):
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    return "<table>" + line(header, "th") + "".join(line(r, "td") for r in rows) + "</table>"


def document(title: str, about: Sequence[str], parts: Sequence[str], style: str) -> str:
    """The text of a self-contained HTML page.

    Args:
      title: the heading of the page.
      about: paragraphs that stand below the heading.
      parts: pieces of HTML that follow in this order.
      style: CSS for the parts, beside the style that all pages share.
    """
    head = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}{style}</style><h1>{html.escape(title)}</h1>",
        *(f'<p class="about">{html.escape(line)}</p>' for line in about),
    ]
    return "\n".join([*head, *parts]) + "</html>\n"
