"""What a training finds on its held-out images: metrics, and every so often pictures."""

import contextlib
import functools
from collections.abc import Iterable
from pathlib import Path

from absl import logging

from market_jax import build, devices
from market_jax.data import pipeline, transforms
from market_jax.errors import InputError
from market_jax.evaluators.result import Result
from market_jax.experiment import Training
from market_jax.files import write_atomically
from market_jax.inference import Predictor
from market_jax.report import curves, pictures
from market_jax.training import step, writers
from market_jax.training.state import TrainState


class HeldOut:
    """The function from a state to its metrics on the held-out images.

    They are the means of the loss, its terms and the metrics, and what `config.evaluators` find.
    Where nothing is held out, there are none. Pictures are written to the run's folder at every
    `config.report_every`-th evaluation; an evaluator that does nothing but draw is not called at
    the others.

    Args:
      training: what is trained.
      workdir: the folder where pictures are written.
      leader: whether this process writes.
    """

    def __init__(self, training: Training, workdir: Path, leader: bool):
        self._training, self._workdir, self._leader = training, workdir, leader
        self._val, config = training.val, training.config
        self._is_empty = not len(self._val["pid"])
        self._drawing: set[str] = set()  # evaluators that draw
        self._silent: set[str] = set()  # those that do nothing else
        self._is_old = False  # whether the pictures are of an earlier evaluation
        if self._is_empty:
            text = "data.val_fraction is 0: nothing is evaluated, the last network is kept"
            logging.warning(text)
            return
        self._means = step.make_evaluation_step(
            training.apply, training.objective, transforms.to_float
        )
        self._order = build.validation_sampler(config, self._val)
        self._evaluators = build.evaluators_of(config)
        for evaluate in self._evaluators.values():
            check = getattr(getattr(evaluate, "func", None), "check", None)
            if check:  # it can say now what it would say after the first epoch
                check(training.dataset, **evaluate.keywords)
        self._predictor = Predictor(
            training.apply, None, model=training.model, batch_size=config.batch_size
        )

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Evaluates a state: "val/<name>" -> value; {} where nothing is held out.

        Args:
          state: of the training.
        """
        if self._is_empty:
            return {}
        training, order, variables = self._training, self._order, state.averaged_variables
        place = functools.partial(devices.place_batch, training.mesh)
        batches = pipeline.batches(self._val, order, last=order.steps, share=devices.share())
        found = step.evaluate(self._means, training.objective, variables, map(place, batches))
        draws = training.plan.draws_at(int(state.step))
        keys = self._evaluators if draws else [k for k in self._evaluators if k not in self._silent]
        found |= self._judge(state, keys, draws)
        self._is_old = not draws
        devices.release_memory()
        return {f"val/{name}": float(value) for name, value in found.items()}

    def _judge(self, state: TrainState, keys: Iterable[str], draws: bool) -> dict[str, float]:
        """What some evaluators find; with `draws` their pictures are written."""
        predict, found = self._predictor.with_variables(state.averaged_variables), {}
        for key in keys:
            result = self._evaluators[key](predict, self._training.dataset)
            found |= result.metrics
            if result.pictures:
                self._drawing.add(key)
                self._silent |= set() if result.metrics else {key}
            if draws and self._leader:
                write_pictures(result, self._workdir)
        return found

    def draw_curves(self, done: int) -> None:
        """Draws the curves of the training, where pictures are drawn.

        Args:
          done: the number of steps done.
        """
        if self._training.plan.draws_at(done):
            self._draw_curves()

    def _draw_curves(self) -> None:
        if self._leader:
            with contextlib.suppress(InputError):  # a full disk: the next checkpoint says so
                curves.draw(writers.read_metrics(self._workdir), self._workdir / "curves.png")

    def finish(self, state: TrainState) -> None:
        """Draws what was not drawn at the last evaluation.

        Args:
          state: at the end of the training.
        """
        if self._is_old:
            self._draw_curves()
            self._judge(state, sorted(self._drawing), True)
            self._is_old = False


def write_pictures(result: Result, folder: Path) -> None:
    """Writes an evaluator's pictures.

    Args:
      result: of an evaluator.
      folder: where they are written.
    """
    for name, picture in result.pictures.items():
        path = Path(folder) / name
        write_atomically(path, pictures.encode(picture, path.suffix))
