"""--task=export: writes a run's network into one file, which needs no run, and its model card."""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from market_jax import build, calibration, files, history, programs, registry, runs, settings
from market_jax.data import decoding
from market_jax.errors import InputError
from market_jax.models.inputs import names
from market_jax.programs import lowest_cosine
from market_jax.report import model_card
from market_jax.runs import Run
from market_jax.tasks import attributes as attributes_
from market_jax.tasks import inputs, reid
from market_jax.typing import Columns, PyTree
from market_jax.weights import published, saving

FORMATS = ("safetensors", *programs.FORMATS)
LEAST = 0.999  # cosine of a drawn person's embeddings before and after
DRAWN = 16  # people that are compared
_MAY_DIFFER = {
    "model.backbone.cameras",
    "data.holdout_fraction",
    "data.val_fraction",
    "evaluate_every",
    "hooks.memory.slots",
    "report_every",
    "seed",
}
_BEGUN = "a run"  # stands for `model.pretrained` where the runs are compared themselves
_PERSONS = "head_identity"  # begins the names of layers that classify the training identities
_DECODERS = "no decoder of people's pictures is ever shipped"


def draw_people(count: int, image_size: tuple[int, int]) -> Columns:
    """Draws people who do not exist, the same ones at every call: columns "image" and "name".

    Args:
      count: the number of people, a picture of each.
      image_size: (height, width).
    """
    from data_prep.synthetic import cameras, people  # which imports TensorFlow

    rng, places, images = np.random.default_rng(0), list(cameras.CAMERAS.values()), []
    for number, outfit in enumerate(people.outfits(rng, count)):
        person = people.person(rng, outfit)
        picture = cameras.shoot(places[number % len(places)], person, rng)
        images.append(decoding.resize(decoding.decode(picture, "drawn"), tuple(image_size)))
    return {"image": np.stack(images), "name": np.array([f"drawn {i}" for i in range(count)])}


def run(
    run: Run,
    *,
    output: str | None = None,
    to: str = "safetensors",
    dtype: str | None = None,
    figures: str | None = None,
    naming: str | None = None,
    attributes: bool = False,
    flip: bool = False,
    int8: bool = False,
) -> str:
    """Writes the run's network into one file, and its model card beside it.

    Args:
      run: a trained run.
      output: The file, NAME.safetensors, whose name becomes the network's; NAME.md is the card.
        For other programs NAME.onnx, NAME.stablehlo, or a SavedModel's folder, without a card.
      to: The format: safetensors, for this package; onnx, saved_model (TensorFlow's) or stablehlo
        (JAX's) for other programs, which give it uint8 pictures [N, H, W, 3].
      dtype: float16 or float32, of the kernels in safetensors; by default float16, and float32
        where float16 changes the features.
      figures: A run of the same recipe that has held people out, whose evaluations go into the
        card; for a network that was trained on everybody. By default the run's own.
      naming: Write safetensors for another program, float32 and without a card: the backbone as it
        is called there (torchvision, timm, torchreid, ...), or with its BNNeck (fast-reid, BoT).
      attributes: Return "attributes/<label>", the probabilities of each label, beside "embedding",
        to other programs.
      flip: Return the mean with the mirror image to other programs.
      int8: Compute the ONNX in eight bits, by ranges seen on training pictures.

    Returns:
      The text for the terminal.

    Raises:
      InputError: the run is none that can be published, a file is there already, the features are
        not what they were, or `figures` is of another recipe.
    """
    registry.choose(to, dict.fromkeys(FORMATS), "value of --to")
    if to in programs.FORMATS:
        inputs.refuse(f"with --to={to}", dtype=dtype, figures=figures, naming=naming)
        people = draw_people(DRAWN, run.config.data.image_size)
        _check_parts(run, people)
        if not int8:
            _refuse_data(run)
        how = {"attributes": attributes, "flip": flip, "int8": int8}
        return programs.export(run, output, to, people, **how)
    inputs.refuse("with --to=safetensors", attributes=attributes, flip=flip, int8=int8)
    if naming is not None:
        inputs.refuse("with --naming", dtype=dtype, figures=figures)
        return _save(run, output, naming)
    return _publish(run, output, dtype, figures)


