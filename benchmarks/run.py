"""One runner for every row: processes that take turns, ratios turn by turn, spread.

    python -m benchmarks.run SPEC      # a worker; `Worker` starts it

A worker prepares programs and then runs one of them whenever its name is read from the
standard input. SPEC is JSON: `jobs` (name, setup, program and sizes of each), `devices`
(host devices of JAX) and `threads` (of PyTorch), which must be known before the libraries
start, and `warm`, whether each program is called once before it is timed. What runs is the
code of the folder in which the worker is started, these sides included: another checkout
is measured by its own. One line of JSON per answer on the standard
output: `{"ready": [names]}`, then `{"seconds": s, "value": units or facts}`. The name
`costs` is answered with what the process has cost so far.
"""

import importlib
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeAlias

from benchmarks.rows import Row, Side, Sizes, Target
from lottery_jax import errors

ROOT = pathlib.Path(__file__).resolve().parent.parent
COSTS = "costs"
OTHER = "the other checkout"

Programs: TypeAlias = Mapping[str, Callable[[], Any]]


# --- a worker, from within ------------------------------------------------------------


class Compiling:
    """Remembers every interval in which JAX traces, lowers or compiles, from now on."""

    COMPILED = "/jax/core/compile/backend_compile_duration"
    EVENTS = (
        "/jax/core/compile/jaxpr_trace_duration",
        "/jax/core/compile/jaxpr_to_mlir_module_duration",
        COMPILED,
    )

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        import jax

        self._clock = clock
        self._intervals: list[tuple[float, float]] = []
        self._compiled: list[float] = []
        jax.monitoring.register_event_duration_secs_listener(self.listen)

    def listen(self, event: str, duration_secs: float, **_: Any) -> None:
        """What JAX calls at the end of each interval."""
        if event in self.EVENTS:
            now = self._clock()
            self._intervals.append((now - duration_secs, now))
            if event == self.COMPILED:
                self._compiled.append(now)

    def seconds(
        self, start: float = float("-inf"), stop: float = float("inf")
    ) -> float:
        """Seconds between two readings of the clock; what overlaps counts once."""
        total, reached = 0.0, start
        for a, b in sorted(self._intervals):
            a, b = max(a, reached), min(b, stop)
            if b > a:
                total, reached = total + b - a, b
        return total

    def count(self, start: float = float("-inf"), stop: float = float("inf")) -> int:
        """How many programs were compiled after `start` and until `stop`."""
        return sum(start < at <= stop for at in self._compiled)


def gigabytes(ru_maxrss: int) -> float:
    """The largest resident memory in GB (10^9 bytes), from what the system reports."""
    return ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def serve(text: str) -> None:
    """Serves the programs of one spec until the standard input ends."""
    spec = json.loads(text)
    # Whatever prints must not mix with the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    compiling = None
    if spec["devices"]:
        import jax

        jax.config.update("jax_num_cpu_devices", spec["devices"])
        compiling = Compiling()
    if spec["threads"]:
        import torch

        torch.set_num_threads(spec["threads"])
    programs = {}
    made: dict[str, Programs] = {}
    for name, setup, program, sizes in spec["jobs"]:
        key = json.dumps([setup, sizes])
        if key not in made:
            module, function = setup.split(":")
            found = importlib.import_module(f"benchmarks.{module}")
            tupled = {k: tuple(v) if type(v) is list else v for k, v in sizes.items()}
            made[key] = getattr(found, function)(Sizes(**tupled))
        programs[name] = made[key][program]
    for program in programs.values() if spec["warm"] else ():
        program()
    print(json.dumps({"ready": list(programs)}), file=answers)
    for line in sys.stdin:
        begin = time.perf_counter()
        name = line.strip()
        value = _costs(compiling) if name == COSTS else programs[name]()
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "value": value}), file=answers)


def _costs(compiling: Compiling | None) -> dict[str, float]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found = {"peak resident memory, GB": gigabytes(usage.ru_maxrss)}
    if compiling is not None:
        import jax

        found["tracing and compiling, s"] = compiling.seconds()
        device = jax.local_devices()[0]
        memory = device.memory_stats()
        if memory and "peak_bytes_in_use" in memory:
            name = f"peak memory of the {device.device_kind}, GB"
            found[name] = memory["peak_bytes_in_use"] / 1e9
    return found


