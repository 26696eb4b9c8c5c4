"""--task=reid: judges how well queries find their matches, or answers queries of nobody known."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from market_jax import inference, registry, runs, seen
from market_jax.data import images as images_
from market_jax.errors import InputError
from market_jax.evaluators import reid as evaluator
from market_jax.evaluators import tuning
from market_jax.evaluators.protocols import NAMES, Protocol, why_left_out
from market_jax.evaluators.reid import Retrieval
from market_jax.evaluators.result import Result
from market_jax.files import write_atomically
from market_jax.metrics import ranking
from market_jax.report import predictions, ranked_lists
from market_jax.retrieval import chain, search
from market_jax.retrieval.training import Training
from market_jax.runs import Run
from market_jax.tasks import inputs
from market_jax.typing import Columns

FILE, PAGE, ANSWERS = evaluator.FILE, "report.html", "reid_test.txt"
RELEASE = "release"  # the queries and the gallery of the data set
LENGTH = 100  # answers to a query
LISTED, SHOWN = 10, 5  # answers to a query of the page; queries of each kind


class Features:
    """Computes the features of a run's images when they are asked for.

    Args:
      run: the run.
      source: the kind of features, see `runs.feature_source`.
      flip: average the features of an image and its mirror image.
    """

    def __init__(self, run: Run, source: str, flip: bool):
        self.predict, self.outputs = runs.feature_source(run, source)
        self._run, self._flip = run, flip
        self.training = Training(self._train_columns, lambda: self.of_split("train"))

    def _train_columns(self) -> Columns:
        columns = inputs.data_of(self._run).open("train")
        return {key: value for key, value in columns.items() if key != "image"}

    def of(self, columns: Columns) -> Columns:
        """Computes the features of images.

        Args:
          columns: columns of the images.

        Returns:
          The columns with "feature" instead of "image".
        """
        return inference.features(self.predict, columns, self.outputs, flip=self._flip)

    def of_split(self, split: str) -> Columns:
        """Computes the features of a split of the run's data set, see `of`."""
        return self.of(inputs.data_of(self._run).open(split))


def make_retrieval(
    features: Features,
    transform: Sequence[str],
    rerank: Sequence[str],
    *,
    metric: str,
    count: int,
) -> tuple[Retrieval, dict]:
    """Makes a `Retrieval` from transforms and re-rankers in words.

    Args:
      features: the run's features; some re-rankers learn from those of the training identities.
      transform: specs in words: "database_augmentation k=5".
      rerank: specs in words: "k_reciprocal k1=20".
      metric: the distance between features, "cosine" or "euclidean".
      count: the number of images in the gallery that will be searched.

    Returns:
      The retrieval, and a record of the settings that were chosen automatically.

    Raises:
      InputError: a name or argument does not exist, or a value is of another kind.
    """
    given = {"training": features.training, "metric": registry.LATER}
    transforms, rerankers, chosen = [], [], {}
    for text in transform:
        spec = registry.read_words(text, chain.TRANSFORMS, "transform")
        made = registry.bind(spec, chain.TRANSFORMS, "transform", **given)
        transforms.append((spec["name"], made))
    for text in rerank:
        spec = registry.read_words(text, chain.RERANKERS, "re-ranker")
        spec, found = tuning.complete(
            spec, chain.RERANKERS, features.training, count=count, metric=metric
        )
        made = registry.bind(spec, chain.RERANKERS, "re-ranker", **given)
        rerankers.append((spec["name"], made))
        chosen |= {f"{key} of {text}" if key in chosen else key: found[key] for key in found}
    return Retrieval(metric, transforms, rerankers), chosen


def write_page(
    path: Path,
    result: Result,
    made: Mapping[str, Protocol],
    ranked: Mapping[str, Mapping[str, ranking.Ranking]],
    retrieval: Retrieval,
    images: Sequence[Columns],
) -> None:
    """Writes the report page, with ranked lists of the last retrieval in the first protocol.

    Args:
      path: where the page is written.
      result: the result of the evaluation.
      made: protocol name -> protocol.
      ranked: name of the retrieval -> protocol name -> metrics.
      retrieval: the last retrieval of `ranked`.
      images: columns with the pictures of the gallery, then those of the queries if they are
        others.
    """
    key, protocol = next(iter(made.items()))
    name, by_protocol = list(ranked.items())[-1]
    shown = (_pictures_of(images[-1]), _pictures_of(images[0]))
    lists = {}
    for heading, chosen in ranked_lists.choose_queries(
        by_protocol[key].average_precision, SHOWN
    ).items():
        lists[f"{heading}: {name}, {key}"] = [
            ranked_lists.answers(
                (protocol.query, i),
                protocol.gallery,
                row,
                pictures=shown,
                count=LISTED,
                by_camera=protocol.by_camera,
            )
            for i, row in zip(chosen, retrieval.some_distances(protocol, chosen), strict=True)
        ]
    cmc = {f"{r}, {p}": found.cmc for r, by in ranked.items() for p, found in by.items()}
    (table,) = result.tables
    page = ranked_lists.page(result.title, list(result.notes), *table, cmc, lists)
    write_atomically(path, page)


