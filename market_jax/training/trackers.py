"""Where the metrics of a training are followed: TensorBoard, Weights & Biases, MLflow.

A tracker is made from its arguments, which says whether its package is installed. `begin` starts a
run there, or goes on with one; `write` adds the metrics of a step; `close` ends it. They raise what
their packages raise: `market_jax.training.writers` sees to it that a training goes on.
"""

import contextlib
import importlib
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from absl import logging
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from market_jax import registry
from market_jax.errors import InputError

_UPLOAD = 600.0  # seconds that the end of a training waits for what is not uploaded yet
_PARAMS, _LENGTH = 100, 500  # parameters that MLflow takes at a time, characters of one


class Start(NamedTuple):
    """How a training begins, or goes on.

    Attributes:
      workdir: the folder of the run; a tracker's run has its name.
      step: the number of steps done; 0 begins.
      settings: the config, as JSON.
      id: of the tracker's run to go on with; None begins one.
    """

    workdir: Path
    step: int = 0
    settings: Mapping[str, Any] = {}
    id: str | None = None


class Tracker(Protocol):
    """What a writer of `config.writers` brings.

    Attributes:
      place: where its runs are kept; a run goes on only at its own place.
      rewinds: whether it drops what it has beyond `Start.step`, and is told it again; else no line
        reaches it twice.
    """

    place: str
    rewinds: bool

    def begin(self, start: Start) -> str:
        """Begins a run or goes on with one; returns its id.

        Args:
          start: how the training begins.
        """

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of a step.

        Args:
          step: the number of steps done.
          metrics: metric name -> value.
        """

    def close(self, finished: bool) -> None:
        """Ends the run.

        Args:
          finished: whether the training has come to its end, rather than been stopped.
        """


def _load(module: str, package: str) -> ModuleType:
    """Imports what a tracker needs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"the writer {module!r} needs its package: pip install {package} ({error})"
        ) from None


class TensorBoard:
    """TensorBoard's file, written at once: tensorboardX's own thread hangs where a disk is full.

    Where it cannot be written, it ends; half a line would spoil what follows.
    """

    place, rewinds = "tensorboard", True

    def begin(self, start: Start) -> str:
        """Begins a file, which makes TensorBoard forget the steps after the first one."""
        self._path, self._events = start.workdir / "tensorboard", None
        purged, status = start.step + 1, event_pb2.SessionLog.START
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            self._events = EventsWriter(str(self._path / "events"))
            self._add(event_pb2.Event(step=purged, file_version="brain.Event:2"))
            self._add(event_pb2.Event(step=purged, session_log=event_pb2.SessionLog(status=status)))
        except OSError as error:
            self._give_up(error)
        return ""

    def _add(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        self._events.write_event(event)
        self._events.flush()

    def _give_up(self, error: OSError) -> None:
        logging.warning("%s: TensorBoard's file ends here (%s)", self._path, error.strerror)
        self._events = None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of a step."""
        if self._events is None:
            return
        try:
            for name, value in metrics.items():
                self._add(event_pb2.Event(step=step, summary=scalar(name, value)))
        except OSError as error:
            self._give_up(error)

    def close(self, finished: bool) -> None:
        """Closes the file."""
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()


class WandB:
    """A run of Weights & Biases; with WANDB_MODE=offline a folder in the run's, for `wandb sync`.

    The steps are a metric of their own, over which the others are drawn: W&B's own count refuses
    lines of a step that it has passed.

    Args:
      project: the project.
      entity: whose project it is, a user or a team; "" is the account's own.
      group: the group of the run, in which seeds stand together; "" has none.
    """

    rewinds = False

    def __init__(self, project: str = "market_jax", entity: str = "", group: str = ""):
        self._wandb, self.place = _load("wandb", "wandb"), f"{entity}/{project}"
        self._where = {"project": project, "entity": entity or None, "group": group or None}

    def begin(self, start: Start) -> str:
        """Begins a run, or goes on with it."""
        self._run = self._wandb.init(
            **self._where,
            id=start.id,
            name=start.workdir.absolute().name,
            dir=str(start.workdir.absolute()),
            config=dict(start.settings),
            allow_val_change=True,  # of settings that may change when a run goes on
            resume="allow",
            reinit="create_new",
            settings={"finish_timeout": _UPLOAD},
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        return self._run.id

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of a step."""
        self._run.log({"step": step, **metrics})

    def close(self, finished: bool) -> None:
        """Ends the run, once it is uploaded."""
        self._run.finish(exit_code=0 if finished else 1)


class MLflow:
    """A run of MLflow: of a server, or in a file that needs no network.

    Args:
      experiment: the experiment; it is made if it is missing.
      uri: the server, or "sqlite:///runs/mlflow.db"; "" is what MLFLOW_TRACKING_URI says, and else
        ./mlflow.db.
    """

    rewinds = False

    def __init__(self, experiment: str = "market_jax", uri: str = ""):
        self._mlflow = _load("mlflow", "mlflow")
        self._experiment, self._uri, self.place = experiment, uri, f"{uri} {experiment}"

    def begin(self, start: Start) -> str:
        """Begins a run with the settings as its parameters, or goes on with it."""
        self._client = self._mlflow.MlflowClient(tracking_uri=self._uri or None)
        if start.id:
            self._id = start.id
            self._client.update_run(self._id, status="RUNNING")
            return self._id
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = (
            found.experiment_id if found else self._client.create_experiment(self._experiment)
        )
        name = start.workdir.absolute().name
        self._id = self._client.create_run(experiment, run_name=name).info.run_id
        make = self._mlflow.entities.Param
        params = [
            make(key, str(value)[:_LENGTH]) for key, value in _flatten(start.settings).items()
        ]
        for first in range(0, len(params), _PARAMS):
            self._client.log_batch(self._id, params=params[first : first + _PARAMS])
        return self._id

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of a step."""
        make, now = self._mlflow.entities.Metric, int(1000 * time.time())
        values = [make(name, float(value), now, step) for name, value in metrics.items()]
        self._client.log_batch(self._id, metrics=values)

    def close(self, finished: bool) -> None:
        """Ends the run."""
        self._client.set_terminated(self._id, status="FINISHED" if finished else "KILLED")


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"name": "pcb"}} -> {"model.name": "pcb"}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        flat |= _flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


TRACKERS = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def make(specs: Mapping[str, Mapping[str, Any]]) -> dict[str, Tracker]:
    """Makes the trackers that have a name: key -> tracker.

    Args:
      specs: key -> the name of a tracker, and its arguments; "" is none.

    Raises:
      InputError: a name or an argument is unknown, or a package is not installed.
    """
    return {
        key: registry.make(spec, TRACKERS, f"writer (writers.{key})")
        for key, spec in specs.items()
        if spec.get("name") != ""
    }