# --- a worker, from outside -----------------------------------------------------------


class WorkerError(RuntimeError):
    """A worker died; the message holds the end of what it wrote."""


class Worker:
    """A process that runs programs; a context manager that ends it.

    Args:
      jobs: sides with their sizes, by name.
      tree: another checkout that is to run; None for this one.
      warm: whether each program is called once before it is timed.

    Raises:
      ValueError: the tree is no checkout with benchmarks and library.
    """

    def __init__(
        self,
        jobs: Mapping[str, tuple[Side, Sizes]],
        *,
        tree: str | None = None,
        warm: bool = True,
    ) -> None:
        first = next(iter(jobs.values()))[0]
        spec = {
            "jobs": [
                (name, side.setup, side.program, sizes._asdict())
                for name, (side, sizes) in jobs.items()
            ],
            "devices": first.devices,
            "threads": first.threads,
            "warm": warm,
        }
        folder = ROOT if tree is None else pathlib.Path(tree)
        needed = ("benchmarks/run.py", "lottery_jax/__init__.py")
        if not all((folder / name).exists() for name in needed):
            raise errors.wrong("tree", folder, f"a checkout that has {needed}")
        environment = dict(os.environ) | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
        environment.setdefault("JAX_PLATFORMS", "cpu")
        if first.threads:
            environment["OMP_NUM_THREADS"] = str(first.threads)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.run", json.dumps(spec)],
            cwd=folder,
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
        print(program, file=self._process.stdin, flush=True)

    def result(self) -> tuple[float, Any]:
        """Seconds that the program took, and what it returned."""
        answer = self._answer()
        return answer["seconds"], answer["value"]

    def run(self, program: str) -> tuple[float, Any]:
        """Starts a program and waits for its result."""
        self.ask(program)
        return self.result()

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
        self._process.kill()
        self._process.communicate()
        self._errors.close()


# --- turns ----------------------------------------------------------------------------


class Spread(NamedTuple):
    """The median of several turns, with the smallest and the largest value."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Summarises the turns of one side, at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def ratio(above: Sequence[float], below: Sequence[float], times: float = 1) -> Spread:
    """The ratio of two sides, turn by turn."""
    return spread([times * a / b for a, b in zip(above, below, strict=True)])


def take_turns(
    sides: Mapping[str, Sequence[tuple[Worker, str]]], turns: int, pause: float = 0.2
) -> dict[str, list[float]]:
    """Runs all sides once per turn, one after another.

    Args:
      sides: by name: programs that run at the same time, each in a worker of its own.
      turns: how often each runs.
      pause: seconds between sides, until the threads of the last one have gone to sleep.

    Returns:
      Units of work per second of each side, one value per turn; those of programs that
      run at the same time add up.
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


# --- a row ----------------------------------------------------------------------------


class Found(NamedTuple):
    """What a row has found."""

    rates: dict[str, list[float]]  # of each side, one per turn
    facts: dict[str, list[Any]]  # by name, one per repetition
    costs: dict[str, dict[str, float]]  # of each process


def measure(row: Row, quick: bool = False, against: str | None = None) -> Found:
    """Runs the sides of a row in turns, and its facts.

    Args:
      row: what to run.
      quick: the quick sizes, each side once.
      against: another checkout, whose sides of lottery_jax take turns with these.

    Raises:
      WorkerError: a side has failed.
    """
    found = Found({}, {}, {})
    _measure_sides(row, dict(_doubled(row.sides, against)), quick, found)
    for side in row.facts:
        trees = (None, against) if against and side.is_ours else (None,)
        for tree in trees * (1 if quick else row.repeats):
            _find_facts(row, side, tree, quick, found)
    return found


def _doubled(
    sides: Mapping[str, Side], against: str | None
) -> Iterator[tuple[str, tuple[Side, str | None]]]:
    """All sides, each with the tree it runs from; with another one, those of JAX alone."""
    for name, side in sides.items():
        if against is None or side.is_ours:
            yield name, (side, None)
        if against is not None and side.is_ours:
            yield f"{name}, {OTHER}", (side, against)


def _sizes(row: Row, side: Side, quick: bool) -> Sizes:
    return row.full._replace(**side.change | (row.quick if quick else {}))