def _pictures_of(columns: Columns) -> Callable[[str], np.ndarray]:
    """Name -> picture uint8 [H, W, 3]."""
    places = {name: i for i, name in enumerate(columns["name"].tolist())}
    return lambda name: columns["image"][np.array([places[name]])][0]


def answer(
    run: Run,
    features: Features,
    query: Columns,
    gallery: Columns,
    *,
    transform: Sequence[str],
    rerank: Sequence[str],
    metric: str,
    top_k: int | None,
    exclude: str | None,
) -> str:
    """Answers every query from the gallery; writes `evaluation/reid_test.txt`.

    Args:
      run: the run.
      features: the features of its images.
      query: columns of the queries.
      gallery: columns of the images that are searched.
      transform: specs in words, see `make_retrieval`.
      rerank: specs in words, see `make_retrieval`.
      metric: the distance between features, "cosine" or "euclidean".
      top_k: the number of answers to each query; None is 100, or all of a smaller gallery.
      exclude: a CSV of images that are no answers; None excludes none.

    Returns:
      The text for the terminal.

    Raises:
      InputError: `top_k` is out of range, or a transform or re-ranker does not exist.
    """
    if exclude:
        gallery, _ = inputs.exclude(Path(exclude), gallery, None)
    digests = [images_.digests(side["image"]) for side in (query, gallery)]
    query, gallery = map(features.of, (query, gallery))
    size = len(gallery["name"])
    top_k = min(LENGTH, size) if top_k is None else top_k
    if not 1 <= top_k <= size:
        raise InputError(f"top_k is {top_k}; it must be 1 to {size}, the gallery")
    retrieval, _ = make_retrieval(features, transform, rerank, metric=metric, count=size)
    if retrieval.transforms or retrieval.rerankers:
        distances = retrieval.distances(query, gallery)
        answers = np.argsort(distances, axis=1, kind="stable")[:, :top_k]
        # what is infinitely far is not in the answer
        answers = [row[np.isfinite(distances[i, row])] for i, row in enumerate(answers)]
    else:
        answers = search.top_k(query["feature"], gallery["feature"], top_k, metric=metric)[1]
    names = gallery["name"].tolist()
    lists = [[names[i] for i in row] for row in answers]
    path = run.evaluation / ANSWERS
    write_atomically(path, predictions.reid_txt(query["name"].tolist(), lists, names))
    text = f"{len(lists)} answers of at most {top_k} in {path}"
    return text + predictions.twins_text(*digests, answers)


def run(
    run: Run,
    *,
    split: str = "val",
    images: str | None = None,
    annotations: str | None = None,
    queries: str | None = None,
    query_annotations: str | None = None,
    skip_bad: bool = False,
    exclude: str | None = None,
    predict: str | None = None,
    top_k: int | None = None,
    features: str = "model",
    flip: bool = False,
    metric: str = "cosine",
    transform: list[str] | None = None,
    rerank: list[str] | None = None,
    report: bool = False,
) -> str:
    """Judges a ranking in every protocol that the data allow, or answers queries.

    Args:
      run: the run; without a model for features that need none.
      split: What is judged: val (the held-out identities), train, or test with the data set's
        own queries.
      images: Judge this folder of crops instead of a split; with --predict, the gallery.
      annotations: A CSV of name, pid and camid that lists the pictures of --images.
      queries: A folder of crops that are the queries; --images is the gallery then.
      query_annotations: The same as --annotations, of --queries.
      skip_bad: Leave bad pictures and rows of folders and lists out and list them.
      exclude: A CSV whose column name says which images are left out; with --predict, of the
        gallery.
      predict: Answer the queries in this folder from --images, or with "release" the data set's
        queries from its test images; nothing is judged, and names need not say anything.
      top_k: The number of answers to each query that --predict writes; by default 100.
      features: model, before_bnneck, predictions, model+predictions, imagenet, pixels,
        color_histogram, or the file NAME.onnx of an exported network.
      flip: Average the features of an image and its mirror image.
      metric: cosine or euclidean, between features.
      transform: Changes features before distances, "database_augmentation k=5"; in order.
      rerank: Changes distances, "k_reciprocal k1=20" or "agglomerative soft=0.5"; in order.
      report: Write a page with the metrics and ranked lists.

    Returns:
      The text for the terminal.
    """
    registry.choose(metric, dict.fromkeys(("cosine", "euclidean")), "metric")
    what = inputs.Judged(split, images, annotations, queries, query_annotations, skip_bad)
    ranked_by = {"transform": transform or [], "rerank": rerank or [], "metric": metric}
    read = Features(run, features, flip)
    if predict:
        sides = _open_unjudged(run, predict, what, report=report)
        return answer(run, read, *sides, **ranked_by, top_k=top_k, exclude=exclude)
    inputs.refuse("without --predict", top_k=top_k is not None)
    about = {"judged": what.name, "features": features, "flip": flip, "checkpoint": run.step}
    return _judge(run, read, what, about, **ranked_by, exclude=exclude, report=report)


