"""Processes of a benchmark: each holds one variant, and runs it when it is told to."""

import json
import subprocess
from collections.abc import Sequence


class Worker:
    """A process that reads a case from its argument and runs it when it is told to.

    It prints a line of JSON when it is ready, and then one with the seconds of a run for each
    line that it reads.
    """

    def __init__(self, program: Sequence[str], case: dict):
        self._process = subprocess.Popen(
            [*program, json.dumps(case)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready = self._read()

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")
        return json.loads(line)

    def run(self, steps: int = 1) -> float:
        """Seconds for one of so many steps."""
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