def _measure_sides(
    row: Row,
    sides: Mapping[str, tuple[Side, str | None]],
    quick: bool,
    found: Found,
) -> None:
    """Starts the processes, takes turns, and adds rates and costs to what is found."""
    jobs: dict[tuple[Any, ...], dict[str, tuple[Side, Sizes]]] = {}
    places: dict[str, list[tuple[tuple[Any, ...], str]]] = {}
    for name, (side, tree) in sides.items():
        if quick and side.threads:
            # Several threads wait actively, which takes long where others run.
            side = side._replace(threads=1, processes=1)
        for i in range(side.processes):
            own = name if side.devices is None else f"JAX on {side.devices}"
            process = (own, i, tree)
            jobs.setdefault(process, {})[name] = side, _sizes(row, side, quick)
            places.setdefault(name, []).append((process, name))
    with ExitStack() as stack:
        workers = {}
        for process, own_jobs in jobs.items():
            worker = Worker(own_jobs, tree=process[2])
            workers[process] = stack.enter_context(worker)
            if not quick:  # so that compiling one is not slowed down by another
                worker.wait_ready()
        for worker in workers.values() if quick else ():
            worker.wait_ready()
        turns = {
            name: [(workers[process], program) for process, program in own]
            for name, own in places.items()
        }
        found.rates.update(take_turns(turns, 1 if quick else row.turns))
        for (own_name, i, tree), worker in workers.items():
            name = (
                own_name
                + f", process {i + 1}" * (i > 0)
                + f", {OTHER}" * (tree is not None)
            )
            found.costs[name] = worker.run(COSTS)[1]


def _find_facts(
    row: Row, side: Side, tree: str | None, quick: bool, found: Found
) -> None:
    """Runs a side in a process of its own, and adds its facts to what is found."""
    jobs = {"facts": (side, _sizes(row, side, quick))}
    with Worker(jobs, tree=tree, warm=False) as worker:
        worker.wait_ready()
        for name, value in worker.run("facts")[1].items():
            own_name = f"{name}, {OTHER}" if tree else name
            found.facts.setdefault(own_name, []).append(value)


def outcome(error: str) -> str:
    """What something says that failed, in a few words."""
    low = error.lower()
    if "resource_exhausted" in low or "out of memory" in low:
        return "out of memory"
    lines = [line for line in error.splitlines() if line.strip()]
    return lines[-1][:80].replace("|", "/")


# --- what is compared -----------------------------------------------------------------


class Comparison(NamedTuple):
    """One number that a row is about."""

    of: str
    to: str  # the peer or ruler that it is divided by; "" for a plain number
    value: Spread
    target: Target | None = None
    unit: str = ""


def compare(row: Row, found: Found) -> list[Comparison]:
    """The comparisons of a row; those whose sides have not run are left out."""
    rates, comparisons = found.rates, []
    for one in row.ratios:
        several = (one.to,) if isinstance(one.to, str) else one.to
        peers = [name for name in several if name in rates]
        missing = one.times and one.times not in found.facts
        if one.of not in rates or not peers or missing:
            continue
        peer = max(peers, key=lambda name: statistics.median(rates[name]))
        label = peer if len(several) == 1 else f"the best peer: {peer}"
        of = f"time of {one.of}" if one.time else one.of
        times = found.facts[one.times][0] if one.times else 1
        above, below = (peer, one.of) if one.time else (one.of, peer)
        value = ratio(rates[above], rates[below], times)
        comparisons.append(Comparison(of, label, value, one.target))
    for fact, target, unit in row.numbers:
        if fact in found.facts:
            value = summary(found.facts[fact])
            comparisons.append(Comparison(fact, "", value, target, unit))
    for name, values in rates.items():
        if (other := rates.get(f"{name}, {OTHER}")) is not None:
            comparisons.append(Comparison(name, OTHER, ratio(values, other)))
    for fact, _, _ in row.numbers:
        other = found.facts.get(f"{fact}, {OTHER}")
        if other is not None and all(isinstance(x, int | float) and x for x in other):
            value = ratio(found.facts[fact], other)
            comparisons.append(Comparison(fact, OTHER, value))
    return comparisons


def summary(values: Sequence[Any]) -> Spread:
    """Of the repetitions of a fact: of numbers, or of one that has its spread with it."""
    if isinstance(values[0], list):
        return Spread(*values[-1])
    return spread(values)


if __name__ == "__main__":
    serve(sys.argv[1])
