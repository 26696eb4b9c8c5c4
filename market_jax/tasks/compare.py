"""--task=compare: how runs differ on the same pictures, with paired intervals over identities."""

import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from market_jax import registry, seen
from market_jax.errors import InputError
from market_jax.evaluators import attributes, scores
from market_jax.evaluators import reid as evaluator
from market_jax.evaluators.protocols import NAMES
from market_jax.evaluators.reid import Retrieval
from market_jax.evaluators.result import Result, Table
from market_jax.evaluators.scores import Scores
from market_jax.files import write_atomically
from market_jax.metrics import attributes as metrics
from market_jax.metrics import confidence
from market_jax.report import tables
from market_jax.runs import Run
from market_jax.tasks import inputs
from market_jax.typing import Columns

FILE = "compare.json"
BY = ("reid", "attributes")
DIFFERENCE = ("difference, 95 %", "p")


def judge_persons(run: Run, split: str, protocol: str, *, flip: bool) -> Scores:
    """Judges a run by plain ranking.

    Args:
      run: the run.
      split: the split that is judged.
      protocol: the name of the protocol.
      flip: average the features of an image and its mirror image.
    """
    sides = evaluator.read_features(run.predict, run.dataset(), split, flip=flip)
    made = evaluator.make_protocols(*sides, (protocol,))[protocol]
    found = Retrieval().rank(made)
    hit = np.where(found.first_rank > 0, found.first_rank == 1, np.nan)
    values = {"mAP": found.average_precision, "rank 1": hit, "mINP": found.inverse_penalty}
    return _scores(run, split, made.query, values)


def judge_attributes(run: Run, split: str, labels: Sequence[str], *, flip: bool) -> Scores:
    """Judges the labels that a run predicts.

    Args:
      run: the run.
      split: the split that is judged.
      labels: names of the labels.
      flip: average the logits of an image and its mirror image.
    """
    columns = run.dataset().open(split)
    predicted, _ = attributes.classify(run.predict, columns, labels, flip=flip)
    classes = {name: run.schema.labels[name] for name in labels}
    return _scores(run, split, columns, metrics.per_image(columns, predicted, classes))


def _scores(run: Run, split: str, columns: Columns, values: Mapping[str, np.ndarray]) -> Scores:
    seen_them = seen.is_transductive(run, evaluator.split_names(split))
    return Scores(run.workdir, {}, columns["name"], columns["pid"], values, seen_them)


def _shared_labels(members: Sequence[Run | Scores], split: str) -> list[str]:
    """The labels of the data set that all runs predict; files of scores have theirs."""
    found = []
    for member in members:
        if isinstance(member, Scores):
            found.append(member.about.get("labels", []))
            continue
        columns = member.dataset().open(split)
        known = [name for name in member.schema.labels if name in columns]
        found.append(attributes.outputs_to_judge(member.predict, columns, known))
    shared = [name for name in found[0] if all(name in names for names in found)]
    if not shared:
        raise InputError(f"no label of the split {split} is predicted by all of the runs")
    return shared


def _check_alike(first: Scores, other: Scores, split: str) -> None:
    """Refuses rows that are judged on other pictures."""
    alike = zip((first.names, first.pids), (other.names, other.pids), strict=True)
    if first.values.keys() != other.values.keys():
        raise InputError(f"{other.path}: has other metrics than {first.path}")
    if not all(np.array_equal(*pair) for pair in alike):
        raise InputError(
            f"{other.path}: its split {split} has other pictures than {first.path} is judged on"
        )


def _check_asked(found: Scores, about: Mapping[str, Any]) -> None:
    """Refuses a file of scores that were not made as is asked for."""
    for key in about:
        if found.about.get(key) != about[key]:
            raise InputError(
                f"{found.path}: its {key!r} is {found.about.get(key)!r}, where {about[key]!r} is "
                "compared"
            )


def _mean(seeds: Sequence[Scores]) -> Scores:
    """The scores of a row: the mean of its seeds."""
    keys = seeds[0].values
    values = {key: np.mean([each.values[key] for each in seeds], axis=0) for key in keys}
    return seeds[0]._replace(values=values)


