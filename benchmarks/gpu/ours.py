"""Our cells, in one process: traced in turn, compiled beside that, then timed alone.

    python -m benchmarks.gpu.ours SECONDS --help

One line of JSON for each cell, and one for the device, on the standard output.
"""

import collections
import contextlib
import glob
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import kernels, sides_jax
from benchmarks.floor import floor as of_program
from benchmarks.gpu import cells, process
from benchmarks.gpu.cells import Cell
from benchmarks.rows import Sizes
from benchmarks.targets import Asked
from lottery_jax.types import PyTree, Task

Result = dict[str, Any]


# --- what a cell is made of -----------------------------------------------------------


class Start(NamedTuple):
    """What the replicas of a model start from, on the device, for one replica.

    Attributes:
      task: with its data on the host.
      data: on the device.
      state: with a leading axis of 1.
    """

    task: Task
    data: PyTree
    state: Any


@lru_cache
def _start(sizes: Sizes) -> Start:
    task = sides_jax.make_task(sizes)
    data, state, *_ = sides_jax.make_arguments(task, sizes)
    return Start(task, data, state)


def start_of(sizes: Sizes) -> Start:
    """The same for all cells of a model: what they differ in is how it is executed."""
    own = sizes._replace(replicas=1, convolution=None, precision=None)
    return _start(own._replace(activations="float32"))


def arguments(sizes: Sizes) -> tuple[Any, ...]:
    """Data, states and keys of all replicas: equal weights, noise of their own."""
    own, execution = start_of(sizes), sides_jax.make_execution(sizes)

    @partial(jax.jit, out_shardings=execution.sharded)
    def repeat(state: Any) -> Any:
        return jax.tree.map(lambda x: jnp.repeat(x, sizes.replicas, axis=0), state)

    keys = jax.random.split(jax.random.key(0), sizes.replicas)
    return own.data, repeat(own.state), execution.place(keys)


def lower(sizes: Sizes) -> Any:
    """The training segment of a cell, traced for arguments that need not be there."""
    own, execution = start_of(sizes), sides_jax.make_execution(sizes)
    data = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=execution.shared),
        own.data,
    )
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))

    def wide(x: Any) -> jax.ShapeDtypeStruct:
        shape = (sizes.replicas, *x.shape[1:])
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=execution.sharded)

    bound = jax.ShapeDtypeStruct((), np.int32)
    own_args = jax.tree.map(wide, (own.state, keys))
    run = sides_jax.compile_training(own.task, sizes)
    return run.lower(data, *own_args, bound, bound)


def gradients(state: Any, row: int) -> np.ndarray:
    """What the optimizer has accumulated for one replica: after one step, the gradient.

    Adam's first moment is a tenth of it; relative errors are the same.
    """
    found = [
        np.asarray(x[row], np.float32).ravel()
        for path, x in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if {"trace", "mu"} & {getattr(part, "name", None) for part in path}
    ]
    return np.concatenate(found)


def floor(sizes: Sizes) -> float:
    """Bytes of a step that no arrangement goes below: see `benchmarks.floor`."""
    one = sizes._replace(replicas=1, convolution=None, precision=None)
    return sizes.replicas * _floor(one)


@lru_cache
def _floor(sizes: Sizes) -> float:
    execution = sides_jax.make_execution(sizes)
    return of_program("train", Asked(start_of(sizes).task, sizes, execution))


# --- a traced call --------------------------------------------------------------------

_KINDS: Mapping[str, Sequence[str]] = {
    "convolutions": (
        "conv",
        "cudnn",
        "wgrad",
        "dgrad",
        "fprop",
        "implicit",
        "winograd",
    ),
    "products": ("gemm", "gemv", "cublas", "cutlass", "xmma", "dot", "nvjet"),
    "transposes": ("transpose", "nchwtonhwc", "nhwctonchw"),
    "reductions": ("reduce",),
    "gathers": ("gather", "slice", "scatter", "concat", "pad"),
    "copies": ("memcpy", "memset", "copy"),
    "other fusions": ("fusion", "loop"),
}


