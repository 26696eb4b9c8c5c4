"""--task=compare: how runs differ on the same pictures, with paired intervals over identities."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from market_jax import registry, seen
from market_jax.data import columns as columns_
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
METRICS = {  # --by -> a column each
    "reid": ("mAP", "rank 1", "mINP"),
    "attributes": ("accuracy", "accuracy_binary", "balanced_accuracy"),
}
DIFFERENCE = ("difference, 95 %", "p")


def judge_persons(run: Run, split: str, protocol: str, *, flip: bool) -> Scores:
    """Judges a run by plain ranking.

    Args:
      run: the run.
      split: the split that is judged.
      protocol: the name of the protocol.
      flip: average the features of an image and its mirror image.
    """
    sides = evaluator.read_features(run.predict, inputs.data_of(run), split, flip=flip)
    made = evaluator.make_protocols(*sides, (protocol,))[protocol]
    found = Retrieval().rank(made)
    hit = np.where(found.first_rank > 0, found.first_rank == 1, np.nan)
    values = {"mAP": found.average_precision, "rank 1": hit, "mINP": found.inverse_penalty}
    return _describe(run, split, made.query, made.gallery, values)


def judge_attributes(run: Run, split: str, labels: Sequence[str], *, flip: bool) -> Scores:
    """Judges the labels that a run predicts.

    Args:
      run: the run.
      split: the split that is judged.
      labels: names of the labels.
      flip: average the logits of an image and its mirror image.
    """
    columns = inputs.data_of(run).open(split)
    predicted, _ = attributes.classify(run.predict, columns, labels, flip=flip)
    classes = {name: run.schema.labels[name] for name in labels}
    values = metrics.per_image(columns, predicted, classes)
    return _describe(run, split, columns, columns, values)


def _describe(
    run: Run, split: str, rows: Columns, gallery: Columns, values: Mapping[str, np.ndarray]
) -> Scores:
    """The scores of a run, with what tells whether others are of the same pictures and labels."""
    caution, known = seen.known_people(run, [rows], split=split)
    about = {"checkpoint": run.step} | known | ({"caution": caution} if caution else {})
    about["pictures"] = [columns_.fingerprint(rows), columns_.fingerprint(gallery)]
    return Scores(run.workdir, run.workdir.name, about, rows["name"], rows["pid"], values)


def _check_files(members: Sequence[Run | Scores], about: Mapping[str, Any]) -> None:
    """Refuses files of scores that were made with other flags, before a run is judged."""
    metrics_ = METRICS[about["by"]]
    for found in members:
        if isinstance(found, Run):
            continue
        for key, asked in about.items():
            if (made := found.about.get(key)) != asked:
                raise InputError(f"{found.path}: its {key!r} is {made!r}; compared is {asked!r}")
        if set(found.values) != set(metrics_):
            raise InputError(f"{found.path}: its values must be {', '.join(metrics_)}")
        if not found.about.get("pictures"):
            raise InputError(f"{found.path}: does not say which pictures it is of ('pictures')")
        if not _is_name(found.about.get("caution", "")):
            raise InputError(f"{found.path}: its 'caution' is no text")
        names = found.about.get("labels")
        if about["by"] == "attributes" and not (
            isinstance(names, list) and all(map(_is_name, names))
        ):
            raise InputError(f"{found.path}: its 'labels' are {names!r}; they must be names")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _shared_labels(members: Sequence[Run | Scores], split: str) -> list[str]:
    """The labels of the data set that all runs predict; files of scores have theirs."""
    found = []
    for member in members:
        if isinstance(member, Scores):
            found.append(list(member.about["labels"]))
            continue
        columns = inputs.data_of(member).open(split)
        known = [name for name in member.schema.labels if name in columns]
        found.append(attributes.outputs_to_judge(member.predict, columns, known))
    shared = [name for name in found[0] if all(name in names for names in found)]
    if not shared:
        raise InputError(f"no label of the split {split} is predicted by all of the runs")
    for member, names in zip(members, found, strict=True):
        if isinstance(member, Scores) and set(names) != set(shared):
            raise InputError(
                f"{member.path}: its values are means over {', '.join(names)}; the labels that all "
                f"of the runs predict are {', '.join(shared)}"
            )
    return shared


def _check_alike(first: Scores, other: Scores, split: str) -> None:
    """Refuses scores of other pictures, or of the same with other labels."""
    alike = [(first.names, other.names), (first.pids, other.pids)]
    alike += [(np.isnan(first.values[key]), np.isnan(row)) for key, row in other.values.items()]
    same = first.about.get("pictures") == other.about.get("pictures")
    if not same or not all(np.array_equal(*pair) for pair in alike):
        raise InputError(
            f"{other.path}: its split {split} has other pictures than {first.path} is judged on"
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
    folder, and that file can stand in its place; the record lies in the folder of the first run.

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
    registry.choose(by, METRICS, "--by")
    registry.choose(protocol, dict.fromkeys(NAMES), "protocol")
    members = [each for row in rows for each in row]
    about = {"by": by, "split": split, "flip": flip}
    if by == "reid":
        about["protocol"], what, unit = protocol, f"protocol {protocol}", "queries"
    else:
        inputs.refuse("with --by=attributes", protocol=protocol != "market")
    _check_files(members, about)
    if by == "attributes":
        about["labels"] = _shared_labels(members, split)
        what, unit = f"mean of {len(about['labels'])} attributes", "images"
    seeds = [[_scores_of(each, about) for each in row] for row in rows]
    for each in itertools.chain(*seeds):
        _check_alike(seeds[0][0], each, split)
    table, record = _differences(_names(seeds), [_mean(row) for row in seeds])
    pids = seeds[0][0].pids
    cautions = [_cautions(row) for row in seeds]
    for entry, said in zip(record, cautions, strict=True):
        entry |= {"cautions": said} if said else {}
    marked = {"transductive": True} if any(map(_is_marked, seeds[0])) else {}
    entries = dict(seeds[0][0].about) | marked | {unit: len(pids), "runs": record}
    title = f"split {split}, {what}: {len(pids)} {unit} of {len(np.unique(pids))} identities"
    result = Result(title=f"{title}; percent", tables=(table,), record=entries)
    others = [
        f"{entry['run']}: {each}"
        for entry, said in zip(record[1:], cautions[1:], strict=True)
        for each in said
        if each not in cautions[0]
    ]
    first = "\n".join(filter(None, [" ".join(cautions[0]), *others]))
    return inputs.as_text(result, *_keep(members, result), first=first)


def _cautions(row: Sequence[Scores]) -> list[str]:
    """What is said of whom the networks of a row have seen; seeds mostly say the same."""
    return list(dict.fromkeys(e.about["caution"] for e in row if "caution" in e.about))


def _scores_of(member: Run | Scores, about: Mapping[str, Any]) -> Scores:
    """The scores of a run, which are also written into its folder; a file's are there already."""
    if isinstance(member, Scores):
        return member
    split, flip = about["split"], about["flip"]
    if about["by"] == "attributes":
        found = judge_attributes(member, split, about["labels"], flip=flip)
    else:
        found = judge_persons(member, split, about["protocol"], flip=flip)
    found = found._replace(about={**about, **found.about})
    words = ["scores", about["by"], split, about.get("protocol"), "flip" if flip else None]
    scores.write(member.evaluation / ("-".join(filter(None, words)) + scores.ENDING), found)
    return found