def run(
    rows: Sequence[Sequence[Run | Scores]],
    *,
    by: str = "reid",
    split: str = "val",
    protocol: str = "market",
    flip: bool = False,
) -> str:
    """Compares runs on the same pictures: each with the first, paired, over identities.

    The intervals are of the bootstrap over identities, the p values of a test that swaps the two
    runs for each identity at random. What each run is worth, query by query, is written into its
    folder, and that file can stand in its place.

    Args:
      rows: rows of runs, or of their scores where only these are at hand; those of a row are the
        seeds of one network, whose values are averaged. Each row is compared with the first.
      by: What is compared: reid (how they rank) or attributes (those that all runs predict).
      split: What is judged: val, holdout, train, or test with the data set's own queries.
      protocol: market, course or course_with_self; of reid.
      flip: Average the features, or logits, of an image and its mirror image.

    Returns:
      The text for the terminal.
    """
    registry.choose(by, dict.fromkeys(BY), "--by")
    registry.choose(protocol, dict.fromkeys(NAMES), "protocol")
    members, about = (
        [each for row in rows for each in row],
        {"by": by, "split": split, "flip": flip},
    )
    if by == "attributes":
        inputs.refuse("with --by=attributes", protocol=protocol != "market")
        about["labels"] = labels = _shared_labels(members, split)
        judge = functools.partial(judge_attributes, split=split, labels=labels, flip=flip)
        what, unit = f"mean of {len(labels)} attributes", "images"
    else:
        about["protocol"] = protocol
        judge = functools.partial(judge_persons, split=split, protocol=protocol, flip=flip)
        what, unit = f"protocol {protocol}", "queries"
    seeds = [[_scores_of(each, about, judge) for each in row] for row in rows]
    for each in itertools.chain(*seeds):
        _check_alike(seeds[0][0], each, split)
    judged = [_mean(row) for row in seeds]
    table, record = _differences(_names(seeds), judged)
    pids = judged[0].pids
    entries, caution, notes = dict(seeds[0][0].about), "", []
    if any(each.transductive for each in seeds[0]):
        entries["transductive"], caution = True, f"{seen.TRANSDUCTIVE}."
    entries |= {unit: len(pids), "runs": record}
    for run in [each for each in members if isinstance(each, Run)][:1]:
        write_atomically(run.evaluation / FILE, json.dumps(entries, indent=2) + "\n")
        notes.append(f"written to {run.evaluation / FILE}")
    title = f"split {split}, {what}: {len(pids)} {unit} of {len(np.unique(pids))} identities"
    result = Result(title=f"{title}; percent", tables=(table,))
    return inputs.as_text(result, *notes, first=caution)


def _scores_of(
    member: Run | Scores, about: Mapping[str, Any], judge: Callable[[Run], Scores]
) -> Scores:
    """The scores of a run, which are written into its folder, or a file's if they are the same."""
    if isinstance(member, Scores):
        _check_asked(member, about)
        return member
    found = judge(member)
    found = found._replace(about=dict(about) | {"data": member.config.data.name})
    words = [about["by"], about["split"], about.get("protocol"), about["flip"] and "flip"]
    scores.write(member.evaluation / f"scores-{'-'.join(filter(None, words))}.json", found)
    return found


def _differences(names: Sequence[str], judged: Sequence[Scores]) -> tuple[Table, list[dict]]:
    """How each row differs from the first: as a table, and as entries for the record."""
    first, lines, record = judged[0], [], []
    for name, row in zip(names, judged, strict=True):
        cells, entry = [name], {"run": name}
        for key, values in row.values.items():
            mean, differs = float(np.nanmean(values)), None
            if row is not first:
                differs = confidence.compare(first.values[key], values, first.pids)
            cells += [tables.percent(mean), *(_as_cells(differs) if differs else ("", ""))]
            entry[key] = {"mean": mean} | (differs._asdict() if differs else {})
        lines.append(tuple(cells))
        record.append(entry)
    columns = ((key.replace("_", " "), *DIFFERENCE) for key in first.values)
    header = ("run", *itertools.chain(*columns))
    return Table(header, lines), record


def _names(rows: Sequence[Sequence[Scores]]) -> list[str]:
    """The name of each row: of its runs, or their paths where others are called so."""
    names = [_name(each) for row in rows for each in row]

    def named(each: Scores) -> str:
        name = str(each.path) if names.count(_name(each)) > 1 else _name(each)
        return name + (" (transductive)" if each.transductive else "")

    return [" + ".join(map(named, row)) for row in rows]


def _name(each: Scores) -> str:
    """The name of a run's folder, or that of a file without its ending."""
    return each.path.name.removesuffix(scores.ENDING)


def _as_cells(found: confidence.Comparison) -> tuple[str, str]:
    """A difference with its interval, in percent, and the p value."""
    low, high = (f"{100 * end:+.2f}" for end in (found.low, found.high))
    return f"{100 * found.difference:+.2f} ({low} to {high})", f"{found.p_value:.3f}"
