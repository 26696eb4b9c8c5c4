"""Model cards: what a published network is, how good, and what it must not be used for."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from market_jax.report import tables

CARD = """\
---
{front_matter}
---

# {name}

A network that describes pictures of pedestrians, each cut out of a frame: an embedding for
re-identification{attributes}. It belongs to `market_jax`, which builds it from this file alone:

```python
import market_jax

model = market_jax.load("{name}")  # or the path of {name}.safetensors, or hf:OWNER/NAME/FILE
features = model.embed("folder/of/crops")
```

| | |
|---|---|
| network | {network} |
| pictures | {height}x{width}, height x width; others are resized |
| embedding | {size} numbers |
| file | {parameters} numbers, kernels in {dtype} |
| checked | lowest cosine to the run's embeddings of {drawn} drawn people: {cosine:.5f} |
| trained on | {trained} |
| learned from without labels | {clustered} |
| code | commit {commit} |

## Figures

{figures}
{others}
Figures of different data sets, splits and protocols are not comparable. Where a checkpoint was
chosen by the split "val", its people are new to the network, but not to that choice.

## What it is for

Research and teaching on person re-identification and pedestrian attributes, on pictures whose
people have agreed, or whose use is permitted. Data sets of people such as Market-1501 are for
research only, and so is what was trained on them.

## What it must not be used for

- identifying or tracking people who have not consented;
- surveillance, by whomever;
- decisions about people, such as those that depend on their age, gender or belongings.

The attributes are what annotators saw in pictures of one place; age and gender are their guesses.
The network errs, and more often about people who are rare in its training data.

## What is not in the file

No pictures, no decoder of pictures, and nothing of the layer that tells the training identities
apart: one column of zeros stands in its place, so that the network is built as it was.

## Recipe

```
{recipe}
```
"""

DRAWN = "synthetic"  # the data set whose people are drawn
OTHERS = """
They are of another network by the same recipe, which was trained on {identities} identities and
judged on others. This one has learned from all of them, so that nobody is left to judge it on.
"""
TRANSDUCTIVE = """
TRANSDUCTIVE: the network has learned from the judged pictures, without their labels; such a figure
does not say how good it is on other pictures.
"""
CAUTION = """
CAUTION: the network was trained on people who are judged there; such a figure says nothing about
people who are new to it.
"""
CAMERAS = """
They are of pictures whose cameras it was told. `embed` gives a picture the mean of all cameras.
"""


def model_card(
    about: Mapping[str, Any],
    evaluations: Sequence[Mapping[str, Any]],
    recipe: Mapping[str, Any],
    *,
    others: int = 0,
    **shown: Any,
) -> str:
    """The text of a model card, in Markdown.

    Args:
      about: the metadata of the network's file, see `weights.published.FIELDS`.
      evaluations: what `--task=attributes` and `--task=reid` have written of this network.
      recipe: setting -> value, of the config that it was trained with.
      others: the number of identities that the evaluated network was trained on, where it is
        another one by the same recipe; 0 where it is this one.
      **shown: "size" of the embedding; number of "parameters"; "dtype" of kernels; number of
        "drawn" people, and the lowest "cosine" between their embeddings by the run and the file.
    """
    config = about["config"]
    labels = config["model"].get("classes", about["labels"])
    height, width = config["data"]["image_size"]
    cameras = config["model"].get("backbone", {}).get("cameras")
    remarks = [
        OTHERS.format(identities=others) if others else "",
        TRANSDUCTIVE if any(found.get("transductive") for found in evaluations) else "",
        CAUTION if any("CAUTION" in judged(found) for found in evaluations) else "",
        CAMERAS if cameras else "",
    ]
    return CARD.format(
        front_matter="\n".join(front_matter(about, evaluations)),
        name=about["name"],
        attributes=f", and the attributes {', '.join(labels)}" if labels else "",
        network=_network(config["model"]),
        height=height,
        width=width,
        trained="; ".join(map(_trained_on, about["trained_on"])) or "nobody",
        clustered="; ".join(f"{names}, split {split}" for names, split in about["clustered"])
        or "nothing",
        commit=about["commit"],
        figures="\n".join(figures(evaluations)),
        others="".join(remarks),
        recipe="\n".join(f"{key} = {json.dumps(value)}" for key, value in recipe.items()),
        **shown,
    )


def front_matter(
    about: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """The lines that the Hugging Face Hub reads, each YAML whose value is written as JSON.

    Args:
      about: see `model_card`.
      evaluations: see `model_card`.
    """
    results = []
    for found in evaluations:
        metrics = [
            {"type": what.split(",")[0], "name": what, "value": round(100 * value, 2)}
            for what, value, _ in _found(found)
            if math.isfinite(value)
        ]
        if metrics:
            data = {"name": judged(found), "type": found.get("data", "folder")}
            task = {"type": "image-feature-extraction", "name": "person re-identification"}
            task |= {"name": "pedestrian attribute recognition"} if "mean" in found else {}
            results.append({"task": task, "dataset": data, "metrics": metrics})
    names = {entry["name"] for entry in about["trained_on"]}
    names.update(name for joined, _ in about["clustered"] for name in joined.split(","))
    fields = {
        "library_name": "market_jax",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["person-re-identification", "pedestrian-attribute-recognition", "jax", "flax"],
        **({"license": "other", "license_name": "research-only"} if names - {DRAWN} else {}),
        **({"model-index": [{"name": about["name"], "results": results}]} if results else {}),
    }
    for key, value in fields.items():
        yield f"{key}: {json.dumps(value, ensure_ascii=False)}"


def _network(model: Mapping[str, Any]) -> str:
    """A network in words: "classifier on resnet, depth 18"."""
    backbone = dict(model.get("backbone") or {})
    words = [f"`{key}={value}`" for key, value in backbone.items() if key != "name"]
    on = f" on `{backbone['name']}` ({', '.join(words)})" if backbone else ""
    return f"`{model['name']}`{on}"


def _trained_on(entry: Mapping[str, Any]) -> str:
    """A data set in words."""
    others = {side: len(pids) for side, pids in entry["pids"].items() if side != "train" and pids}
    held = ", ".join(f"{count} ({side})" for side, count in others.items()) or "nobody"
    use = "drawn people" if entry["name"] == DRAWN else "for research only"
    return f"{entry['name']} ({use}): {entry['identities']} identities; held out: {held}"


def figures(evaluations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The lines of a table with what evaluations have found.

    Args:
      evaluations: see `model_card`.
    """
    rows = [
        f"| {what} | {judged(found)} | {tables.percent(value)}{remark} |"
        for found in evaluations
        for what, value, remark in _found(found)
    ]
    if not rows:
        yield "None: this checkpoint was not evaluated before it was exported."
        return
    yield from ("| | judged on | percent |", "|---|---|---|")
    yield from rows