def _judge(
    run: Run,
    read: Features,
    what: inputs.Judged,
    about: dict,
    *,
    transform: Sequence[str],
    rerank: Sequence[str],
    metric: str,
    exclude: str | None,
    report: bool,
) -> str:
    """Ranks in every protocol, plainly and with what is asked for; writes and returns the result.

    Args:
      run: the run.
      read: its features.
      what: is judged.
      about: what else the record says.
      transform: specs in words, see `make_retrieval`.
      rerank: specs in words.
      metric: of the distances.
      exclude: a CSV of images that are left out; None excludes none.
      report: write the page.
    """
    pictures = _open_sides(run, what)
    gallery, queries = [*map(read.of, pictures), None][:2]
    if exclude:
        gallery, queries = inputs.exclude(Path(exclude), gallery, queries)
    sides = [side for side in (gallery, queries) if side is not None]
    split = "" if what.images else what.split
    warning, known_here = seen.known_people(run, sides, split=split, source=about["features"])
    made = evaluator.make_protocols(gallery, queries)
    left_out = {n: why_left_out(n, gallery, queries) for n in NAMES if n not in made}
    about = about | {"transforms": transform, "rerankers": rerank, "left_out": left_out}
    about |= known_here | {"queries": what.queries, "exclude": exclude}
    count = len(made.get("course", list(made.values())[-1]).gallery["pid"])
    retrieval, chosen = make_retrieval(read, transform, rerank, metric=metric, count=count)
    if "multi_query" in dict(retrieval.transforms):  # elsewhere what it takes are matches
        made = evaluator.make_protocols(gallery, queries, ("market",))
    retrievals = [Retrieval(metric)] + ([retrieval] if transform or rerank else [])
    ranked = evaluator.rank_all(made, retrievals)
    result = evaluator.summarize(made, ranked, metric, about | chosen)
    path = run.evaluation / FILE
    write_atomically(path, json.dumps(result.record, indent=2) + "\n")
    notes = [f"written to {path}"]
    if report:
        write_page(run.evaluation / PAGE, result, made, ranked, retrieval, pictures)
        notes.append(f"report in {run.evaluation / PAGE}")
    return inputs.as_text(result, *notes, first=warning)


def _open_unjudged(run: Run, source: str, what: inputs.Judged, *, report: bool) -> list[Columns]:
    """Columns of the queries and the gallery of whom nothing is known, see `run`."""
    why, given = "with --predict, which judges nothing", what.given() | {"report": report}
    if source == RELEASE:
        inputs.refuse(why, **given)
        return [inputs.data_of(run).open(split) for split in ("query", "test")]
    if not what.images:
        raise InputError(
            f"--predict is {source!r}: a folder of queries needs --images, the folder that is "
            f"searched; {RELEASE!r} answers the data set's own"
        )
    inputs.refuse(why, **given | {"images": None, "skip_bad": False})
    size, how = run.config.data.image_size, {"named": False, "skip_bad": what.skip_bad}
    return [inputs.read_folder(Path(folder), size, **how) for folder in (source, what.images)]


def _open_sides(run: Run, what: inputs.Judged) -> list[Columns]:
    """Columns of the gallery and, where there are any, of the queries."""
    what.check()
    if not what.images:
        return [inputs.data_of(run).open(name) for name in evaluator.split_names(what.split)]
    folders = [(what.images, what.annotations), (what.queries, what.query_annotations)]
    size = run.config.data.image_size
    return [
        inputs.read_folder(
            Path(folder), size, table=Path(table) if table else None, skip_bad=what.skip_bad
        )
        for folder, table in folders
        if folder
    ]
