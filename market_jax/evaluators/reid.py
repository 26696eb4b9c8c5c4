"""How well queries find the images of their person, in every protocol that the data allow."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from market_jax import inference
from market_jax.data import columns as columns_
from market_jax.data import filenames
from market_jax.data.datasets import Dataset
from market_jax.errors import InputError
from market_jax.evaluators import protocols
from market_jax.evaluators.protocols import Protocol
from market_jax.evaluators.result import Result, Table
from market_jax.metrics import confidence, ranking, verification
from market_jax.report import tables
from market_jax.retrieval import chain, distances
from market_jax.typing import Columns

FILE = "reid.json"  # the record of `--task=reid`
PLAIN = "ranking"  # by the distances of the features alone
HEADER = ("retrieval, protocol", "mAP", "95 %", "trapezoid", "mINP", "R1", "95 %", "R5", "R10")


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """How a gallery is ranked.

    Attributes:
      metric: the distance between features, "cosine" or "euclidean".
      transforms: names and functions (query, gallery) -> (query, gallery) of columns; applied in
        order before distances are computed.
      rerankers: names and functions (query, gallery, distances) -> distances; applied in order
        after.
    """

    metric: str = "cosine"
    transforms: Sequence[tuple[str, Callable]] = ()
    rerankers: Sequence[tuple[str, Callable]] = ()

    @property
    def name(self) -> str:
        """The word for plain ranking and the names of what is added, joined by +."""
        return "+".join([PLAIN, *(name for name, _ in (*self.transforms, *self.rerankers))])

    def distances(self, query: Columns, gallery: Columns) -> np.ndarray:
        """Distances [Q, G]: smaller is nearer; what is infinitely far is not in the answer.

        Args:
          query: columns of the queries, with "feature" [Q, D].
          gallery: columns of the gallery, with "feature" [G, D].
        """
        return chain.apply(
            query,
            gallery,
            transforms=[transform for _, transform in self.transforms],
            rerankers=[rerank for _, rerank in self.rerankers],
            metric=self.metric,
        )

    def rank(self, protocol: Protocol) -> ranking.Ranking:
        """Ranks a protocol's gallery for every query, and returns the ranking metrics."""
        query, gallery = protocol.query, protocol.gallery
        if self.transforms or self.rerankers:
            return ranking.evaluate(self.distances(query, gallery), **protocol.labels)
        features = query["feature"], gallery["feature"]
        return ranking.evaluate_features(*features, **protocol.labels, metric=self.metric)

    def some_distances(self, protocol: Protocol, queries: np.ndarray) -> np.ndarray:
        """The distances [q, G] of some of a protocol's queries.

        Args:
          protocol: the protocol with the queries and the gallery.
          queries: positions of the chosen queries, int [q].
        """
        query, gallery = protocol.query, protocol.gallery
        if self.transforms or self.rerankers:  # which may look at all queries
            return self.distances(query, gallery)[queries]
        features = query["feature"][queries], gallery["feature"]
        return distances.compute(*features, self.metric)


def make_protocols(
    gallery: Columns, queries: Columns | None, names: Sequence[str] = ()
) -> dict[str, Protocol]:
    """Makes the protocols that the images allow: name -> protocol.

    Args:
      gallery: columns of the images that are judged.
      queries: columns of the data set's own queries; None chooses them from `gallery`.
      names: the protocols that are wanted; () is all that are possible.

    Raises:
      InputError: no image shows a known person, or a named protocol is not possible with them.
    """
    if gallery["pid"].min(initial=0) < filenames.JUNK:
        raise InputError("who the images show is not known here; --predict=release answers them")
    made = protocols.make(gallery, queries)
    missing = [name for name in names if name not in made]
    if missing:
        raise InputError(
            f"protocol {missing[0]!r} is not possible with these images "
            f"({protocols.why_left_out(missing[0], gallery, queries)}); possible: {', '.join(made)}"
        )
    return {name: made[name] for name in (names or made)}


def _with_intervals(found: ranking.Ranking, protocol: Protocol) -> dict:
    """A ranking for the record, with 95 % intervals of mAP and rank 1 over identities."""
    pids = protocol.query["pid"]
    hits = np.where(found.first_rank > 0, found.first_rank == 1, np.nan)
    return found.to_dict() | {
        "mAP_interval": confidence.interval(found.average_precision, pids),
        "rank1_interval": confidence.interval(hits, pids),
    }


