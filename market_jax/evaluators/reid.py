"""How well queries find the images of their person, in every protocol that the data allow."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

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

PLAIN = "ranking"  # by the distances of the features alone
HEADER = ("retrieval, protocol", "mAP", "95 %", "trapezoid", "mINP", "R1", "95 %", "R5", "R10")


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """How a gallery is ranked.

    Attributes:
      metric: of the distances, "cosine" or "euclidean".
      transforms: name -> (query, gallery) -> (query, gallery), before distances, in this order.
      rerankers: name -> (query, gallery, distances) -> distances, after, in this order.
    """

    metric: str = "cosine"
    transforms: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
    rerankers: Mapping[str, Callable] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The word ranking, and what is added to it."""
        return "+".join([PLAIN, *self.transforms, *self.rerankers])

    def distances(self, query: Columns, gallery: Columns) -> np.ndarray:
        """[Q, G]; smaller is nearer, infinite is not in the answer.

        Args:
          query: "feature" [Q, D].
          gallery: "feature" [G, D].
        """
        return chain.apply(
            query,
            gallery,
            transforms=list(self.transforms.values()),
            rerankers=list(self.rerankers.values()),
            metric=self.metric,
        )

    def rank(self, protocol: Protocol) -> ranking.Ranking:
        """The ranking metrics of a protocol."""
        query, gallery = protocol.query, protocol.gallery
        if self.transforms or self.rerankers:
            return ranking.evaluate(self.distances(query, gallery), **protocol.labels)
        features = query["feature"], gallery["feature"]
        return ranking.evaluate_features(*features, **protocol.labels, metric=self.metric)

    def some_distances(self, protocol: Protocol, queries: np.ndarray) -> np.ndarray:
        """The distances [q, G] of some of a protocol's queries, given by their positions.

        Args:
          protocol: whose queries they are.
          queries: positions int [q].
        """
        query, gallery = protocol.query, protocol.gallery
        if self.transforms or self.rerankers:  # which may look at all queries
            return self.distances(query, gallery)[queries]
        features = query["feature"][queries], gallery["feature"]
        return distances.compute(*features, self.metric)


def make_protocols(
    gallery: Columns, queries: Columns | None, names: Sequence[str] = ()
) -> dict[str, Protocol]:
    """Name -> protocol, of those that the images allow.

    Args:
      gallery: of the images that are judged.
      queries: the data set's own queries; None draws them from the images.
      names: only these; all without.

    Raises:
      InputError: nobody is known in the images, or a named protocol is not possible with them.
    """
    if gallery["pid"].min(initial=0) < filenames.JUNK:
        raise InputError("who the images show is not known here; --predict=release answers them")
    made = protocols.make(gallery, queries)
    missing = [name for name in names if name not in made]
    if missing:
        raise InputError(
            f"protocol {missing[0]!r} is not possible with these images; "
            f"possible: {', '.join(made)}"
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
    """Error rates over pairs, and a threshold from half of the identities judged on the others.

    Args:
      protocol: whose pairs of query and gallery image are judged.
      metric: of the distances.

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
    """What `verify` returns in three sentences."""
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
    """{retrieval: {protocol: record}} as a table, in percent."""
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
    """Retrieval -> protocol -> its ranking.

    Args:
      made: name -> protocol.
      retrievals: how the gallery is ranked.
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
    """The result of rankings.

    Args:
      made: name -> protocol.
      ranked: retrieval -> protocol -> its ranking.
      metric: of the distances.
      about: "judged" and "features", and settings, for the record.
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
    notes = []
    if "market" in made:
        try:
            about["verification"] = verify(made["market"], metric)
            notes.append(verification_text(about["verification"]))
        except InputError as error:  # few identities
            notes.append(f"Pairs of images are not judged: {error}.")
    title = "{judged}: {images} images of {identities} identities; {features} features, {metric}"
    last = list(results.values())[-1]
    metrics = {f"{key}/{m}": row[m] for key, row in last.items() for m in ("mAP", "mINP", "rank1")}
    return Result(
        title=title.format(**about),
        metrics=metrics,
        record=results | about,
        tables=(as_table(results),),
        notes=tuple(notes),
    )


def read_features(
    predict: Callable,
    dataset: Dataset,
    split: str,
    *,
    outputs: Sequence[str] = ("embedding",),
    flip: bool = False,
) -> tuple[Columns, Columns | None]:
    """The features of a split, and of the data set's own queries where it has them for it.

    Args:
      predict: the model.
      dataset: that holds the split.
      split: "test" has queries of its own.
      outputs: of the model, side by side.
      flip: the mean with the mirrored images' features.
    """
    names = ("test", "query") if split == "test" else (split,)
    sides = [inference.features(predict, dataset.open(name), outputs, flip=flip) for name in names]
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
    """Judges plain ranking.

    Args:
      predict: the model.
      dataset: that is judged.
      split: "val", "train" or "test".
      outputs: of the model, side by side.
      metric: "cosine" or "euclidean".
      flip: the mean with the mirrored images' features.
      protocols: "market", "course", "course_with_self".
    """
    gallery, queries = read_features(predict, dataset, split, outputs=outputs, flip=flip)
    made = make_protocols(gallery, queries, protocols)
    about = {"judged": f"split {split}", "features": "+".join(outputs), "flip": flip}
    return summarize(made, rank_all(made, [Retrieval(metric)]), metric, about)
