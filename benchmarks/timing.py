"""Taking turns: workers, sides that are compared, and ratios with their spread."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from benchmarks.worker import COSTS

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Spread(NamedTuple):
    """The median of several turns, with the smallest and the largest value."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Summarises the turns of one side, at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


class WorkerError(RuntimeError):
    """A worker died; the message holds the end of what it wrote."""


class Worker:
    """A process of `benchmarks.worker`; a context manager that ends it.

    Args:
      setup: "module:function".
      arguments: of `setup`, JSON-able.
      devices: host devices of JAX; None for a worker without JAX.
      threads: of PyTorch; None for a worker without PyTorch.
      warm: whether each program is called once before it is timed.
    """

    def __init__(
        self,
        setup: str,
        arguments: Mapping[str, Any],
        *,
        devices: int | None = None,
        threads: int | None = None,
        warm: bool = True,
    ) -> None:
        spec = {
            "setup": setup,
            "arguments": dict(arguments),
            "devices": devices,
            "threads": threads,
            "warm": warm,
        }
        environment = dict(os.environ)
        path = (str(ROOT), environment.get("PYTHONPATH", ""))
        environment["PYTHONPATH"] = os.pathsep.join(p for p in path if p)
        # The targets are those of a CPU, host devices included.
        environment.setdefault("JAX_PLATFORMS", "cpu")
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )

    def wait_ready(self) -> list[str]:
        """The names of the programs, once they are prepared."""
        return self._answer()["ready"]

    def ask(self, program: str) -> None:
        """Starts a program; its result is fetched with `result`."""
        assert self._process.stdin is not None
        self._process.stdin.write(program + "\n")
        self._process.stdin.flush()

    def result(self) -> tuple[float, Any]:
        """Seconds that the program took, and what it returned."""
        answer = self._answer()
        return answer["seconds"], answer["value"]

    def run(self, program: str) -> tuple[float, Any]:
        """Starts a program and waits for its result."""
        self.ask(program)
        return self.result()

    def costs(self) -> dict[str, float]:
        """What the process has cost so far.

        `memory`: its largest resident memory in GB (10^9 bytes); `compiling`: seconds of
        tracing, lowering and compiling, for JAX.
        """
        return self.run(COSTS)[1]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            end = self._errors.read()[-3000:]
            raise WorkerError(f"a worker ended early:\n{end}")
        return json.loads(line)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            stream.close()


Side: TypeAlias = Sequence[tuple[Worker, str]]
"""Programs that run at the same time, each in a worker of its own; rates add up."""


def take_turns(
    sides: Mapping[str, Side], turns: int, pause: float = 0.2
) -> dict[str, list[float]]:
    """Runs all sides once per turn, one after another.

    Args:
      sides: by name.
      turns: how often each runs.
      pause: seconds between sides, until the threads of the last one have gone to sleep.

    Returns:
      Units of work per second of each side, one value per turn.
    """
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            time.sleep(pause)
            for worker, program in side:
                worker.ask(program)
            results = [worker.result() for worker, _ in side]
            rates[name].append(sum(units / seconds for seconds, units in results))
    return rates


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """The ratio of two sides, turn by turn."""
    return spread([a / b for a, b in zip(above, below, strict=True)])