def verify(protocol: Protocol, metric: str) -> dict:
    """Error rates over pairs, and a threshold that half of the identities give, judged on the rest.

    Args:
      protocol: the protocol; pairs of a query and a gallery image are judged.
      metric: the distance between features, "cosine" or "euclidean".

    Returns:
      {"pairs", "threshold", "on_other_identities"}, numbers for the record.

    Raises:
      InputError: there are too few identities.
    """
    pids = np.random.default_rng(0).permutation(np.unique(protocol.query["pid"]))
    halves = []
    for part in (pids[: len(pids) // 2], pids[len(pids) // 2 :]):
        sides = (
            columns_.select(side, np.isin(side["pid"], [*part, 0]))
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


def verification_text(result: Mapping) -> str:
    """Three sentences about error rates over pairs.

    Args:
      result: what `verify` has returned.
    """
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


def as_table(results: Mapping[str, Mapping[str, Mapping]]) -> Table:
    """Formats rankings as a table, in percent.

    Args:
      results: name of the retrieval -> protocol name -> metrics with intervals.
    """
    rows = []
    for name, by_protocol in results.items():
        for protocol, row in by_protocol.items():
            cells = [tables.percent(row["mAP"]), tables.interval(row["mAP_interval"])]
            cells += [tables.percent(row[key]) for key in ("mAP_trapezoid", "mINP", "rank1")]
            cells.append(tables.interval(row["rank1_interval"]))
            cells += [tables.percent(row[f"rank{k}"]) for k in (5, 10)]
            rows.append((f"{name}, {protocol}", *cells))
    return Table(HEADER, rows)


def rank_all(
    made: Mapping[str, Protocol], retrievals: Sequence[Retrieval]
) -> dict[str, dict[str, ranking.Ranking]]:
    """Ranks in every protocol: name of the retrieval -> protocol name -> metrics.

    Args:
      made: protocol name -> protocol, see `make_protocols`.
      retrievals: the ways to rank the gallery.
    """
    return {
        retrieval.name: {name: retrieval.rank(protocol) for name, protocol in made.items()}
        for retrieval in retrievals
    }


def summarize(
    made: Mapping[str, Protocol],
    ranked: Mapping[str, Mapping[str, ranking.Ranking]],
    metric: str,
    about: Mapping,
) -> Result:
    """Makes the result from rankings, with intervals and error rates over pairs.

    Args:
      made: protocol name -> protocol.
      ranked: name of the retrieval -> protocol name -> its metrics, see `rank_all`.
      metric: the distance between features, "cosine" or "euclidean".
      about: entries for the record: "judged" and "features", which say in words what is judged,
        and settings.
    """
    results = {
        name: {key: _with_intervals(found, made[key]) for key, found in by_protocol.items()}
        for name, by_protocol in ranked.items()
    }
    gallery = list(made.values())[-1].gallery  # all images
    about = {
        "judged": about["judged"],
        "images": len(gallery["name"]),
        "identities": len(np.unique(gallery["pid"][gallery["pid"] > 0])),
        "metric": metric,
    } | dict(about)
    notes = [f"{name} is left out: {why}." for name, why in about.get("left_out", {}).items()]
    notes += _counts(made)
    if "market" in made:
        try:
            about["verification"] = verify(made["market"], metric)
            notes.append(verification_text(about["verification"]))
        except InputError as error:  # few identities
            notes.append(f"Pairs of images are not judged: {error}.")
    title = (
        "{judged}{narrowed}: {images} images of {identities} identities; {features} features, "
        "{metric}"
    )
    last = list(results.values())[-1]
    metrics = {f"{key}/{m}": row[m] for key, row in last.items() for m in ("mAP", "mINP", "rank1")}
    return Result(
        title=title.format(**about, narrowed=tables.narrowed(about)),
        metrics=metrics,
        record=results | about,
        tables=(as_table(results),),
        notes=tuple(notes),
    )


def _counts(made: Mapping[str, Protocol]) -> Iterator[str]:
    """A sentence for each protocol that has queries without a match."""
    for name, protocol in made.items():
        without = protocols.count_without_match(protocol)
        if without:
            yield (
                f"{name}: {without} of {len(protocol.query['pid'])} queries have no match in the "
                "gallery and do not count."
            )


def split_names(split: str) -> tuple[str, ...]:
    """The splits of the gallery and, if there are such, of the queries: "test" has its own."""
    return ("test", "query") if split == "test" else (split,)


def read_features(
    predict: Callable,
    dataset: Dataset,
    split: str,
    *,
    outputs: Sequence[str] = ("embedding",),
    flip: bool = False,
) -> tuple[Columns, Columns | None]:
    """Computes the features of a split, and of the data set's own queries if the split has any.

    Args:
      predict: the model, a `Predictor`.
      dataset: the data set.
      split: the name of the split; "test" has queries of its own.
      outputs: names of the model's outputs, which are put side by side.
      flip: average the features of an image and its mirror image.

    Returns:
      Columns of the gallery and of the queries or None, with "feature" instead of "image".
    """
    sides = [
        inference.features(predict, dataset.open(name), outputs, flip=flip)
        for name in split_names(split)
    ]
    return sides[0], sides[1] if len(sides) > 1 else None


def evaluate(
    predict: Callable,
    dataset: Dataset,
    *,
    split: str = "val",
    outputs: tuple[str, ...] = ("embedding",),
    metric: str = "cosine",
    flip: bool = False,
    protocols: tuple[str, ...] = ("market",),
) -> Result:
    """Judges how well a model's features rank a gallery, without re-ranking.

    Args:
      predict: the model, a `Predictor`.
      dataset: the data set.
      split: the split that is judged: "val", "train" or "test".
      outputs: names of the model's outputs, which are put side by side.
      metric: the distance between features, "cosine" or "euclidean".
      flip: average the features of an image and its mirror image.
      protocols: the names of the protocols: "market", "course", "course_with_self"; () is all that
        are possible.

    Raises:
      InputError: no image shows a known person, or a protocol is not possible with these images.
    """
    gallery, queries = read_features(predict, dataset, split, outputs=outputs, flip=flip)
    made = make_protocols(gallery, queries, protocols)
    about = {"judged": f"split {split}", "features": "+".join(outputs), "flip": flip}
    return summarize(made, rank_all(made, [Retrieval(metric)]), metric, about)


def check(
    dataset: Dataset, *, split: str = "val", protocols: tuple[str, ...] = ("market",), **_
) -> None:
    """Refuses what `evaluate` would refuse, before a training begins.

    Args:
      dataset: the data set.
      split: as for `evaluate`.
      protocols: as for `evaluate`.

    Raises:
      InputError: as for `evaluate`.
    """
    sides = [*map(dataset.open, split_names(split)), None]
    make_protocols(*sides[:2], protocols)


evaluate.check = check  # for `held_out.HeldOut`
