"""--task=reid: how well queries find their matches, and answers to the release's queries."""

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from market_jax import experiment, galleries, runs
from market_jax.data import columns
from market_jax.errors import InputError
from market_jax.evaluators import tuning
from market_jax.evaluators.protocols import Protocol
from market_jax.files import write_atomically
from market_jax.metrics import confidence, ranking, verification
from market_jax.registry import parse
from market_jax.report import predictions, ranked_lists, tables
from market_jax.retrieval import centroids, distances, search
from market_jax.retrieval.stages import WHAT
from market_jax.typing import Columns

FILE, PAGE = "reid.json", "report.html"
PLAIN = "ranking"  # the retrieval without clusters
LENGTH = 100  # answers to a query of the release
_OF_LINKAGE = {"metric", "method", "neighbours"}  # what a threshold is learned for
LISTED, SHOWN = 10, 5  # answers to a query of the page; queries of each kind


def rank(protocol: Protocol, stages: list[Callable], metric: str) -> ranking.Ranking:
    """Plain ranking by features, or what the stages make of its distances."""
    query, gallery = protocol.query, protocol.gallery
    if not stages:
        return ranking.evaluate_features(
            query["feature"], gallery["feature"], **protocol.labels, metric=metric
        )
    return ranking.evaluate(stage_distances(query, gallery, stages, metric), **protocol.labels)


def stage_distances(
    query: Columns, gallery: Columns, stages: list[Callable], metric: str
) -> np.ndarray:
    """[Q, G], of the features, changed by each stage in turn."""
    result = distances.compute(query["feature"], gallery["feature"], metric)
    for stage in stages:
        result = stage(query, gallery, result)
    return result


def with_intervals(result: ranking.Ranking, protocol: Protocol) -> dict:
    """The result for a JSON file, with 95 % intervals of mAP and rank 1 over identities."""
    pids = protocol.query["pid"]
    hits = np.where(result.first_rank > 0, result.first_rank == 1, np.nan)
    return result.to_dict() | {
        "mAP_interval": confidence.interval(result.average_precision, pids),
        "rank1_interval": confidence.interval(hits, pids),
    }


