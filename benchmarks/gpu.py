"""Many replicas on one accelerator: every way to convolve, every precision, one table.

    python -m benchmarks.gpu                       # within 9 minutes, on the first device
    python -m benchmarks.gpu --models resnet-20 --replicas 1 9 --minutes 4
    python -m benchmarks.gpu --out gpu.json        # the numbers too, and gpu.md
    python -m benchmarks.gpu --quick               # does it run? on a CPU as well

ResNet-20 and VGG-16 at batch 128 on CIFAR-10's shapes (noise), flipped and cropped on the
device, SGD with momentum, masks of density 0.2. Every cell of the table is one compiled
training loop, timed until its results are there. What fails says so and the next cell
runs; what no time is left for is "not run". The most telling cells come first.
"""

import argparse
import gc
import json
import os
import pathlib
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks import flops, report
from benchmarks.jax_sides.common import compile_training, make_arguments, make_task
from lottery_jax.convolution import METHODS, Method
from lottery_jax.replicas import PRECISIONS, Execution, Precision
from lottery_jax.types import Array, Task

AIM = 2.0
"""9 replicas are to take no more than this many times the time of one."""


class Cell(NamedTuple):
    """One line of the table.

    Attributes:
      model: a name of `models.make`.
      replicas: trained together, vmapped on the device.
      convolution: how kernels of several replicas are executed; None for one replica,
        where all ways are the same.
      precision: of products.
    """

    model: str
    replicas: int
    convolution: Method | None
    precision: Precision


class Sizes(NamedTuple):
    """What all cells share.

    Attributes:
      batch: examples per step.
      examples: in the training set.
      steps: the most in one call.
      seconds: that a timed call should take, about.
      peak: sides of the square products that the peak is measured with.
    """

    batch: int
    examples: int
    steps: int
    seconds: float
    peak: tuple[int, ...]


FULL = Sizes(128, 50_000, 60, 0.5, (4096, 8192, 16_384))
QUICK = Sizes(8, 64, 2, 0.0, (64,))


def execution(cell: Cell) -> Execution:
    """The settings of a cell."""
    return Execution(1, 0, convolution=cell.convolution, precision=cell.precision)


def cells(
    models: Sequence[str],
    replicas: Sequence[int],
    convolutions: Sequence[Method],
    precisions: Sequence[Precision],
) -> list[Cell]:
    """All cells, the most telling first: 1 and 9 replicas, as they run by default."""
    precision_rank = {"tensorfloat32": 0, "bfloat16": 1, "float32": 4}
    way_rank = {None: 0, "grouped": 0, "patches": 1, "loop": 2}
    number_rank = {1: 0, 9: 0, 27: 2, 3: 3}

    def rank(cell: Cell) -> int:
        own = precision_rank[cell.precision] + way_rank[cell.convolution]
        return own + number_rank.get(cell.replicas, 4)

    found = [
        Cell(model, number, way, precision)
        for number in replicas
        for way in (convolutions if number > 1 else [None])
        for precision in precisions
        for model in models
    ]
    return sorted(found, key=rank)


def measure(cell: Cell, sizes: Sizes) -> dict[str, float]:
    """Compiles and times one cell.

    Returns:
      `rate` in replica-steps per second, `step_ms` of a step of all replicas,
      `compile_s` (tracing included), `memory_gb` by XLA's account, `flops` of the
      products of a replica-step.
    """
    task, tx, one = _setting(cell.model, sizes)
    data, *own, first, _ = one
    own = jax.jit(
        lambda tree: jax.tree.map(lambda x: jnp.repeat(x, cell.replicas, axis=0), tree)
    )(own)
    keys = jax.random.split(jax.random.key(0), cell.replicas)
    args = (data, own[0], keys, own[2], first)
    run = compile_training(task, tx, execution(cell), sizes.steps)
    begin = time.perf_counter()
    compiled = run.lower(*args, np.int32(1)).compile()
    compiling = time.perf_counter() - begin

    def call(steps: int) -> float:
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*args, np.int32(steps)))
        return (time.perf_counter() - begin) / steps

    few = min(4, sizes.steps)
    call(few)
    guess = call(few)
    steps = min(max(round(sizes.seconds / guess), few), sizes.steps)
    seconds = statistics.median(call(steps) for _ in range(3))
    found = {
        "rate": cell.replicas / seconds,
        "step_ms": 1e3 * seconds,
        "compile_s": compiling,
        "flops": float(flops.step(task)),
    }
    account = compiled.memory_analysis()
    if account is not None:
        total = (
            account.temp_size_in_bytes
            + account.argument_size_in_bytes
            + account.output_size_in_bytes
        )
        found["memory_gb"] = total / 1e9
    return found


