"""How far long work has come, on a terminal; nothing where there is none."""

import contextlib
import threading
from collections.abc import Iterable, Iterator

from tqdm import tqdm

_DELAY = 2.0  # seconds; shorter work shows nothing


def track(items: Iterable, what: str, total: int | None = None) -> Iterable:
    """The same items; a bar shows how many have been taken.

    Args:
      items: what is gone through.
      what: the work in words.
      total: the number of items, where they do not say it themselves.
    """
    return tqdm(
        items, desc=what, total=total, delay=_DELAY, disable=None, leave=False, dynamic_ncols=True
    )


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Shows for how long work goes on that does not say how far it has come.

    Args:
      what: the work in words.
    """
    bar = tqdm(desc=what, bar_format="{desc}: {elapsed}", delay=_DELAY, disable=None, leave=False)
    done = threading.Event()

    def show() -> None:
        pause = _DELAY
        while not done.wait(pause):
            bar.delay = 0  # else it would not be erased, as one that was never shown
            bar.refresh()
            pause = 1.0

    clock = threading.Thread(target=show, daemon=True)
    if not bar.disable:
        clock.start()
    try:
        yield
    finally:
        done.set()
        if clock.is_alive():
            clock.join()
        bar.close()