def verify(protocol: Protocol, metric: str) -> dict:
    """Error rates over pairs, and a threshold from half of the identities judged on the others."""
    pids = np.random.default_rng(0).permutation(np.unique(protocol.query["pid"]))
    halves = []
    for part in (pids[: len(pids) // 2], pids[len(pids) // 2 :]):
        sides = (
            columns.select(side, np.isin(side["pid"], [*part, 0]))
            for side in (protocol.query, protocol.gallery)
        )
        halves.append(Protocol(*sides, protocol.by_camera))

    def count(half):
        left, right = half.query["feature"], half.gallery["feature"]
        return verification.count_pairs(left, right, **half.labels, metric=metric)

    promised = verification.calibrate(count(halves[0]))
    kept = verification.judge(count(halves[1]), promised.distance)
    return {
        "pairs": verification.roc(count(protocol)),
        "threshold": promised._asdict(),
        "on_other_identities": kept._asdict(),
    }


HEADER = ("retrieval, protocol", "mAP", "95 %", "trapezoid", "mINP", "R1", "95 %", "R5", "R10")


def as_rows(results: dict) -> list[tuple[str, ...]]:
    """The results as rows of a table, in percent."""
    rows = []
    for name, by_protocol in results.items():
        for protocol, row in by_protocol.items():
            cells = [tables.percent(row["mAP"]), tables.interval(row["mAP_interval"])]
            cells += [tables.percent(row[key]) for key in ("mAP_trapezoid", "mINP", "rank1")]
            cells.append(tables.interval(row["rank1_interval"]))
            cells += [tables.percent(row[f"rank{k}"]) for k in (5, 10)]
            rows.append((f"{name}, {protocol}", *cells))
    return rows


def verification_text(result: dict) -> str:
    """The verification results in three sentences."""
    pairs, promised, kept = (result[k] for k in ("pairs", "threshold", "on_other_identities"))
    percent = tables.percent
    return (
        f"Pairs of images, protocol market: {percent(pairs['tpr_at_fpr_1e-03'])} % of the same "
        f"person found at a false positive rate of 0.1 %, {percent(pairs['tpr_at_fpr_1e-04'])} % "
        f"at 0.01 %; equal error rate {percent(pairs['equal_error_rate'])} %.\n"
        f"Same person up to a distance of {promised['distance']:.4f}: fitted on half of the "
        f"identities, precision {percent(promised['precision'])} %, recall "
        f"{percent(promised['recall'])} %; on the others {percent(kept['precision'])} % and "
        f"{percent(kept['recall'])} %."
    )


def write_report(
    path: Path,
    title: str,
    said: list[str],
    made: dict[str, Protocol],
    ranked: dict[str, dict[str, ranking.Ranking]],
    far: Callable[[Protocol, np.ndarray], np.ndarray],
    rows: list[tuple[str, ...]],
    images: list[Columns],
) -> None:
    """Writes the page, with ranked lists of the last retrieval in the first protocol.

    Args:
      path: of the page.
      title: of the page.
      said: paragraphs below it.
      made: name -> protocol.
      ranked: retrieval -> protocol -> its ranking.
      far: (protocol, queries) -> their distances [q, G] in the last retrieval.
      rows: of the table of metrics.
      images: columns that hold the pictures.
    """
    where = {str(name): (side, i) for side in images for i, name in enumerate(side["name"])}

    def picture(name: str) -> np.ndarray:
        side, i = where[name]
        return side["image"][np.array([i])][0]

    key, protocol = next(iter(made.items()))
    retrieval, by_protocol = list(ranked.items())[-1]
    lists = {}
    for heading, chosen in ranked_lists.choose_queries(
        by_protocol[key].average_precision, SHOWN
    ).items():
        shown = zip(chosen, far(protocol, chosen), strict=True)
        lists[f"{heading}: {retrieval}, {key}"] = [
            ranked_lists.answers(protocol, i, row, picture, LISTED) for i, row in shown
        ]
    cmc = {f"{r}, {p}": result.cmc for r, by in ranked.items() for p, result in by.items()}
    write_atomically(path, ranked_lists.page(title, said, HEADER, rows, cmc, lists))


def training_of(found: runs.Run, source: str) -> Callable[[], Columns]:
    """() -> the training identities' columns, with features."""
    return functools.partial(galleries.read_split, found, source, "train")


def make_retrieval(found: runs.Run, source: str, count: int) -> tuple[list[Callable], dict]:
    """`config.retrieval.name` as stages, none for plain ranking; and what was chosen for it.

    Where a clustering is told neither how many clusters there are nor the linkage's threshold,
    the images per cluster are chosen on the training identities, for a gallery of `count` images;
    `learn=threshold` takes the threshold that cuts these identities so.
    """
    config = found.config.retrieval
    name, arguments = parse(config.name, WHAT)
    if name == PLAIN:
        return [], {}
    text = " ".join(word for word in config.name.split() if not word.startswith("learn="))
    stage = experiment.make_stage(found.config, text, training_of(found, source))
    takes = inspect.signature(stage.func).parameters
    given = {"clusters", "threshold"} & arguments.keys() or arguments.get("bic")
    learn = arguments.get("learn", "clusters")
    if "learn" in arguments and (given or learn not in {"clusters", "threshold"} & takes.keys()):
        raise InputError(f"{config.name!r} cannot learn {learn!r}; see README's table")
    if "clusters" not in takes or given:
        return [stage], {}
    training = training_of(found, source)()
    size, judged = tuning.cluster_size(training, count, stage, config.metric)
    chosen = {"images_per_cluster": size, "mAP_on_training": judged}
    if learn == "threshold":
        linkage = {key: stage.keywords[key] for key in _OF_LINKAGE & stage.keywords.keys()}
        limit = tuning.threshold(training, count, size, **linkage)
        return [functools.partial(stage, threshold=limit)], chosen | {"threshold": limit}

    def by_size(query: Columns, gallery: Columns, far: np.ndarray) -> np.ndarray:
        clusters = centroids.count_clusters(len(gallery["pid"]), size)
        return stage(query, gallery, far, clusters=clusters)

    return [by_size], chosen


def answer_release(found: runs.Run, source: str, stages: list[Callable], top_k: int | None) -> str:
    """Writes `evaluation/reid_test.txt`: every query of the release, answered from its gallery."""
    query, gallery = (galleries.read_split(found, source, split) for split in ("query", "test"))
    metric = found.config.retrieval.metric
    size = len(gallery["name"])
    top_k = min(LENGTH, size) if top_k is None else top_k
    if not 1 <= top_k <= size:
        raise InputError(f"top_k is {top_k}; it must be 1 to {size}, the gallery")
    stages = stages + make_retrieval(found, source, size)[0]
    if stages:
        far = stage_distances(query, gallery, stages, metric)
        found_at = np.argsort(far, axis=1, kind="stable")[:, :top_k]
        # what is infinitely far is not in the answer
        found_at = [row[np.isfinite(far[i, row])] for i, row in enumerate(found_at)]
    else:
        pair = query["feature"], gallery["feature"]
        found_at = search.top_k(*pair, top_k, metric=metric)[1]
    path = found.workdir / "evaluation" / "reid_test.txt"
    names = gallery["name"].tolist()
    lists = [[names[i] for i in row] for row in found_at]
    write_atomically(path, predictions.reid_txt(query["name"].tolist(), lists, names))
    said = f"{len(lists)} answers of at most {top_k} in {path}"
    has_twin = np.isin(query["digest"], gallery["digest"])
    if has_twin.any():
        twins = [
            gallery["digest"][at] == own for at, own in zip(found_at, query["digest"], strict=True)
        ]
        twins = [hits for hits, has in zip(twins, has_twin, strict=True) if has]
        shares = (np.mean([hits.any() for hits in twins]), np.mean([hits[0] for hits in twins]))
        said += (
            f"\nof {has_twin.sum()} queries with a twin in the gallery, "
            f"{tables.percent(shares[0])} % have it in the answer and "
            f"{tables.percent(shares[1])} % at rank 1"
        )
    return said


def run(
    found: runs.Run,
    *,
    split: str = "val",
    images: str | None = None,
    annotations: str | None = None,
    predict: str | None = None,
    features: str = "model",
    stage: list[str] | None = None,
    metric: str | None = None,
    flip: bool | None = None,
    retrieval: str | None = None,
    exclude: str | None = None,
    top_k: int | None = None,
    report: bool = False,
) -> str:
    """Judges a ranking in every protocol that the data allow, or answers the release's queries.

    Args:
      found: the run; without a model for features that need none.
      split: "val", the held-out identities; "train"; or "test", with the data set's own queries.
      images: a folder of crops that is judged instead of a split.
      annotations: a CSV of name, pid and camid that lists the folder's pictures.
      predict: "release" answers the data set's queries from its test images; nothing is judged.
      features: "model", "predictions" or both, "model+predictions"; or a descriptor that needs no
        training.
      stage: ranking stages, instead of the config's.
      metric: "cosine" or "euclidean", instead of the config's.
      flip: average with the mirror image, instead of the config's.
      retrieval: "ranking", or through clusters, as a stage; instead of the config's name.
      exclude: a CSV whose column "name" says which images are left out.
      top_k: answers to each query of the release; by default 100, or all of a smaller gallery.
      report: write `evaluation/report.html`.

    Returns:
      The text for the terminal.

    Raises:
      InputError: what the data, the run or the arguments have wrong.
    """
    settings = found.config.retrieval
    given = {"stages": stage and tuple(stage), "metric": metric, "flip": flip, "name": retrieval}
    settings.update({key: value for key, value in given.items() if value is not None})
    stages = experiment.make_stages(found.config, training_of(found, features))
    if predict:
        if predict != "release":
            raise InputError(f"--predict is {predict!r}; --task=reid knows release")
        return answer_release(found, features, stages, top_k)
    made, images_of = galleries.read_protocols(found, features, split, images, annotations, exclude)
    count = len(made["course"].gallery["pid"])
    through, chosen = make_retrieval(found, features, count)
    names = [parse(text, WHAT)[0] for text in (settings.name, *settings.stages)]
    stages = stages + through
    retrievals = {PLAIN: []}
    if stages:
        retrievals["+".join(names)] = stages
        if "multi_query" in names:  # elsewhere the images that it takes count as matches
            made = {"market": made["market"]}
    ranked = {
        name: {key: rank(protocol, chain, settings.metric) for key, protocol in made.items()}
        for name, chain in retrievals.items()
    }
    results = {
        name: {key: with_intervals(result, made[key]) for key, result in by_protocol.items()}
        for name, by_protocol in ranked.items()
    }
    rows = as_rows(results)
    gallery = list(made.values())[-1].gallery  # all images
    about = {
        "judged": images or f"split {split}",
        "images": len(gallery["name"]),
        "identities": len(np.unique(gallery["pid"][gallery["pid"] > 0])),
        "features": features,
        "metric": settings.metric,
        "retrieval": settings.name,
        "stages": list(settings.stages),
        "flip": settings.flip,
        "checkpoint": found.step,
    } | chosen
    title = "{judged}: {images} images of {identities} identities; {features} features, {metric}"
    said = [title.format(**about), tables.align(HEADER, rows)]
    if "market" in made:
        try:
            about["verification"] = verify(made["market"], settings.metric)
            said.append(verification_text(about["verification"]))
        except InputError as error:  # few identities
            said.append(f"Pairs of images are not judged: {error}.")
    folder = found.workdir / "evaluation"
    write_atomically(folder / FILE, json.dumps(results | about, indent=2) + "\n")
    said.append(f"written to {folder / FILE}")
    if report:

        def far(protocol: Protocol, queries: np.ndarray) -> np.ndarray:
            if stages:  # which may look at all queries
                sides = protocol.query, protocol.gallery
                return stage_distances(*sides, stages, settings.metric)[queries]
            features = protocol.query["feature"][queries], protocol.gallery["feature"]
            return distances.compute(*features, settings.metric)

        page = folder / PAGE
        write_report(page, said[0], said[2:-1], made, ranked, far, rows, images_of())
        said.append(f"report in {page}")
    return "\n\n".join(said)