def _save(run: Run, output: str | None, naming: str) -> str:
    """Writes the file for another program, see `run`."""
    path = _check_output(output)
    _check_parts(run, draw_people(1, run.config.data.image_size))
    _refuse_data(run)
    file = build.backbone_file(run.config)
    namings, convert = (getattr(file, key, None) for key in ("TORCH_NAMES", "to_torch"))
    if not namings:
        raise InputError(f"{run.workdir}: its backbone has no names in other programs")
    count, left_out = saving.write(path, run.predict.variables, namings, naming, convert)
    return f"{count} tensors in {path}; left out: {', '.join(left_out) or 'nothing'}"


def _publish(run: Run, output: str | None, dtype: str | None, figures: str | None) -> str:
    """Writes the file for this package and its card, see `run`."""
    kinds = list(published.DTYPES)
    if dtype is not None:
        kinds = [registry.choose(dtype, {kind: kind for kind in kinds}, "value of --dtype")]
    path, people = _check_output(output), draw_people(DRAWN, run.config.data.image_size)
    _check_run(run, people)
    config = _config(run.extra["config"])
    judged = _of_same_recipe(run, figures) if figures else run
    variables, about = _without_persons(run, config), _about(run, path.stem, config, judged)
    content, kind, lowest = _write(run, path.name, variables, about, kinds, people)
    text = card(run, about, variables, kind, lowest, judged)
    files.write_atomically(path.with_suffix(".md"), text)
    files.write_atomically(path, content)
    text = (
        f"{len(content) / 1e6:.2f} MB in {path}, its card in {path.with_suffix('.md')}; kernels in "
        f"{kind}, lowest cosine to the run's embeddings of {DRAWN} drawn people {lowest:.5f}"
    )
    if len(content) > published.MOST_BYTES:
        text += f"\nIt is too large for the package {published.PACKAGE}, which takes 25 MB a file."
    return text


def _check_output(output: str | None) -> Path:
    """The file that is written, whose place must be free."""
    if not output or Path(output).suffix != published.SUFFIX:
        raise InputError(f"--output is {output!r}; it must name the file: NAME.safetensors")
    path = Path(output).expanduser()
    for taken in (path, path.with_suffix(".md")):
        if taken.exists():
            raise InputError(f"{taken}: is there already; remove it, or name another --output")
    return path


def _check_run(run: Run, people: Columns) -> None:
    """Refuses what cannot or must not be published."""
    if run.predict is None or run.is_published:
        raise InputError("--task=export needs a trained run: --workdir")
    _refuse_data(run)
    for key, name in settings.outside_names(run.extra["config"]).items():
        raise InputError(
            f"{run.workdir}: {key} is {name!r}, code outside market_jax, without which the file "
            "could not be used"
        )
    _check_parts(run, people)


def _refuse_data(run: Run) -> None:
    """Refuses flags that name a data set, where none is looked at."""
    own = {"name": "", "dir": ""} if run.is_published else run.extra["config"]["data"]
    keys = ("dir", "name") if run.is_published else ("name", "dir")  # the folder alone names it
    given = {f"data_{key}": run.config.data[key] != own[key] for key in keys}
    inputs.refuse("with --task=export, which judges nothing", **given)


def _check_parts(run: Run, people: Columns) -> None:
    """Refuses a network that remakes its pictures, or has no embedding."""
    if run.predict is None:
        raise InputError("--task=export needs a trained run: --workdir")
    outputs = run.predict.output_names(people)
    decoding_parts = [name for name in run.predict.variables["params"] if "decod" in name]
    if "reconstruction" in outputs or decoding_parts:
        raise InputError(f"{run.workdir}: the network remakes its pictures; {_DECODERS}")
    registry.choose("embedding", dict.fromkeys(outputs), "output of the model")


def _config(saved: dict[str, Any]) -> dict[str, Any]:
    """A run's config without folders of this machine or who follows it, for one identity."""
    config = json.loads(json.dumps(saved))
    config.pop("writers", None)
    config["data"]["dir"], config["convolution"] = "", "auto"
    model = config["model"]
    if not str(model.get("pretrained", "")).startswith("hf:"):
        model |= {"pretrained": Path(model["pretrained"]).name} if model.get("pretrained") else {}
    if model.get("identities"):
        model["identities"] = 1
    return config


def _without_persons(run: Run, config: dict[str, Any]) -> PyTree:
    """The variables; a layer that classifies the training identities becomes one column of zeros.

    A label may have a head of such a name, too; its shape does not depend on the identities.
    """
    _, template = runs.make_template(settings.from_json(config))

    def cut(where, leaf, wanted):
        classifies = any(str(key.key).startswith(_PERSONS) for key in where)
        changed = classifies and leaf.shape != wanted.shape
        return np.zeros(wanted.shape, wanted.dtype) if changed else leaf

    return jax.tree_util.tree_map_with_path(cut, dict(run.predict.variables), dict(template))


