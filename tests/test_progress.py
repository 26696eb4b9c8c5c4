"""Bars for long work: only on a terminal, and only where it is long."""

import contextlib
import io
import time

import pytest

from market_jax import progress


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
    assert "k_reciprocal: 00:00" in shown(lambda: wait(0.3), Terminal())


@pytest.mark.parametrize(("delay", "stream"), [(5.0, Terminal()), (0.0, io.StringIO())])
def test_short_work_and_a_file_show_nothing(monkeypatch, delay, stream):
    monkeypatch.setattr(progress, "_DELAY", delay)
    text = shown(lambda: list(progress.track(range(3), "images")), stream)
    text += shown(lambda: wait(0.05), stream)
    assert "images" not in text
    assert "k_reciprocal" not in text


def test_an_error_within_goes_through():
    with pytest.raises(ValueError, match="inside"), progress.waiting("k_reciprocal"):
        raise ValueError("inside")
