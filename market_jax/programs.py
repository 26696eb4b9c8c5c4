"""A run's network as a file for other programs: ONNX, TensorFlow's SavedModel, or StableHLO."""

import functools
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from market_jax import build, history, registry
from market_jax.errors import InputError
from market_jax.export import checking, functions, onnx, quantize, saved_model, stablehlo
from market_jax.inference import Predictor
from market_jax.kernels import convolution
from market_jax.models import norms
from market_jax.runs import Run
from market_jax.typing import Columns

FORMATS = {"onnx": onnx, "saved_model": saved_model, "stablehlo": stablehlo}
SEEN = 128  # pictures by which a network is quantised
LEAST = 0.95  # cosine of a person's embeddings in eight bits and before


def export(
    run: Run,
    output: str | None,
    to: str,
    people: Columns,
    *,
    attributes: bool = False,
    flip: bool = False,
    int8: bool = False,
) -> str:
    """Writes a run's network into a file for other programs, compared with the run.

    Args:
      run: the run.
      output: the file, or the folder of a SavedModel.
      to: a name in `FORMATS`.
      people: columns of the images by which file and run are compared.
      attributes: return each label's probabilities, too.
      flip: return the mean with the mirror images' outputs.
      int8: compute in eight bits, by ranges seen on the run's training pictures.

    Returns:
      The text for the terminal.

    Raises:
      InputError: as for `write`; the file is there already, or it is named otherwise.
    """
    suffix = FORMATS[to].SUFFIX
    if not output or Path(output).suffix != suffix:
        raise InputError(f"--output is {output!r}; it must name the file: NAME{suffix}")
    path = Path(output).expanduser()
    if path.exists():
        raise InputError(f"{path}: is there already; remove it, or name another --output")
    if int8 and to != "onnx":
        raise InputError(f"--int8 does nothing with --to={to}; it is for --to=onnx")
    pictures = _training_pictures(run) if int8 else None
    settings = {"attributes": attributes, "flip": flip, "calibration": pictures}
    agreement = write(run, path, to, people, **settings)
    parts = [part for part in (path, *path.rglob("*")) if part.is_file()]
    text = f"{sum(part.stat().st_size for part in parts) / 1e6:.2f} MB in {path}; "
    if int8:
        return f"{text}lowest cosine to the run's embeddings of drawn people {agreement:.5f}"
    return f"{text}its outputs differ from the run's by {agreement:.1e} of their largest number"


def _training_pictures(run: Run) -> np.ndarray:
    """Some of the pictures that the run was trained on, uint8 [M, H, W, 3]."""
    if not run.config.data.name:
        raise InputError(
            "--int8 looks at training pictures, and a published network brings none; name a data "
            "set that has some: --data_dir=DIR [--data_name=NAME]"
        )
    images = run.dataset().open("train")["image"]
    return images[np.unique(np.linspace(0, len(images) - 1, SEEN).astype(int))]


def labels_of(run: Run, people: Columns) -> tuple[str, ...]:
    """The labels that a run's network predicts.

    Args:
      run: the run.
      people: columns of images of its size.

    Raises:
      InputError: it predicts none.
    """
    known = run.predict.output_names(people)
    labels = tuple(label for label in run.extra["labels"] if label in known)
    if not labels:
        raise InputError(f"{run.workdir}: the network predicts no attribute, so no --attributes")
    return labels


def make_function(run: Run, labels: Sequence[str], *, flip: bool) -> functions.Function:
    """The function of a run's network, in float32, each BatchNorm in its convolution.

    Args:
      run: the run.
      labels: of which probabilities are returned.
      flip: the mean with the mirror images' outputs.

    Raises:
      InputError: a weight is not finite.
    """
    for where, leaf in jax.tree_util.tree_leaves_with_path(run.predict.variables):
        if not np.isfinite(leaf).all():
            raise InputError(f"{run.workdir}: {jax.tree_util.keystr(where)} is not finite")
    apply = build.model(run.config.model, "float32").apply
    size = tuple(run.config.data.image_size)
    with convolution.using("lax"):
        fold = jax.jit(functools.partial(norms.fold, apply, image_size=size))
        variables = {**run.predict.variables, **fold(run.predict.variables)}
    return functions.make_function(apply, variables, labels=labels, flip=flip)


def in_float32(run: Run) -> Run:
    """The run with its network computed in float32, as files for other programs compute it.

    Args:
      run: the run.
    """
    if run.config.dtype == "float32":
        return run
    model = build.model(run.config.model, "float32")
    predict = Predictor(build.apply(run.config, model), run.predict.variables, model=model)
    return run._replace(predict=predict)


def write(
    run: Run,
    path: Path,
    to: str,
    people: Columns,
    *,
    attributes: bool = False,
    flip: bool = False,
    calibration: np.ndarray | None = None,
) -> float:
    """Writes a run's network into a file that returns what the run does, or writes nothing.

    File and run are compared in float32, also where the run was trained in bfloat16.

    Args:
      run: the run.
      path: the file, or the folder of a SavedModel.
      to: a name in `FORMATS`.
      people: columns of the images by which file and run are compared.
      attributes: return each label's probabilities, too.
      flip: return the mean with the mirror images' outputs.
      calibration: uint8 [M, H, W, 3], images by which ONNX is quantised to eight bits; None is not.

    Returns:
      The largest difference to the run as a share of an output's largest number; with
      `calibration` the lowest cosine of the embeddings.

    Raises:
      InputError: a weight is not finite, the network cannot be written in this format, or the file
        does not return what the run does.
    """
    module = registry.choose(to, FORMATS, "value of --to")
    labels = labels_of(run, people) if attributes else ()
    names = [functions.EMBEDDING, *(f"{functions.ATTRIBUTES}{label}" for label in labels)]
    derive = functools.partial(functions.select, labels=labels)
    expected = in_float32(run).predict(people, names, flip=flip, derive=derive)
    function, size = make_function(run, labels, flip=flip), tuple(run.config.data.image_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        temporary = Path(folder) / path.name
        if calibration is not None:
            quantize.write(temporary, function, size, calibration, _about(run, labels))
        elif to == "onnx":
            onnx.write(temporary, function, size, _about(run, labels))
        else:
            module.write(temporary, function, size)
        found = module.load(temporary)
        if calibration is None:
            agreement = checking.check(path.name, found, people["image"], expected)
        else:
            outputs = checking.run(found, people["image"])
            agreement = _check_cosine(path, expected["embedding"], outputs["embedding"])
        os.replace(temporary, path)
    return agreement


def _about(run: Run, labels: Sequence[str]) -> dict[str, str]:
    """What an ONNX file says of itself."""
    classes = {label: list(run.extra["labels"][label]) for label in labels}
    about = {"labels": classes, "trained_on": history.trained_on(run.extra)}
    about["clustered"] = run.extra.get("clustered", [])
    return {"network": run.workdir.name} | {key: json.dumps(about[key]) for key in about}


def lowest_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The lowest cosine between the rows of two arrays.

    Args:
      a: [M, D].
      b: [M, D].
    """
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = np.sum(a * b, axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)
    return float(np.min(np.where(np.isfinite(cosines), cosines, -1)))


def _check_cosine(path: Path, expected: np.ndarray, found: np.ndarray) -> float:
    lowest = lowest_cosine(expected, found)
    if not lowest >= LEAST:
        raise InputError(
            f"{path}: in eight bits the embeddings' lowest cosine to the run's is {lowest:.4f}; it "
            f"must be {LEAST} or more"
        )
    return lowest