def _found(found: Mapping[str, Any]) -> Iterator[tuple[str, float, str]]:
    """(what, value, what is added to it) of an evaluation."""
    return _of_attributes(found) if "mean" in found else _of_reid(found)


def judged(found: Mapping[str, Any]) -> str:
    """What an evaluation has judged, in words; of a folder the name without those above it.

    Args:
      found: what the evaluation has written.
    """
    split = found["judged"].startswith("split ")
    where = found["judged"] if split else f"folder {Path(found['judged']).name}"
    data = f"{found.get('data', 'a data set that was not noted')}, " if split else ""
    flip = ", with mirror images" if found.get("flip") else ""
    near = found.get("neighbours")
    near = f", with {near} neighbours" if near else ""
    people = f"{found['images']} images of {found['identities']} people"
    mark = "TRANSDUCTIVE, " if found.get("transductive") else ""
    mark += "CAUTION, " if found.get("related") or found.get("identities_trained_on") else ""
    return f"{mark}{data}{where}{tables.narrowed(found)}: {people}{flip}{near}"


def _of_attributes(found: Mapping[str, Any]) -> Iterator[tuple[str, float, str]]:
    """What `_found` gives, of `attributes.json`."""
    mean = found["mean"]
    for key in (key for key in mean if key.startswith("balanced")):  # rare classes count here
        count = key.split("_")[-1]
        yield f"balanced accuracy, mean of {count} attributes", mean[key], ""
    for key in (key for key in mean if key.startswith("accuracy") and "binary" not in key):
        count, majority = key.split("_")[1], mean[key.replace("accuracy", "majority")]
        constant = f"; a constant answer {tables.percent(majority)}"
        yield f"accuracy, mean of {count} attributes", mean[key], constant


def _of_reid(found: Mapping[str, Any]) -> Iterator[tuple[str, float, str]]:
    """What `_found` gives, of `reid.json`."""
    for retrieval, by_protocol in found.items():
        if not retrieval.startswith("ranking") or found["features"] != "model":
            continue
        for protocol, row in by_protocol.items():
            if protocol == "course_with_self":  # in which every query finds itself
                continue
            for key, name in (("mAP", "mAP"), ("rank1", "rank 1"), ("mINP", "mINP")):
                bounds = row.get(f"{key}_interval")
                within = f" ({tables.interval(bounds)})" if f"{key}_interval" in row else ""
                yield f"{name}, {retrieval}, protocol {protocol}", row[key], within