def times_of(folder: str) -> dict[str, tuple[float, int]]:
    """Seconds and number of each kernel in a trace's folder, by name."""
    total: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0])
    for path in glob.glob(f"{folder}/**/*.xplane.pb", recursive=True):
        for plane in jax.profiler.ProfileData.from_file(path).planes:
            for line in plane.lines if "GPU" in plane.name else ():
                for event in line.events if line.name.startswith("Stream") else ():
                    total[event.name][0] += event.duration_ns * 1e-9
                    total[event.name][1] += 1
    return {name: (seconds, int(n)) for name, (seconds, n) in total.items()}


def kind(name: str) -> str:
    """Of a kernel, from its name."""
    low = name.lower()
    kinds = (k for k, words in _KINDS.items() if any(word in low for word in words))
    return next(kinds, "other")


def traced(call: Callable[[int], object], steps: int) -> Result:
    """Busy milliseconds of a step, its kernels, and where its time goes."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call(steps)
        found = times_of(folder)
    if not found:
        return {}
    by_kind: dict[str, float] = collections.defaultdict(float)
    for name, (seconds, _) in found.items():
        by_kind[kind(name)] += seconds
    per_step = 1e3 / steps
    first = sorted(found.items(), key=lambda item: -item[1][0])[:12]
    return {
        "busy": per_step * sum(seconds for seconds, _ in found.values()),
        "kernels": sum(n for _, n in found.values()) // steps,
        "kinds": {
            k: per_step * v for k, v in sorted(by_kind.items(), key=lambda kv: -kv[1])
        },
        "heaviest": [(n[:90], per_step * s, k // steps) for n, (s, k) in first],
    }


# --- timing ---------------------------------------------------------------------------


def timed(sizes: Sizes, compiled: Any, reference: Any, quick: bool) -> Result:
    """Times a compiled cell, and compares its first step with the reference's.

    Args:
      sizes: of the cell.
      compiled: its program.
      reference: that of one replica in float32; None where there is none.
      quick: no more than that it runs.
    """
    args = arguments(sizes)
    ends = sorted({0, sizes.replicas - 1})
    first = jax.block_until_ready(compiled(*args, np.int32(0), np.int32(1)))[0]
    found: Result = {}
    if reference is not None:
        data, states, keys = args
        errors = []
        for row in ends:
            one = jax.tree.map(lambda x: x[:1], states), keys[row : row + 1]
            one = jax.device_put(one, sides_jax.make_execution(sizes).sharded)
            right = gradients(reference(data, *one, np.int32(0), np.int32(1))[0], 0)
            own = gradients(first, row)
            errors.append(np.linalg.norm(own - right) / np.linalg.norm(right))
        found["error"] = float(max(errors))
    del first

    def call(steps: int) -> float:
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*args, np.int32(0), np.int32(steps)))
        return (time.perf_counter() - begin) / steps

    call(1)
    about = call(2)
    number = 2 if quick else int(np.clip(0.25 / about, 4, sizes.steps))
    taken = [call(number) for _ in range(1 if quick else 4)]
    step = statistics.median(taken)
    found |= {
        "ms": 1e3 * step,
        "low": 1e3 * min(taken),
        "high": 1e3 * max(taken),
        "rate": sizes.replicas / step,
    }
    try:
        found |= traced(call, 2 if quick else max(4, min(20, int(0.2 / step))))
    except Exception as error:  # the rest is known
        found["no trace"] = process.why(error)
    return found


def account(compiled: Any) -> Result:
    """What a program says of itself: bytes of a step and of temporary memory."""
    found: Result = {}
    with contextlib.suppress(Exception):  # what is not known is left out
        found["temporaries"] = compiled.memory_analysis().temp_size_in_bytes
    with contextlib.suppress(Exception):
        steps = kernels.of_step(kernels.parse(compiled.as_text()))
        found["bytes"] = kernels.moved(steps)
    return found


# --- rulers ---------------------------------------------------------------------------


def rulers(quick: bool) -> Result:
    """What the device can do: bytes copied and operations of bfloat16 in a second."""
    device = jax.local_devices()[0]
    found: Result = {
        "device": device.device_kind,
        "platform": device.platform,
        "copied bytes per second": copied(2**20 if quick else 2**29),
    }
    squares, operations = ((64,), 1e6) if quick else ((8192,), 3e13)
    sizes = Sizes(precision="bfloat16", squares=squares, operations=operations)
    run = sides_jax.peak(sizes._replace(seconds=0.0))["run"]
    run()
    begin = time.perf_counter()
    done = run()
    found["bf16 operations per second"] = done / (time.perf_counter() - begin)
    return found


def copied(number: int, times: int = 20) -> float:
    """Bytes read and written in a second by passes over so many float32."""

    # A number of times that the compiler does not know: it could make one pass of several.
    @partial(jax.jit, donate_argnums=0)
    def passes(x: Any, times: Any) -> Any:
        return lax.fori_loop(0, times, lambda i, x: x + i.astype(jnp.float32), x)

    x = jax.block_until_ready(passes(jnp.zeros(number, jnp.float32), times))
    begin = time.perf_counter()
    jax.block_until_ready(passes(x, times))
    return 8 * number * times / (time.perf_counter() - begin)


# --- all of them ----------------------------------------------------------------------


def reference_of(cell: Cell) -> Cell | None:
    """The cell whose first step is right: one replica in float32."""
    if cell.batch:
        return None  # a program of its own for two errors
    return cell._replace(replicas=1, way="", numbers="float32")


class Compiled(NamedTuple):
    """A cell on its way: its program, or why there is none, and seconds that it took."""

    program: Any
    seconds: float
    error: str


THREADS = 4
"""That compile while the next cell is traced. Tracing holds Python's lock, so that in
threads of its own it only keeps the others from their turn."""

TRACING = 30.0
"""Seconds after which no more cells are added to a wave: answers come every minute."""


def make(cell: Cell, quick: bool, pool: futures.Executor) -> Callable[[], Compiled]:
    """Traces here, compiles in the pool; never raises. Returns what waits for it."""
    start = time.perf_counter()

    def ended(program: Any, error: str = "") -> Compiled:
        return Compiled(program, time.perf_counter() - start, error)

    def compiled(lowered: Any) -> Compiled:
        try:
            return ended(lowered.compile())
        except Exception as failed:
            return ended(None, process.why(failed))

    try:
        return pool.submit(compiled, lower(cells.sizes_of(cell, quick))).result
    except Exception as failed:
        without = ended(None, process.why(failed))
        return lambda: without


def waves(
    chosen: Sequence[Cell], seconds: float, quick: bool, size: int
) -> Iterator[tuple[Cell, Result]]:
    """Makes the programs of some cells, times them when all are ready, and so on.

    Nothing is compiled while something is timed.

    Args:
      chosen: the cells, the most telling first.
      seconds: until when, from now on.
      quick: the quick sizes.
      size: cells in a wave, at most.

    Yields:
      Each cell with what was found; those that no time was left for say so.
    """
    end = time.monotonic() + seconds
    left, made = list(chosen), dict[Cell, Compiled]()
    pool = futures.ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
    while left and (now := time.monotonic()) < end:
        full = now + min(TRACING, (end - now) / 2)
        waiting: dict[Cell, Callable[[], Compiled]] = {}
        wave = []
        for cell in left[:size]:
            if wave and time.monotonic() > full:
                break
            wave.append(cell)
            for own in (reference_of(cell), cell):
                if own is not None and own not in {*made, *waiting}:
                    waiting[own] = make(own, quick, pool)
        made |= {cell: wait() for cell, wait in waiting.items()}
        for cell in wave:
            if time.monotonic() > end:
                break
            left.remove(cell)
            wanted = reference_of(cell)
            reference = made[wanted].program if wanted is not None else None
            # The program goes, with its memory; a reference stays.
            own = made[cell] if cell == wanted else made.pop(cell)
            yield cell, _measured(cell, own, reference, quick)
    for cell in left:
        yield cell, {"error text": "no time was left"}


def _measured(cell: Cell, made: Compiled, reference: Any, quick: bool) -> Result:
    sizes = cells.sizes_of(cell, quick)
    found: Result = {"compiling": made.seconds}
    if made.error:
        return found | {"error text": made.error}
    try:
        found |= account(made.program) | {"floor": floor(sizes)}
        return found | timed(sizes, made.program, reference, quick)
    except Exception as failed:  # the others go on
        return found | {"error text": process.why(failed)}


def main() -> None:
    """Runs the cells until the time is over."""
    options = process.options()
    begin = time.monotonic()
    process.say(rulers(options.quick))
    chosen = process.selected(cells.OURS, options.only, options.skip)
    left = options.seconds - (time.monotonic() - begin)
    for cell, found in waves(chosen, left, options.quick, options.wave):
        process.say({"cell": cell.name, **found})
    process.leave()


if __name__ == "__main__":
    main()
