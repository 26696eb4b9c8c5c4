"""--task=compare: how runs differ on the same pictures, with paired intervals over identities."""

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from market_jax import registry, seen
from market_jax.errors import InputError
from market_jax.evaluators import attributes
from market_jax.evaluators import reid as evaluator
from market_jax.evaluators.protocols import NAMES
from market_jax.evaluators.reid import Retrieval
from market_jax.evaluators.result import Result, Table
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


class Judged(NamedTuple):
    """What a run is worth, picture by picture.

    Attributes:
      values: metric -> a value of each query, or of each picture with labels, [N]; NaN where it has
        none. Their mean is the metric.
      columns: columns of these pictures.
    """

    values: dict[str, np.ndarray]
    columns: Columns


def judge_persons(run: Run, split: str, protocol: str, *, flip: bool) -> Judged:
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
    return Judged(values, made.query)


def judge_attributes(run: Run, split: str, labels: Sequence[str], *, flip: bool) -> Judged:
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
    return Judged(metrics.per_image(columns, predicted, classes), columns)


def _shared_labels(runs: Sequence[Run], split: str) -> list[str]:
    """The labels of the data set that all runs predict."""
    found = []
    for run in runs:
        columns = run.dataset().open(split)
        known = [name for name in run.schema.labels if name in columns]
        found.append(attributes.outputs_to_judge(run.predict, columns, known))
    shared = [name for name in found[0] if all(name in names for names in found)]
    if not shared:
        raise InputError(f"no label of the split {split} is predicted by all of the runs")
    return shared


def _judge_seeds(group: Sequence[Run], split: str, judge: Callable[[Run], Judged]) -> Judged:
    """The mean of several runs' values."""
    first, *others = judged = [judge(run) for run in group]
    for run, other in zip(group[1:], others, strict=True):
        _check_alike(first, other, split, run, group[0])
    means = {key: np.mean([each.values[key] for each in judged], axis=0) for key in first.values}
    return first._replace(values=means)


def _check_alike(first: Judged, other: Judged, split: str, run: Run, than: Run) -> None:
    """Refuses runs that are judged on other pictures."""
    if other.columns["name"].tolist() != first.columns["name"].tolist():
        raise InputError(
            f"{run.workdir}: its split {split} has other pictures than {than.workdir} is judged on"
        )


def run(
    rows: Sequence[Sequence[Run]],
    *,
    by: str = "reid",
    split: str = "val",
    protocol: str = "market",
    flip: bool = False,
) -> str:
    """Compares runs on the same pictures: each with the first, paired, over identities.

    The intervals are of the bootstrap over identities, the p values of a test that swaps the two
    runs for each identity at random.

    Args:
      rows: rows of runs; those of a row are the seeds of one network, whose values are averaged.
        Each row is compared with the first.
      by: What is compared: reid (how they rank) or attributes (those that all runs predict).
      split: What is judged: val, holdout, train, or test with the data set's own queries.
      protocol: market, course or course_with_self; of reid.
      flip: Average the features, or logits, of an image and its mirror image.

    Returns:
      The text for the terminal.
    """
    registry.choose(by, dict.fromkeys(BY), "--by")
    registry.choose(protocol, dict.fromkeys(NAMES), "protocol")
    runs, about = [each for row in rows for each in row], {"by": by, "split": split, "flip": flip}
    if by == "attributes":
        inputs.refuse("with --by=attributes", protocol=protocol != "market")
        about["labels"] = labels = _shared_labels(runs, split)
        judge = functools.partial(judge_attributes, split=split, labels=labels, flip=flip)
        what, unit = f"mean of {len(labels)} attributes", "images"
    else:
        about["protocol"] = protocol
        judge = functools.partial(judge_persons, split=split, protocol=protocol, flip=flip)
        what, unit = f"protocol {protocol}", "queries"
    judged = [_judge_seeds(row, split, judge) for row in rows]
    for row, other in zip(rows, judged, strict=True):
        _check_alike(judged[0], other, split, row[0], runs[0])
    table, record = _differences(_names(rows, split), judged)
    people = judged[0].columns["pid"]
    caution, known = seen.known_people(runs[0], [{"pid": people}], split=split)
    path = runs[0].evaluation / FILE
    about |= {unit: len(people)} | known | {"runs": record}
    write_atomically(path, json.dumps(about, indent=2) + "\n")
    title = f"split {split}, {what}: {len(people)} {unit} of {len(np.unique(people))} identities"
    result = Result(title=f"{title}; percent", tables=(table,))
    return inputs.as_text(result, f"written to {path}", first=caution)


def _differences(names: Sequence[str], judged: Sequence[Judged]) -> tuple[Table, list[dict]]:
    """How each row differs from the first: as a table, and as entries for the record."""
    first, lines, record = judged[0], [], []
    for name, row in zip(names, judged, strict=True):
        cells, entry = [name], {"run": name}
        for key, values in row.values.items():
            mean, differs = float(np.nanmean(values)), None
            if row is not first:
                differs = confidence.compare(first.values[key], values, first.columns["pid"])
            cells += [tables.percent(mean), *(_as_cells(differs) if differs else ("", ""))]
            entry[key] = {"mean": mean} | (differs._asdict() if differs else {})
        lines.append(tuple(cells))
        record.append(entry)
    columns = ((key.replace("_", " "), *DIFFERENCE) for key in first.values)
    header = ("run", *itertools.chain(*columns))
    return Table(header, lines), record


def _names(rows: Sequence[Sequence[Run]], split: str) -> list[str]:
    """The name of each row: of its runs, or their paths where others are called so."""
    names = [run.workdir.name for row in rows for run in row]

    def named(run: Run) -> str:
        several = names.count(run.workdir.name) > 1
        name = str(run.workdir) if several else run.workdir.name
        mark = seen.is_transductive(run, evaluator.split_names(split))
        return name + (" (transductive)" if mark else "")

    return [" + ".join(map(named, row)) for row in rows]


def _as_cells(found: confidence.Comparison) -> tuple[str, str]:
    """A difference with its interval, in percent, and the p value."""
    low, high = (f"{100 * end:+.2f}" for end in (found.low, found.high))
    return f"{100 * found.difference:+.2f} ({low} to {high})", f"{found.p_value:.3f}"