@lru_cache(maxsize=2)  # cells of two models alternate
def _setting(
    model: str, sizes: Sizes
) -> tuple[Task, optax.GradientTransformation, tuple[Any, ...]]:
    """Task, optimizer, and the arguments of one replica, on the device."""
    augment = ("flip", "crop")
    shape = [32, 32, 3]
    task = make_task(model, shape, sizes.examples, sizes.batch, augment=augment)
    tx = optax.sgd(0.01, 0.9)
    args = make_arguments(task, tx, Execution(1, 0), 1, 0.2, sizes.steps)
    return task, tx, args


def peak(sides: Sequence[int], seconds: float) -> float:
    """Floating-point operations per second of the best square products in bfloat16."""
    best = 0.0
    for side in sides:
        a, b = jax.random.normal(jax.random.key(0), (2, side, side), jnp.bfloat16)

        @jax.jit
        def products(a: Array, b: Array, steps: Array) -> Array:
            def step(_: Array, c: Array) -> Array:
                # Scaled, so that nothing overflows; the next product needs this one.
                return (c @ b) * jnp.bfloat16(c.shape[0] ** -0.5)

            return lax.fori_loop(0, steps, step, a)

        def rate(steps: int, a: Array = a, b: Array = b, run: Any = products) -> float:
            begin = time.perf_counter()
            run(a, b, jnp.int32(steps)).block_until_ready()
            return 2 * a.shape[0] ** 3 * steps / (time.perf_counter() - begin)

        rate(1)
        steps = max(1, round(seconds * rate(4) / (2 * side**3)))
        best = max(best, *(rate(steps) for _ in range(3)))
    return best


class Found:
    """What has been measured so far, and how it is shown.

    Args:
      wanted: all cells.
      sizes: what they share.
      path: of the JSON, or None.
    """

    def __init__(
        self, wanted: Sequence[Cell], sizes: Sizes, path: pathlib.Path | None
    ) -> None:
        self.values: dict[Cell, dict[str, float] | str] = dict.fromkeys(
            wanted, "not run"
        )
        self.peak = float("nan")
        self._sizes, self._path = sizes, path
        self._lock = threading.Lock()

    def put(self, cell: Cell, value: dict[str, float] | str) -> None:
        """Adds a cell; the JSON is written anew."""
        with self._lock:
            self.values[cell] = value
        self.save()

    def save(self) -> None:
        """Writes JSON and, beside it, the table."""
        if self._path is None:
            return
        entries = [
            cell._asdict() | (value if isinstance(value, dict) else {"outcome": value})
            for cell, value in self.values.items()
        ]
        device = jax.devices()[0]
        stored = {
            "device": device.device_kind,
            "platform": device.platform,
            "peak_flops": self.peak,
            "batch": self._sizes.batch,
            "versions": report.versions(),
            "cells": entries,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(stored, indent=1) + "\n")
        self._path.with_suffix(".md").write_text(self.markdown())

    def markdown(self) -> str:
        """The table, sorted, and whether the aim is reached."""
        header = [
            "model",
            "replicas",
            "convolution",
            "precision",
            "replica-steps/s",
            "ms a step of all",
            "times 1 replica",
            "share of bf16 peak",
            "memory GB",
            "compiling s",
        ]
        order = [*METHODS, None]
        shown = sorted(
            self.values.items(),
            key=lambda item: (
                item[0].model,
                PRECISIONS.index(item[0].precision),
                item[0].replicas,
                order.index(item[0].convolution),
            ),
        )
        lines = [self._line(cell, value) for cell, value in shown]
        device = jax.devices()[0].device_kind
        text = [
            f"{device}, batch {self._sizes.batch}, peak (bfloat16 square products) "
            f"{self.peak / 1e12:.3g} TFLOP/s, jax {jax.__version__}",
            "",
            *report.table(header, lines),
            "",
            *self._aims(),
        ]
        return "\n".join(text).rstrip("\n") + "\n"

    def _line(self, cell: Cell, value: dict[str, float] | str) -> list[str]:
        names = [cell.model, str(cell.replicas), cell.convolution or "-"]
        names.append(cell.precision)
        if isinstance(value, str):
            return [*names, value, *["-"] * 5]
        times = self._times_one(cell)
        return [
            *names,
            f"{value['rate']:.4g}",
            f"{value['step_ms']:.3g}",
            "-" if times is None else f"{times:.2f}",
            f"{100 * value['rate'] * value['flops'] / self.peak:.2g}%",
            f"{value['memory_gb']:.2f}" if "memory_gb" in value else "-",
            f"{value['compile_s']:.1f}",
        ]

    def _times_one(self, cell: Cell) -> float | None:
        """The time of a step against one replica of the same model and precision."""
        own = self.values[cell]
        one = self.values.get(cell._replace(replicas=1, convolution=None))
        if isinstance(own, dict) and isinstance(one, dict):
            return own["step_ms"] / one["step_ms"]
        return None

    def _aims(self) -> list[str]:
        """For 9 replicas: the best way to convolve, and whether it reaches the aim."""
        best: dict[tuple[str, str], tuple[float, str]] = {}
        for cell in self.values:
            times = self._times_one(cell)
            if cell.replicas == 9 and times is not None:
                key = (cell.model, cell.precision)
                own = (times, str(cell.convolution))
                best[key] = min(best.get(key, own), own)
        return [
            f"- {model}, {precision}: 9 replicas take {times:.2f} times the time of one "
            f"({way}); aim <= {AIM:g}: {'yes' if times <= AIM else '**no**'}"
            for (model, precision), (times, way) in sorted(best.items())
        ]


