"""How the scripts begin and end: flags, errors of a user as messages, signals that ask to stop."""

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from absl import flags

from market_jax.errors import InputError

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, preemption, a closed terminal


def parse(program: str, argv: list[str], hint: str = "") -> list[str]:
    """Parses flags as absl does; a user's mistake ends in a message, not in a traceback.

    Args:
      program: the name of the script, before every message.
      argv: the words of the command.
      hint: a sentence after the message of an unknown flag.

    Returns:
      The words that are no flags, which is the program's name alone.
    """
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        sys.exit(f"{program}: {error}{hint}")
    except Exception as error:  # of a config's file it may be any
        sys.exit(f"{program}: {_flag_message(error)}")
    if rest[1:]:
        sys.exit(f"{program}: {rest[1]!r} is no flag; flags begin with --")
    return rest


def _flag_message(error: Exception) -> str:
    """What absl and ml_collections mean, in one line."""
    message = str(error.args[0] if error.args else error)  # quoted twice by ml_collections
    if "Traceback" in message:  # of the config's own file
        message = message.strip().splitlines()[-1]
    if isinstance(error, KeyError | AttributeError) and " " not in message.strip():
        message = f"the config has no key {message.strip(chr(39) + chr(34))}"
    message = message.replace("\\n", ": ").replace("\\'", "'").strip("'")
    return re.sub(r"\s*\n\s*", " ", message) or repr(error)


class Stopped(KeyboardInterrupt):
    """A signal has asked the program to end.

    Args:
      number: the signal's number.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def _raise(number: int, _) -> None:
    raise Stopped(number)


@contextlib.contextmanager
def _handled(handler: Callable) -> Iterator[None]:
    """Hands signals that ask to stop to a function; ignored ones (by nohup) stay ignored.

    Python hands signals to the main thread alone; in another one nothing is changed.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in STOPPING if is_main}
    before = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def messages(program: str, when_stopped: str) -> Iterator[None]:
    """Ends a script with a message instead of a traceback, where a user can do something about it.

    Args:
      program: the name of the script, before every message.
      when_stopped: what a user should know after a signal.
    """
    try:
        with _handled(_raise):
            yield
    except BrokenPipeError:  # the reader of a pipe has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (InputError, OSError) as error:
        sys.exit(f"{program}: {error}")
    except MemoryError as error:
        sys.exit(f"{program}: not enough memory ({error})")
    except KeyboardInterrupt as error:
        print(f"{program}: {error or 'interrupted'}; {when_stopped}", file=sys.stderr)
        sys.exit(128 + getattr(error, "number", signal.SIGINT))


class Asked:
    """Whether a training was asked to stop.

    Attributes:
      number: the number of the first signal; None before it.
    """

    def __init__(self):
        self.number: int | None = None
        self._at_once = False

    def note(self, number: int, _) -> None:
        """Handles a signal; the second one, and one while `at_once` holds, raises `Stopped`."""
        first, self.number = self.number is None, self.number or number
        if self._at_once or not first:
            raise Stopped(number)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Where a signal raises `Stopped` at once: in work that can be done again."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Asked]:
    """Notes signals that ask to stop, so that a training can save first."""
    asked = Asked()
    with _handled(asked.note):
        yield asked
