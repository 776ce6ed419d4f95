"""What rows are written with."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from benchmarks.report import Row, Table, cores
from benchmarks.timing import Side, Spread, Worker, ratio, spread

JAX = "benchmarks.jax_sides"
TORCH = "benchmarks.torch_sides"
DENSITY = 0.2
PEAK_SIZES = (256, 512, 1024, 2048)


class Benchmark(NamedTuple):
    """A row before it has run.

    Attributes:
      run: takes `quick`.
      needs: modules that must be importable.
      extra: of the package, which brings them.
    """

    run: Callable[[bool], Row]
    needs: tuple[str, ...] = ()
    extra: str = ""


def ready(
    stack: ExitStack, workers: Mapping[str, Callable[[], Worker]], quick: bool
) -> dict[str, Worker]:
    """Starts workers, which end with the stack, and waits until they are prepared.

    One after another, so that what compiling costs is not the others' doing; all at the
    same time for `quick`.
    """
    started = {}
    for name, start in workers.items():
        started[name] = stack.enter_context(start())
        if not quick:
            started[name].wait_ready()
    if quick:
        for worker in started.values():
            worker.wait_ready()
    return started


def once(setup: str, arguments: Mapping[str, Any], devices: int) -> dict[str, Any]:
    """The facts that the only program of a worker returns, in a process of its own.

    The process' costs are among them, as `costs`.
    """
    with Worker(f"{JAX}.{setup}", arguments, devices=devices, warm=False) as worker:
        (program,) = worker.wait_ready()
        return worker.run(program)[1] | {"costs": worker.costs()}


def costs(workers: Mapping[str, Worker]) -> dict[str, Any]:
    """Facts: what preparing and running each worker has cost."""
    found = {name: worker.costs() for name, worker in workers.items()}
    return {
        "peak resident memory of each process, GB": {
            name: cost["memory"] for name, cost in found.items()
        },
        "tracing and compiling all programs of a process, s": {
            name: cost["compiling"]
            for name, cost in found.items()
            if "compiling" in cost
        },
    }


def threads(quick: bool) -> int:
    """Threads of a peer in PyTorch: one per core.

    One in all for `quick`: several wait actively for each other, which takes long where
    others run.
    """
    return 1 if quick else cores()


def value(number: float) -> Spread:
    """A number that was measured once."""
    return Spread(number, number, number)


def count_devices(number: int) -> str:
    """ "1 device", "2 devices" ..."""
    return f"{number} device{'s' * (number != 1)}"


def peak_sides(worker: Worker, sizes: Sequence[int]) -> dict[str, Side]:
    """The sides of a worker's square products."""
    return {f"peak {size}": [(worker, f"peak {size}")] for size in sizes}


def split_peak(
    rates: dict[str, list[float]],
) -> tuple[dict[str, list[float]], str, list[float]]:
    """Takes the peaks out of the rates: the others, and the name and rates of the best."""
    peaks = {name: rates[name] for name in rates if name.startswith("peak ")}
    others = {name: values for name, values in rates.items() if name not in peaks}
    best = max(peaks, key=lambda name: spread(peaks[name]).median)
    return others, f"{best.removeprefix('peak ')}-cube products", peaks[best]


def share_of(rates: Sequence[float], flops: float, peak: Sequence[float]) -> Spread:
    """Operations per second as a share of the peak, turn by turn."""
    return ratio([rate * flops for rate in rates], peak)


def shares_table(shares: Mapping[str, float], milliseconds: float) -> Table:
    """The account of a profile."""
    rows = [
        [kind, f"{100 * share:.1f}", f"{share * milliseconds:.3g}"]
        for kind, share in sorted(shares.items(), key=lambda item: -item[1])
    ]
    return Table(
        ["operations of a step, 1 replica on 1 device", "% of their time", "as ms"],
        rows,
    )
