"""--task=compare: how runs differ on the same queries, with paired intervals over identities."""

import json
from collections.abc import Sequence

import numpy as np

from market_jax import registry, seen
from market_jax.errors import InputError
from market_jax.evaluators import reid as evaluator
from market_jax.evaluators.protocols import NAMES, Protocol
from market_jax.evaluators.reid import Retrieval
from market_jax.evaluators.result import Result, Table
from market_jax.files import write_atomically
from market_jax.metrics import confidence
from market_jax.report import tables
from market_jax.runs import Run
from market_jax.tasks import inputs

FILE = "compare.json"
METRICS = ("mAP", "rank 1", "mINP")
HEADER = ("run", *(cell for name in METRICS for cell in (name, "difference, 95 %", "p")))


def judge(run: Run, split: str, protocol: str, *, flip: bool) -> tuple[dict, Protocol]:
    """Judges a run by plain ranking: metric -> a value of each query [Q], NaN without a match.

    Args:
      run: the run.
      split: the split that is judged.
      protocol: the name of the protocol.
      flip: average the features of an image and its mirror image.

    Returns:
      The values, and the protocol with its queries.
    """
    sides = evaluator.read_features(run.predict, run.dataset(), split, flip=flip)
    made = evaluator.make_protocols(*sides, (protocol,))[protocol]
    found = Retrieval().rank(made)
    hit = np.where(found.first_rank > 0, found.first_rank == 1, np.nan)
    values = (found.average_precision, hit, found.inverse_penalty)
    return dict(zip(METRICS, values, strict=True)), made


def _judge_seeds(group: Sequence[Run], split: str, protocol: str, *, flip: bool):
    """The mean of several runs' values for each query, and the queries' names and pids."""
    judged = [judge(run, split, protocol, flip=flip) for run in group]
    names = [made.query["name"].tolist() for _, made in judged]
    for run, found in zip(group, names, strict=True):
        if found != names[0]:
            raise InputError(
                f"{run.workdir}: {_others(split)} than {group[0].workdir} is judged on"
            )
    means = {key: np.mean([values[key] for values, _ in judged], axis=0) for key in METRICS}
    return means, names[0], judged[0][1].query["pid"]


def _others(split: str) -> str:
    return f"its split {split} has other pictures"


def run(
    rows: Sequence[Sequence[Run]],
    *,
    split: str = "val",
    protocol: str = "market",
    flip: bool = False,
) -> str:
    """Compares runs on the same queries: each with the first, paired, over identities.

    The intervals are of the bootstrap over identities, the p values of a test that swaps the two
    runs for each identity at random.

    Args:
      rows: rows of runs; those of a row are the seeds of one network, whose values are averaged.
        Each row is compared with the first.
      split: What is judged: val, holdout, train, or test with the data set's own queries.
      protocol: market, course or course_with_self.
      flip: Average the features of an image and its mirror image.

    Returns:
      The text for the terminal.
    """
    registry.choose(protocol, dict.fromkeys(NAMES), "protocol")
    run = rows[0][0]
    judged = [_judge_seeds(row, split, protocol, flip=flip) for row in rows]
    (first, names, pids), *_ = judged
    lines, record = [], []
    names_of_runs = [each.workdir.name for row in rows for each in row]
    alike = {name for name in names_of_runs if names_of_runs.count(name) > 1}
    for row, (values, found, _) in zip(rows, judged, strict=True):
        if found != names:
            raise InputError(f"{row[0].workdir}: {_others(split)} than {run.workdir} is judged on")
        label = " + ".join(_name(each, split, alike) for each in row)
        cells, entry = [label], {"run": label}
        for key in METRICS:
            mean = float(np.nanmean(values[key]))
            differs = None if row is rows[0] else confidence.compare(first[key], values[key], pids)
            cells += [tables.percent(mean), *(_as_cells(differs) if differs else ("", ""))]
            entry[key] = {"mean": mean} | (differs._asdict() if differs else {})
        lines.append(tuple(cells))
        record.append(entry)
    caution, known = seen.known_people(run, [{"pid": pids}], split=split)
    path = run.evaluation / FILE
    about = {"split": split, "protocol": protocol, "flip": flip, "queries": len(names)}
    write_atomically(path, json.dumps(about | known | {"runs": record}, indent=2) + "\n")
    title = f"split {split}, protocol {protocol}: {len(names)} queries of {len(np.unique(pids))} "
    result = Result(title=title + "identities; percent", tables=(Table(HEADER, lines),))
    return inputs.as_text(result, f"written to {path}", first=caution)


def _name(run: Run, split: str, alike: set[str]) -> str:
    """The name of a run, or its path where others are called so; marked if it is transductive."""
    name = str(run.workdir) if run.workdir.name in alike else run.workdir.name
    mark = seen.is_transductive(run, evaluator.split_names(split))
    return name + (" (transductive)" if mark else "")


def _as_cells(found: confidence.Comparison) -> tuple[str, str]:
    """A difference with its interval, in percent, and the p value."""
    low, high = (f"{100 * end:+.2f}" for end in (found.low, found.high))
    return f"{100 * found.difference:+.2f} ({low} to {high})", f"{found.p_value:.3f}"
