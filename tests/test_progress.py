"""Bars for long work: only on a terminal, and only where it is long."""

import contextlib
import io
import time

import numpy as np
import pytest

from market_jax import inference, progress
from market_jax.evaluators import junk, tuning
from market_jax.retrieval import chain, projection
from market_jax.retrieval.training import Training


class Terminal(io.StringIO):
    """Text that is written to a terminal."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(progress, "_DELAY", 0.05)


def shown(work, stream):
    """What a piece of work writes to a stream in the place of stderr."""
    with contextlib.redirect_stderr(stream):
        work()
    return stream.getvalue()


def wait(seconds):
    with progress.waiting("k_reciprocal"):
        time.sleep(seconds)


def slowly(count):
    for number in range(count):
        time.sleep(0.05)
        yield number


def test_long_work_shows_how_far_it_has_come():
    found = []
    text = shown(lambda: found.extend(progress.track(slowly(5), "images", total=5)), Terminal())
    assert found == list(range(5))
    assert "images" in text
    assert "/5" in text


def test_work_without_steps_shows_its_time():
    text = shown(lambda: wait(0.3), Terminal())
    assert "k_reciprocal: 00:00" in text
    assert text.endswith("\r")
    assert not text.split("\r")[-2].strip()  # it is erased


@pytest.mark.parametrize(("delay", "stream"), [(5.0, Terminal()), (0.0, io.StringIO())])
def test_short_work_and_a_file_show_nothing(monkeypatch, delay, stream):
    monkeypatch.setattr(progress, "_DELAY", delay)
    text = shown(lambda: list(progress.track(range(3), "images")), stream)
    text += shown(lambda: wait(0.05), stream)
    assert "images" not in text
    assert "k_reciprocal" not in text


def colors(variables, image):
    return {"color": image.mean(axis=(1, 2))}


class Described:
    """A predictor whose embeddings are made."""

    def output_names(self, columns):
        return ("embedding",)

    def __call__(self, columns, names):
        rng = np.random.default_rng(0)
        return {"embedding": rng.normal(size=(len(columns["name"]), 6)).astype(np.float32)}


def learn(rows):
    spec, training = {"name": "agglomerative", "learn": "threshold"}, Training(None, lambda: rows)
    tuning.complete(spec, chain.RERANKERS, training, count=24, metric="cosine")


WORK = {
    "images": lambda rows: inference.Predictor(colors, {}, batch_size=4)(rows, ["color"]),
    "k_reciprocal": lambda rows: chain.apply(
        rows, rows, rerankers=[chain.RERANKERS["k_reciprocal"]]
    ),
    "sizes of clusters": learn,
    "threshold": learn,
    "t-SNE": lambda rows: projection.tsne(rows["feature"]),
    "outlier": lambda rows: junk.score_images(Described(), rows),
    "made junk": lambda rows: junk.judge_made(Described(), rows),
}


@pytest.mark.parametrize("what", WORK)
def test_work_on_many_pictures_shows_a_bar(monkeypatch, what):
    rng, pids = np.random.default_rng(0), np.repeat(np.arange(1, 9), 3)
    rows = {
        "image": rng.integers(0, 256, (24, 8, 4, 3), np.uint8),
        "name": np.array([f"{i}.png" for i in range(24)]),
        "pid": pids,
        "camid": np.tile([1, 2, 3], 8),
        "feature": (np.eye(8)[pids - 1] + rng.normal(size=(24, 8)) / 9).astype(np.float32),
    }
    monkeypatch.setattr(progress, "_DELAY", 0.0)
    assert what in shown(lambda: WORK[what](rows), Terminal())


def test_an_error_within_goes_through():
    with pytest.raises(ValueError, match="inside"), progress.waiting("k_reciprocal"):
        raise ValueError("inside")
