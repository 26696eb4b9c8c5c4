"""Processes of a benchmark: each holds one variant, and runs it when it is told to.

Uses the standard library alone, so that the peers' processes can import it in their environment.
"""

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def _memory(process: int | str, field: str) -> float:
    """MiB that the system states of a process in a field of its status (Linux)."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024


def resident_memory() -> float:
    """MiB of memory that this process has now (Linux).

    A worker asks before it makes its network: what it has then is its libraries'.
    """
    return _memory("self", "VmRSS")


def serve(
    run: Callable[[], object], ready: Mapping, last: Callable[[], Mapping] | None = None
) -> None:
    """A worker's side: says that it is ready, then runs as many steps as each line asks for.

    Args:
      run: one step; returns when it is computed.
      ready: what is reported first, as JSON.
      last: what else is reported, computed when an empty line asks for it, after all is measured.
    """
    print(json.dumps(dict(ready)), flush=True)
    for line in sys.stdin:
        if not line.strip():
            print(json.dumps(dict(last() if last else {})), flush=True)
            continue
        start = time.perf_counter()
        for _ in range(int(line)):
            run()
        print((time.perf_counter() - start) / int(line), flush=True)


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
        return self._ask(f"{steps}\n")

    def last(self) -> dict:
        """What the worker reports when all is measured."""
        return self._ask("\n")

    def _ask(self, line: str):
        self._process.stdin.write(line)
        self._process.stdin.flush()
        return self._read()

    def peak_memory(self) -> float:
        """MiB of memory that the process has had at most, its libraries included (Linux).

        Not by `getrusage`, whose maximum begins with that of the process that has started this one.
        """
        return _memory(self._process.pid, "VmHWM")

    def page_faults(self) -> int:
        """Pages of memory that the system has handed to the process so far (Linux)."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[7])

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()


def alternate(workers: Mapping[str, Worker], rounds: int, seconds: float) -> dict[str, dict]:
    """Runs the variants of a case in turn, one at a time.

    Args:
      workers: variant -> its process.
      rounds: how often each runs, at least 2; the first time warms up and is left out.
      seconds: of each variant in a round, about.

    Returns:
      Variant -> what its worker reported, "seconds" of a step in each round, "faults" of pages in a
      step (a mean), and "peak_memory" in MiB.
    """
    steps = {name: max(1, round(seconds / worker.run(1))) for name, worker in workers.items()}
    times, faults = ({name: [] for name in workers} for _ in range(2))
    for _ in range(rounds):
        for name, worker in workers.items():
            before = worker.page_faults()
            times[name].append(worker.run(steps[name]))
            faults[name].append((worker.page_faults() - before) / steps[name])
    return {
        name: worker.ready
        | {
            "seconds": times[name][1:],
            "faults": statistics.mean(faults[name][1:]),
            "peak_memory": worker.peak_memory(),
        }
        | worker.last()
        for name, worker in workers.items()
    }


def compare(
    start: Callable[[str], Worker], variants: Sequence[str], rounds: int, seconds: float
) -> dict[str, dict]:
    """Starts the variants of a case, alternates them, and ends them, whatever happens.

    Args:
      start: variant -> its process.
      variants: their names.
      rounds: as for `alternate`.
      seconds: as for `alternate`.

    Returns:
      As `alternate`.
    """
    workers: dict[str, Worker] = {}
    try:
        for variant in variants:
            workers[variant] = start(variant)
        return alternate(workers, rounds, seconds)
    finally:
        for worker in workers.values():
            worker.close()


def ratio(result: Mapping, reference: Mapping | None) -> str:
    """The median over rounds of the times to another variant's, or "-" without one.

    Args:
      result: what `alternate` returned for a variant.
      reference: the same for the other.
    """
    if reference is None:
        return "-"
    pairs = zip(result["seconds"], reference["seconds"], strict=True)
    return f"{statistics.median(a / b for a, b in pairs):.2f}"


def memory(result: Mapping) -> tuple[str, str]:
    """Two cells: the peak of a process's memory, and how far it is above the libraries', in MiB.

    Args:
      result: what `alternate` returned for a variant whose worker reported "start_memory".
    """
    peak = result["peak_memory"]
    return f"{peak:.0f}", f"{peak - result['start_memory']:.0f}"
