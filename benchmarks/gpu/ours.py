"""Our cells, in one process: several are compiled at once, then each is timed alone.

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
    """A cell on its way: its program, or why there is none."""

    program: Any
    seconds: float
    error: str


def compile_cell(cell: Cell, quick: bool) -> Compiled:
    """Traces and compiles; never raises."""
    begin = time.perf_counter()
    try:
        program, error = lower(cells.sizes_of(cell, quick)).compile(), ""
    except Exception as failed:
        program, error = None, process.why(failed)
    return Compiled(program, time.perf_counter() - begin, error)


def waves(
    chosen: Sequence[Cell], seconds: float, quick: bool, threads: int
) -> Iterator[tuple[Cell, Result]]:
    """Compiles as many cells at once as there are threads, times them, and so on.

    Nothing is compiled while something is timed.

    Args:
      chosen: the cells, the most telling first.
      seconds: until when, from now on.
      quick: the quick sizes.
      threads: how many are compiled at once.

    Yields:
      Each cell with what was found; those that no time was left for say so.
    """
    end = time.monotonic() + seconds
    making: dict[Cell, futures.Future[Compiled]] = {}
    asked: list[Cell] = []  # and not yet measured
    left, cost = list(chosen), 0.0  # seconds of one cell in the last wave
    pool = futures.ThreadPoolExecutor(threads)
    while (left or asked) and (begin := time.monotonic()) < end:
        size = int((end - begin) / cost) if cost else threads
        size = max(min(size, threads + threads // 2) - len(asked), 0)
        if not size and not asked:
            break
        wave, left = left[:size], left[size:]
        new = [r for r in map(reference_of, wave) if r is not None]
        new = [cell for cell in dict.fromkeys((*new, *wave)) if cell not in making]
        for cell in new:  # data is made and moved once, before threads ask for it
            start_of(cells.sizes_of(cell, quick))
        making |= {cell: pool.submit(compile_cell, cell, quick) for cell in new}
        asked += wave
        # What takes very long does not keep all others from being timed.
        waiting = max((end - time.monotonic()) / 2, 1)
        futures.wait([making[cell] for cell in (*new, *asked)], waiting)
        ready = [cell for cell in asked if making[cell].done()]
        for cell in ready:
            if time.monotonic() > end:
                break
            asked.remove(cell)
            wanted = reference_of(cell)
            right = making.get(wanted) if wanted is not None else None
            reference = right.result() if right is not None and right.done() else None
            made = making.pop(cell).result()  # with its memory
            yield cell, _measured(cell, made, reference, quick)
        cost = (time.monotonic() - begin) / max(len(ready), 1)
    for cell in (*asked, *left):
        yield cell, {"error text": "no time was left"}


def _measured(
    cell: Cell, made: Compiled, reference: Compiled | None, quick: bool
) -> Result:
    sizes = cells.sizes_of(cell, quick)
    found: Result = {"compiling": made.seconds}
    if made.error:
        return found | {"error text": made.error}
    right = reference.program if reference is not None else None
    try:
        found |= account(made.program) | {"floor": floor(sizes)}
        return found | timed(sizes, made.program, right, quick)
    except Exception as failed:  # the others go on
        return found | {"error text": process.why(failed)}


def main() -> None:
    """Runs the cells until the time is over."""
    options = process.options()
    begin = time.monotonic()
    process.say(rulers(options.quick))
    chosen = process.selected(cells.OURS, options.only, options.skip)
    left = options.seconds - (time.monotonic() - begin)
    threads = min(options.threads, os.cpu_count() or 1)
    for cell, found in waves(chosen, left, options.quick, threads):
        process.say({"cell": cell.name, **found})
    process.leave()


if __name__ == "__main__":
    main()