def _of_same_recipe(run: Run, workdir: str) -> Run:
    """The last network of another run, whose config may differ in whom it has held out alone.

    A run that it began with may be another one, too, if it is of the same recipe.
    """
    other = runs.restore(workdir, "latest", cache=False)
    pairs = zip(_recipes(run.extra), _recipes(other.extra), strict=False)
    for depth, (first, second) in enumerate(pairs):
        whose = "its" if not depth else "of what it began with, the"
        for key in sorted((first.keys() | second.keys()) - _MAY_DIFFER):
            if first.get(key) != second.get(key):
                raise InputError(
                    f"--figures={workdir}: {whose} {key} is {second.get(key)!r}, the run's "
                    f"{first.get(key)!r}; figures must be of the same recipe"
                )
    return other


def _recipes(extra: dict[str, Any]) -> list[dict[str, Any]]:
    """The flat config of a run, and those of the networks that it began with."""
    saved = [extra["config"], *(before.config for before in history.beginnings_of(extra))]
    flat = [settings.flatten(_config(each)) for each in saved]
    return [each | {"model.pretrained": _BEGUN} for each in flat[:-1]] + flat[-1:]


def _about(run: Run, name: str, config: dict[str, Any], judged: Run) -> dict[str, Any]:
    """The file's metadata, see `published.FIELDS`; `judged` is the run whose figures it has."""
    alone = not names(run.predict.model)  # else it is not judged as programs use it
    calibrated = map(calibration.of_record, evaluations_of(judged) if alone else ())
    return {
        "name": name,
        "config": config,
        "labels": run.extra["labels"],
        "label_counts": run.extra["label_counts"],
        "trained_on": history.trained_on(run.extra),
        "clustered": run.extra.get("clustered", []),
        "same_person": next((found._asdict() for found in calibrated if found), {}),
        "commit": _commit(),
    }


def _commit() -> str:
    """The commit of the code that runs, "-dirty" behind it if files differ; or "unknown"."""
    root = Path(__file__).parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found if (root / ".git").exists() else "unknown"


def _write(
    run: Run, name: str, variables: PyTree, about: dict, kinds: list[str], people: Columns
) -> tuple[bytes, str, float]:
    """The bytes of the file, the dtype of its kernels, and how much it is like the run."""
    before = run.predict(people, ["embedding"])["embedding"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        for kind in kinds:
            published.write(path, variables, about, kind)
            after = runs.published(path, cache=False).predict(people, ["embedding"])["embedding"]
            lowest = lowest_cosine(before, after)
            if lowest >= LEAST:
                return path.read_bytes(), kind, lowest
    raise InputError(
        f"{run.workdir}: in {kind} the network's embeddings of {DRAWN} drawn people are not what "
        f"they were: their lowest cosine is {lowest:.5f}; it must be {LEAST} or more"
    )


def card(
    run: Run, about: dict[str, Any], variables: PyTree, dtype: str, cosine: float, judged: Run
) -> str:
    """The text of the model card, with the figures of the run's evaluations.

    Args:
      run: the run that the network is from.
      about: the file's metadata, see `published.FIELDS`.
      variables: the file's.
      dtype: that of its kernels.
      cosine: the lowest one between embeddings of the run and of the file.
      judged: the run whose figures it shows: the same, or another by the same recipe.
    """
    size = tuple(about["config"]["data"]["image_size"])
    one = {"image": np.zeros((1, *size, 3), np.uint8), "name": np.array(["none"])}
    return model_card.model_card(
        about,
        evaluations_of(judged),
        settings.flatten(about["config"]),
        size=run.predict(one, ["embedding"])["embedding"].shape[1],
        parameters=f"{sum(np.size(leaf) for leaf in jax.tree.leaves(variables)):,}",
        dtype=dtype,
        cosine=cosine,
        drawn=DRAWN,
        others=0 if judged is run else sum(len(each.pids["train"]) for each in judged.divisions),
    )


def evaluations_of(run: Run) -> list[dict[str, Any]]:
    """What evaluations of a run's checkpoint have written: of attributes, then of persons.

    Args:
      run: the run.
    """
    paths = [run.evaluation / file for file in (attributes_.FILE, reid.FILE)]
    found = [files.read_json(path) for path in paths if path.exists()]
    return [each for each in found if each.get("checkpoint") == run.step]