def _keep(members: Sequence[Run | Scores], result: Result) -> list[str]:
    """Writes the record into the folder of the first run, if there is one, and says so."""
    first = next((each for each in members if isinstance(each, Run)), None)
    if first is None:
        return []
    path = first.evaluation / FILE
    write_atomically(path, json.dumps(dict(result.record), indent=2) + "\n")
    return [f"written to {path}"]


def _differences(names: Sequence[str], judged: Sequence[Scores]) -> tuple[Table, list[dict]]:
    """How each row differs from the first: as a table, and as entries for the record."""
    first, lines, record = judged[0], [], []
    for name, row in zip(names, judged, strict=True):
        cells, entry = [name], {"run": name}
        for key in first.values:
            values = row.values[key]
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
    names = [each.run for row in rows for each in row]

    def named(each: Scores) -> str:
        name = str(each.path) if names.count(each.run) > 1 else each.run
        knows = each.about.get("related") or each.about.get("identities_trained_on")
        name += " (transductive)" if _is_marked(each) else ""
        return name + (" (trained on them)" if knows else "")

    return [" + ".join(map(named, row)) for row in rows]


def _is_marked(each: Scores) -> bool:
    """Whether a network has learned from the judged pictures without their labels."""
    return bool(each.about.get("transductive"))


def _as_cells(found: confidence.Comparison) -> tuple[str, str]:
    """A difference with its interval, in percent, and the p value."""
    low, high = (f"{100 * end:+.2f}" for end in (found.low, found.high))
    p_value = f"{found.p_value:.3f}" if found.p_value >= 0.001 else "< 0.001"
    return f"{100 * found.difference:+.2f} ({low} to {high})", p_value
