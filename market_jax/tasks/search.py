"""--task=search: who of a gallery is on a picture, with what they wear as a condition."""

import json
from pathlib import Path

from market_jax.data import decoding
from market_jax.errors import InputError
from market_jax.files import write_atomically
from market_jax.galleries.gallery import Gallery, Hit
from market_jax.report import answers, tables
from market_jax.runs import Run
from market_jax.tasks.index import model_of

NEEDS = "reid"


def run(
    run: Run,
    *,
    gallery: str | None = None,
    query: str | None = None,
    where: str = "",
    top_k: int = 20,
    rerank: list[str] | None = None,
    flip: bool = False,
    output: str | None = None,
) -> str:
    """Finds the pictures of a gallery that are most like a query and hold a condition.

    Args:
      run: the run or published network that has described the gallery.
      gallery: The gallery that --task=index has made: a folder or the address of a server.
      query: The picture that is looked for.
      where: A condition: "gender = 'female' and backpack > 0.7 and camid in (3, 4)".
      top_k: The number of answers.
      rerank: Changes the order of the nearest, "k_reciprocal k1=20"; in order.
      flip: The gallery that --flip has described.
      output: Also write the answers: NAME.json, or NAME.html, a page with the pictures.

    Returns:
      The text for the terminal.

    Raises:
      InputError: a flag is missing, or the gallery, the query or the condition is not good.
    """
    if not gallery or not query:
        raise InputError("--task=search needs --gallery and --query")
    path = Path(output or "none.json").expanduser()
    if path.suffix not in (".json", ".html"):
        raise InputError(f"--output is {output!r}; it must end in .json or .html")
    with Gallery(gallery, model_of(run), flip=flip) as opened:
        hits = opened.search(query, where=where, top_k=top_k, rerank=rerank or ())
        same = None if rerank else opened.calibration()
    if output:
        about = {"query": query, "gallery": opened.place, "where": where, "rerank": rerank or []}
        known = {"same_person": same._asdict() if same else None}
        record = about | known | {"answers": [hit._asdict() for hit in hits]}
        page = answers.page(decoding.read(query), hits, about, same)
        text = json.dumps(record, indent=2) + "\n" if path.suffix == ".json" else page
        write_atomically(path, text)
    shown = tables.align(HEADER, [_row(i, hit) for i, hit in enumerate(hits, start=1)])
    notes = [answers.line(same, hits)] if same and hits else []
    notes += [f"written to {path}"] if output else []
    return "\n\n".join([shown if hits else "no picture holds the condition", *notes])


HEADER = ("", "distance", "camera", "path", "attributes")


def _row(rank: int, hit: Hit) -> tuple[str, ...]:
    """An answer as a row of the table; classes that are not sure are left out."""
    camera = str(hit.camid) if hit.camid >= 0 else "-"
    return str(rank), f"{hit.distance:.4f}", camera, hit.path, answers.wears(hit.attributes)