def outcome(error: Exception) -> str:
    """What a cell says that failed, in a few words."""
    text = str(error)
    low = text.lower()
    if "resource_exhausted" in low or "out of memory" in low:
        return "out of memory"
    first = next((line for line in text.splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:60]}".replace("|", "/")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--models", nargs="+", default=None)
    parser.add_argument("--replicas", nargs="+", type=int, default=None)
    parser.add_argument(
        "--convolutions", nargs="+", choices=METHODS, default=list(METHODS)
    )
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS)
    )
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="then the rest is not run"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON file")
    chosen = parser.parse_args(arguments)
    # Nearly all of the device, unless something else was said; read when JAX starts it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    begin = time.monotonic()
    sizes = QUICK if chosen.quick else FULL
    if chosen.batch:
        sizes = sizes._replace(batch=chosen.batch)
    wanted = cells(
        chosen.models or (["resnet-8-4"] if chosen.quick else ["resnet-20", "vgg-16"]),
        chosen.replicas or ([1, 2] if chosen.quick else [1, 3, 9, 27]),
        chosen.convolutions,
        chosen.precisions,
    )
    found = Found(wanted, sizes, chosen.out)
    limit = 60 * chosen.minutes

    def give_up() -> None:
        """A cell that compiles for minutes cannot be interrupted from within."""
        print("the time is over in the middle of a cell", file=sys.stderr)
        found.save()
        print(found.markdown(), flush=True)
        os._exit(0)

    watchdog = threading.Timer(limit + 20, give_up)
    watchdog.daemon = True
    watchdog.start()
    found.peak = peak(sizes.peak, sizes.seconds)
    for cell in wanted:
        spent = time.monotonic() - begin
        if spent > limit:
            break
        try:
            value: dict[str, float] | str = measure(cell, sizes)
        except Exception as error:  # whatever it is, the other cells run
            value = outcome(error)
        gc.collect()
        found.put(cell, value)
        text = value if isinstance(value, str) else f"{value['rate']:.4g} steps/s"
        print(f"{spent:.0f} s: {' '.join(map(str, cell))}: {text}", file=sys.stderr)
    watchdog.cancel()
    found.save()
    print(found.markdown(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
