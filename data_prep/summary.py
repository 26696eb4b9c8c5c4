"""A prepared data set described in text."""

from collections import Counter
from collections.abc import Mapping, Sequence

from market_jax.data import attributes, filenames
from market_jax.data.folders import Report

_SHOWN = 10  # messages of each kind


def _split_line(split: str, records: list[dict]) -> str:
    pids = [r["pid"] for r in records]
    persons = {pid for pid in pids if pid > 0}
    cameras = {r["camid"] for r in records if r["camid"] > 0}
    marks = {"junk": filenames.JUNK, "distractors": filenames.DISTRACTOR}
    counts = [pids.count(mark) for mark in marks.values()]
    return f"{split:8}{len(pids):>8}{len(persons):>12}{len(cameras):>9}" + "".join(
        f"{count:>13}" for count in counts
    )


def _label_line(name: str, classes: Sequence[str], records: list[dict]) -> str:
    counts = Counter(r["attributes"][name] for r in records)
    cells = [f"{label} {counts[i]}" for i, label in enumerate(classes)]
    if counts[attributes.UNKNOWN]:
        cells.append(f"(unlabelled {counts[attributes.UNKNOWN]})")
    return f"{name:12}{', '.join(cells)}"


def _listing(title: str, messages: list[str]) -> list[str]:
    more = [f"  ... and {len(messages) - _SHOWN} more"] if len(messages) > _SHOWN else []
    shown = [f"  {message}" for message in messages[:_SHOWN]]
    return [f"{title}: {len(messages)}", *shown, *more]


def table(
    records: dict[str, list[dict]],
    report: Report,
    labels: Mapping[str, Sequence[str]] = attributes.CLASSES,
) -> str:
    """A text about each split, the counts of labels, and the files that were left out.

    Args:
      records: the records of each split, as `prepare` returns them.
      report: the files and rows that were left out.
      labels: label -> class names.
    """
    everything = [record for rows in records.values() for record in rows]
    header = f"{'split':8}{'images':>8}{'identities':>12}{'cameras':>9}"
    lines = [header + f"{'junk':>13}{'distractors':>13}"]
    lines += [_split_line(split, rows) for split, rows in records.items()]
    lines += ["", "images of each class"]
    lines += [_label_line(name, classes, everything) for name, classes in labels.items()]
    lines += ["", *_listing("skipped as bad", report.skipped)]
    lines += _listing("dropped (stray copies, no images)", report.dropped)
    return "\n".join(lines)
