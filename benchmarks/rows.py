"""The benchmarks, one function per row: what is compared with what, and the targets.

A row function takes `quick` (tiny sizes: does it run?) and returns a `report.Row`. This
module imports neither JAX nor PyTorch: the work is done by `timing.Worker` processes.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from benchmarks.report import Comparison, Row, Target, cores
from benchmarks.timing import ROOT, Side, Spread, Worker, ratio, spread, take_turns

JAX = "benchmarks.jax_sides"
COMPACT = "benchmarks.compact_sides"
TORCH = "benchmarks.torch_sides"
DENSITY = 0.2


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


def _ready(stack: ExitStack, workers: Mapping[str, Worker]) -> dict[str, Worker]:
    """Waits for workers, which prepare at the same time and end with the stack."""
    for worker in workers.values():
        stack.enter_context(worker)
    for worker in workers.values():
        worker.wait_ready()
    return dict(workers)


def _once(setup: str, arguments: Mapping[str, Any], devices: int) -> dict[str, Any]:
    """The facts that the only program of a worker returns, in a process of its own."""
    with Worker(f"{JAX}:{setup}", arguments, devices=devices, warm=False) as worker:
        (program,) = worker.wait_ready()
        return worker.run(program)[1]


def _value(number: float) -> Spread:
    return Spread(number, number, number)


def step_flops(sizes: Sequence[int], batch: int) -> int:
    """Floating-point operations in the matrix products of one step of a dense network.

    Forward, gradients in the weights, gradients in the inputs of all but the first layer.

    Args:
      sizes: units of each layer, the inputs first.
      batch: examples per step.
    """
    weights = [a * b for a, b in zip(sizes, sizes[1:])]
    return 2 * batch * (3 * sum(weights) - weights[0])


# --- against PyTorch ------------------------------------------------------------------


def lenet(quick: bool) -> Row:
    """LeNet-300-100 against three arrangements in PyTorch, and against its products."""
    n = cores()
    replicas, batch = 4 * n, 60
    widths, shape = ([300, 100], [28, 28, 1]) if not quick else ([20, 10], [8, 8, 1])
    examples = 600 if quick else 55_000
    pixels = shape[0] * shape[1]
    sizes = [pixels, *widths, 10]
    ours = {
        "model": "-".join(["lenet", *map(str, widths)]),
        "shape": shape,
        "examples": examples,
        "batch": batch,
        "density": DENSITY,
        "replicas": replicas,
        "steps": 5 if quick else 250,
        "ruler": sizes,
        "ruler_steps": 5 if quick else 1500,
        "peak_size": 64 if quick else 2048,
        "peak_steps": 1,
    }
    peer = {
        "widths": widths,
        "pixels": pixels,
        "examples": examples,
        "batch": batch,
        "density": DENSITY,
        "steps": 5 if quick else 600,
    }
    plain, fused = peer | {"arrangement": "plain"}, peer | {"arrangement": "fused"}
    with ExitStack() as stack:
        workers = _ready(
            stack,
            {
                "jax": Worker(f"{JAX}:lenet", ours, devices=n),
                "plain": Worker(f"{TORCH}:lenet", plain, threads=n),
                "fused": Worker(f"{TORCH}:lenet", fused, threads=n),
                **{
                    f"core {i}": Worker(f"{TORCH}:lenet", fused, threads=1)
                    for i in range(n)
                },
            },
        )
        a = f"PyTorch, plain loop, {n} threads"
        b = f"PyTorch, fused Adam and foreach masks, {n} threads"
        c = f"PyTorch, the same, {n} single-thread processes"
        sides: dict[str, Side] = {
            "lottery_jax": [(workers["jax"], "train")],
            a: [(workers["plain"], "train")],
            b: [(workers["fused"], "train")],
            c: [(workers[f"core {i}"], "train") for i in range(n)],
            "ruler": [(workers["jax"], "ruler")],
            "peak": [(workers["jax"], "peak")],
        }
        rates = take_turns(sides, 2 if quick else 11)
    best = max((a, b, c), key=lambda name: spread(rates[name]).median)
    flops = step_flops(sizes, batch)
    executed = [rate * flops for rate in rates["lottery_jax"]]
    ruled = [rate * flops for rate in rates["ruler"]]
    us = "lottery_jax"
    comparisons = [
        Comparison(us, a, ratio(rates[us], rates[a]), Target(">=", 3.2)),
        Comparison(us, b, ratio(rates[us], rates[b])),
        Comparison(us, c, ratio(rates[us], rates[c])),
        Comparison(
            us,
            f"the best peer: {best}",
            ratio(rates[us], rates[best]),
            Target(">", 1.1),
        ),
        Comparison(
            us,
            "the ruler: the step's own matrix products alone",
            ratio(rates[us], rates["ruler"]),
            Target(">=", 0.6),
        ),
        Comparison(us, "2048-cube products, by FLOP/s", ratio(executed, rates["peak"])),
        Comparison(
            "the ruler", "2048-cube products, by FLOP/s", ratio(ruled, rates["peak"])
        ),
    ]
    summaries = {name: spread(values) for name, values in rates.items()}
    peak = summaries.pop("peak")
    return Row(
        "lenet",
        f"LeNet-300-100, batch {batch}, Adam 1.2e-3, random masks of density {DENSITY} "
        f"on the kernels, {examples:,} examples of {pixels} pixels (noise) in memory. "
        f"lottery_jax: {replicas} replicas on {n} host devices, one at a time on each, "
        "`training.train` through `replicas.parallel`, loss and error recorded at every "
        "step; the peers train one network per process and read nothing back. Data "
        "orders are drawn beforehand on all sides.",
        summaries,
        "replica-steps per second",
        comparisons,
        {
            "GFLOP in the products of one step": flops / 1e9,
            "GFLOP/s of 2048-cube products": peak.median / 1e9,
        },
    )


def resnet20(quick: bool) -> Row:
    """ResNet-20 in the compiled loop against stock JAX steps and PyTorch."""
    n = cores()
    depth, width, batch = (8, 4, 8) if quick else (20, 16, 128)
    examples = 64 if quick else 10_000
    ours = {
        "model": f"resnet-{depth}-{width}",
        "examples": examples,
        "batch": batch,
        "density": DENSITY,
    }
    peer = {
        "blocks": (depth - 2) // 6,
        "width": width,
        "examples": examples,
        "batch": batch,
        "density": DENSITY,
        "steps": 1 if quick else 8,
    }
    steps = 1 if quick else 4
    loop = ours | {"replicas": n, "steps": steps}
    alone = ours | {"replicas": 1, "steps": steps}
    us = f"lottery_jax, {n} replicas on {n} host devices"
    one = "lottery_jax, 1 replica on 1 device"
    stock = "JAX, stock convolutions, jitted steps from Python, 1 device"
    default = f"PyTorch, default layout, {n} threads"
    last = f"PyTorch, channels-last, {n} threads"
    with ExitStack() as stack:
        workers = _ready(
            stack,
            {
                us: Worker(f"{JAX}:resnet", loop, devices=n),
                one: Worker(f"{JAX}:resnet", alone, devices=1),
                stock: Worker(
                    f"{JAX}:resnet_stock", ours | {"steps": steps}, devices=1
                ),
                default: Worker(
                    f"{TORCH}:resnet", peer | {"channels_last": False}, threads=n
                ),
                last: Worker(
                    f"{TORCH}:resnet", peer | {"channels_last": True}, threads=n
                ),
            },
        )
        sides: dict[str, Side] = {
            name: [(worker, "train")] for name, worker in workers.items()
        }
        rates = take_turns(sides, 1 if quick else 5)
    return Row(
        "resnet20",
        f"ResNet-20, batch {batch}, CIFAR-10's shapes (noise in memory, no "
        f"augmentation), SGD with momentum, random masks of density {DENSITY}. "
        "lottery_jax: the compiled loop of `training.train`. The stock side is the same "
        "model and step with `lax.conv_general_dilated` and its own gradients, one "
        "jitted call per step, its state donated.",
        {name: spread(values) for name, values in rates.items()},
        "replica-steps per second",
        [
            Comparison(us, stock, ratio(rates[us], rates[stock]), Target(">=", 1.8)),
            Comparison(one, stock, ratio(rates[one], rates[stock])),
            Comparison(us, default, ratio(rates[us], rates[default])),
            Comparison(us, last, ratio(rates[us], rates[last])),
        ],
    )


def paths(quick: bool) -> Row:
    """Linear paths between networks against PyTorch, and against their products."""
    n = cores()
    widths, shape = ([300, 100], [28, 28, 1]) if not quick else ([20, 10], [8, 8, 1])
    pairs, alphas, test = (9, 30, 10_000) if not quick else (2, 3, 100)
    pixels = shape[0] * shape[1]
    model = "-".join(["lenet", *map(str, widths)])
    common = {"pairs": pairs, "alphas": alphas, "test": test}
    batch = 500 if not quick else 50
    ours = common | {
        "model": model,
        "shape": shape,
        "ruler": [pixels, *widths, 10],
        "ruler_batch": batch,
    }
    peer = common | {"widths": widths, "pixels": pixels}
    sizes = (500, 2000, 10_000) if not quick else (50,)
    us = "lottery_jax"
    with ExitStack() as stack:
        workers = _ready(
            stack,
            {
                us: Worker(f"{JAX}:paths", ours, devices=n),
                **{
                    f"PyTorch, batch {size:,}, {n} threads": Worker(
                        f"{TORCH}:paths", peer | {"batch": size}, threads=n
                    )
                    for size in sizes
                },
            },
        )
        sides: dict[str, Side] = {
            name: [(worker, "paths")] for name, worker in workers.items()
        }
        sides["ruler"] = [(workers[us], "ruler")]
        rates = take_turns(sides, 1 if quick else 3)
    peers = [name for name in rates if name.startswith("PyTorch")]
    best = max(peers, key=lambda name: spread(rates[name]).median)
    memory = _once(
        "paths_memory",
        {
            "model": model,
            "shape": shape,
            "test": test,
            "pairs": 2,
            "alphas": [alphas, 10 * alphas],
        },
        1,
    )
    few, many = memory[str(alphas)], memory[str(10 * alphas)]
    growth = (many["temporary"] - few["temporary"]) / max(few["temporary"], 1)
    return Row(
        "paths",
        f"{model}: error and loss of {pairs} pairs x {alphas} alphas on {test:,} images of "
        f"{pixels} pixels (noise, uint8 in memory, normalised as they are read; the peer's "
        "are normalised float32). lottery_jax: `connectivity.evaluate_many`, one point at "
        f"a time on each of {n} host devices. The ruler is the forward products alone at "
        f"{batch} rows. Memory is XLA's own account of `error_along_path`.",
        {name: spread(values) for name, values in rates.items()},
        "images per second",
        [
            Comparison(
                us,
                "the ruler: the same products alone",
                ratio(rates[us], rates["ruler"]),
                Target(">=", 0.9),
            ),
            Comparison(
                us,
                f"the best peer: {best}",
                ratio(rates[us], rates[best]),
                Target(">=", 1.0),
            ),
            Comparison(
                f"growth of temporary memory from {alphas} to {10 * alphas} alphas",
                "",
                _value(growth),
                Target("<=", 0.01),
                "of it",
            ),
        ],
        {"memory in bytes, by alphas": memory},
    )


# --- against itself -------------------------------------------------------------------


def masking(quick: bool) -> Row:
    """What masks cost a step."""
    n = cores()
    networks = {
        "LeNet-300-100": {
            "model": "lenet-300-100",
            "shape": [28, 28, 1],
            "examples": 55_000,
            "batch": 60,
            "learning_rate": 1.2e-3,
            "steps": 600,
        },
        "MNIST-1D MLP": {
            "model": "mlp-100-100",
            "shape": [40],
            "examples": 3000,
            "batch": 100,
            "learning_rate": 5e-3,
            "steps": 4000,
        },
    }
    if quick:
        networks["LeNet-300-100"] |= {
            "model": "lenet-20",
            "examples": 600,
        }
        networks = {name: sizes | {"steps": 5} for name, sizes in networks.items()}
    common = {"density": DENSITY, "replicas": n}
    with ExitStack() as stack:
        workers = _ready(
            stack,
            {
                name: Worker(f"{JAX}:masking", sizes | common, devices=n)
                for name, sizes in networks.items()
            },
        )
        sides: dict[str, Side] = {
            f"{name}, {kind}": [(worker, kind)]
            for name, worker in workers.items()
            for kind in ("masked", "unmasked")
        }
        rates = take_turns(sides, 2 if quick else 15)
    return Row(
        "masking",
        f"`training.train` with random masks of density {DENSITY} against the same loop "
        f"written by hand without masks, Adam, {n} replicas on {n} host devices. "
        "LeNet-300-100: batch 60. MNIST-1D MLP: 40-100-100-10, batch 100. Ratios are of "
        "time: 1.05 is 5% more.",
        {name: spread(values) for name, values in rates.items()},
        "replica-steps per second",
        [
            Comparison(
                f"time of a masked step, {name}",
                "an unmasked step",
                ratio(rates[f"{name}, unmasked"], rates[f"{name}, masked"]),
                Target("<=", 1.05),
            )
            for name in networks
        ],
    )


def branching(quick: bool) -> Row:
    """What branches of shared trunks cost against as many steps of plain training."""
    n = cores()
    steps = 900 if not quick else 6
    sizes = {
        "model": "lenet-300-100" if not quick else "lenet-20",
        "shape": [28, 28, 1],
        "examples": 55_000 if not quick else 600,
        "batch": 60,
        "inits": 3,
        "branches": 3,
        "rewind_steps": [0, steps // 10, steps // 3],
        "steps": steps,
    }
    with Worker(f"{JAX}:branching", sizes, devices=n) as worker:
        worker.wait_ready()
        sides: dict[str, Side] = {
            name: [(worker, name)] for name in ("branches", "plain")
        }
        rates = take_turns(sides, 1 if quick else 5)
    return Row(
        "branching",
        f"LeNet-300-100, batch 60, Adam, {steps} steps: 3 inits x 3 branches from each of "
        f"{sizes['rewind_steps']} as one batch of 27 rows on {n} host devices, each "
        "joining at its rewind step, data orders and transfers to the host included; "
        f"against one compiled segment of {n} replicas.",
        {name: spread(values) for name, values in rates.items()},
        "replica-steps per second",
        [
            Comparison(
                "branches",
                "plain training",
                ratio(rates["branches"], rates["plain"]),
                Target(">=", 0.9),
            )
        ],
    )


def compilations(quick: bool) -> Row:
    """How often a study compiles, and how long compiling takes."""
    n, levels = cores(), 3
    counted = _once("compilations", {"levels": levels}, n)
    networks: dict[str, dict[str, Any]] = {
        "LeNet-300-100": {
            "model": "lenet-20" if quick else "lenet-300-100",
            "shape": [28, 28, 1],
            "batch": 60,
            "sgd": False,
        },
        "ResNet-20": {
            "model": "resnet-20",
            "shape": [32, 32, 3],
            "batch": 128,
            "sgd": True,
        },
    }
    if quick:
        del networks["ResNet-20"]
    seconds = {
        name: _once("compiling", sizes | {"replicas": n}, n)
        for name, sizes in networks.items()
    }
    by_level = counted["compilations_by_level"]
    return Row(
        "compilations",
        f"A study of {levels} levels after level 0, {counted['arms']} arms and 2 "
        "replicas of a tiny network, in a fresh process without a compilation cache; "
        "and the training program of two networks, compiled alone.",
        comparisons=[
            Comparison(
                "compilations of the training program",
                "",
                _value(counted["programs"]["train"]),
                Target("<=", 1),
            ),
            Comparison(
                "compilations in levels 2 and 3",
                "",
                _value(sum(by_level[2:])),
                Target("<=", 0),
            ),
            *(
                Comparison(
                    f"compiling {name}", "", _value(s["compile_seconds"]), unit="s"
                )
                for name, s in seconds.items()
            ),
            *(
                Comparison(
                    f"tracing and lowering {name}",
                    "",
                    _value(s["trace_seconds"]),
                    unit="s",
                )
                for name, s in seconds.items()
            ),
        ],
        facts={
            "compilations in levels 0, 1, 2 ... (eager calls included)": by_level,
            "compilations of eager calls that put the results together": counted[
                "compilations_after"
            ],
            "traces in all (eager calls and inner functions included)": counted[
                "traces"
            ],
            "compiled variants of each program": counted["programs"],
        },
    )


def scaling(quick: bool) -> Row:
    """What a replica-step of LeNet costs as replicas, devices and density change."""
    n = cores()
    counts = [n] if quick else [1, 2, 4, 8, 16]
    dense, sparse = 1.0, 0.8**10
    sizes = {
        "model": "lenet-20" if quick else "lenet-300-100",
        "shape": [28, 28, 1],
        "examples": 600 if quick else 55_000,
        "batch": 60,
        "steps": 16 if quick else 1600,
    }
    # Each device takes the same number.
    fitting = {devices: [c for c in counts if c % devices == 0] for devices in {1, n}}
    densities = {devices: [dense] for devices in fitting} | {1: [dense, sparse]}
    with ExitStack() as stack:
        workers = _ready(
            stack,
            {
                str(devices): Worker(
                    f"{JAX}:scaling",
                    sizes | {"replicas": replicas, "densities": densities[devices]},
                    devices=devices,
                )
                for devices, replicas in fitting.items()
            },
        )
        sides: dict[str, Side] = {
            f"{_devices(devices)}, {c} replicas": [
                (workers[str(devices)], f"{c} replicas")
            ]
            for devices, replicas in fitting.items()
            for c in replicas
        }
        level_10 = f"density {sparse:.3f}"
        sides[level_10] = [(workers["1"], level_10)]
        rates = take_turns(sides, 2 if quick else 5)
    first = f"{_devices(1)}, {counts[0]} replicas"
    level_0 = f"{_devices(1)}, {counts[-1]} replicas"
    most = f"{_devices(n)}, {fitting[n][-1]} replicas"
    comparisons = [
        Comparison(
            f"time per replica-step, {name}", first, ratio(rates[first], rates[name])
        )
        for name in sides
        if name not in (first, level_10)
    ]
    comparisons += [
        Comparison(most, level_0, ratio(rates[most], rates[level_0])),
        Comparison(
            f"time per replica-step at level 10 (density {sparse:.3f})",
            "level 0 (density 1)",
            ratio(rates[level_0], rates[level_10]),
        ),
    ]
    return Row(
        "scaling",
        "`lenet`'s training in lottery_jax, the replicas of a device one after another, "
        "all masks full (level 0). Level 10, at 20% per level, with "
        f"{counts[-1]} replicas on 1 device, goes through the same compiled program.",
        {name: spread(values) for name, values in rates.items()},
        "replica-steps per second",
        comparisons,
    )


def _devices(number: int) -> str:
    return f"{number} device{'s' * (number > 1)}"


def study(quick: bool) -> Row:
    """Where the time of a study goes."""
    n = cores()
    sizes = {
        "model": "lenet-20" if quick else "lenet-300-100",
        "shape": [28, 28, 1],
        "examples": 600 if quick else 55_000,
        "held_out": 50 if quick else 5000,
        "batch": 60,
        "steps": 10 if quick else 600,
        "validate_every": 5 if quick else 100,
        "levels": 1 if quick else 4,
        "replicas": 2,
    }
    runs = [_once("study", sizes, n) for _ in range(1 if quick else 3)]

    def over_runs(name: str) -> Spread:
        return spread([run[name] for run in runs])

    return Row(
        "study",
        f"Level 0 and {sizes['levels']} prunings, ticket, reinit and random mask, "
        f"{sizes['replicas']} replicas of LeNet-300-100, {sizes['steps']} steps, "
        f"validated every {sizes['validate_every']} on {sizes['held_out']:,} examples, "
        f"{n} host devices, in memory. The rest is testing, pruning, rewinding, starting "
        "and the host.",
        comparisons=[
            Comparison(
                "training and validation programs",
                "wall time without tracing and compiling",
                over_runs("share_after_compiling"),
            ),
            Comparison(
                "training and validation programs",
                "wall time",
                over_runs("share_of_wall"),
            ),
            Comparison("wall time", "", over_runs("wall_seconds"), unit="s"),
            Comparison(
                "tracing and compiling", "", over_runs("compile_seconds"), unit="s"
            ),
        ],
        facts={
            "seconds of each program (first run)": runs[0]["program_seconds"],
            "seconds of compiling eager calls (first run)": runs[0][
                "eager_compile_seconds"
            ],
            "seconds of everything else (first run)": runs[0]["other_seconds"],
        },
    )


def compaction(quick: bool) -> Row:
    """What a ticket costs in use: dense, without its dead units, as sparse matrices."""
    levels = [7, 13, 18, 20, 23, 26] if not quick else [1, 3]
    batches = [1, 128, 1024] if not quick else [1, 8]
    sizes = {
        "model": "lenet-300-100" if not quick else "lenet-8-6",
        "side": 28 if not quick else 8,
        "examples": 10_000 if not quick else 100,
        "batch": 60 if not quick else 20,
        "steps": 500 if not quick else 5,
        "fraction": 0.2 if not quick else 0.6,
        "levels": levels,
        "batches": batches,
        "seconds": 0.3 if not quick else 0.001,
    }
    with Worker(f"{COMPACT}:compaction", sizes, devices=1) as worker:
        names = worker.wait_ready()
        facts = worker.run("facts")[1]
        sides: dict[str, Side] = {
            name: [(worker, name)] for name in names if name != "facts"
        }
        rates = take_turns(sides, 2 if quick else 5, pause=0.05)
    densities = facts["density"]

    def against_dense(form: str, level: str, batch: int) -> Spread:
        return ratio(
            rates[f"{form}, density {densities[level]}, batch {batch}"],
            rates[f"dense, batch {batch}"],
        )

    def medians(form: str, batch: int) -> dict[str, float]:
        return {
            f"{densities[level]}:": against_dense(form, level, batch).median
            for level in densities
        }

    middle = batches[len(batches) // 2]
    removed = {f"{densities[k]}:": share for k, share in facts["removed"].items()}
    return Row(
        "compaction",
        f"{sizes['model']}, trained tickets of iterative magnitude pruning (global, "
        f"{sizes['fraction']:.0%} per level, rewound to the start, Adam 1.2e-3, "
        f"{sizes['steps']} steps of {sizes['batch']}) on a synthetic task: "
        f"{sizes['side']} x {sizes['side']} pixels, ten classes of three smooth patterns "
        "each, with noise and an empty frame. Forward passes, one jitted call at a time "
        "from Python, each waited for; 1 host device. Dense: full arrays, zeros included "
        "(the same at every density). Compacted: `compact.shrink`. BCOO: the compacted "
        "network's kernels as `jax.experimental.sparse.BCOO`, int32 indices.",
        {name: spread(values) for name, values in rates.items()},
        "images per second",
        [
            Comparison(
                f"{form}, density {densities[level]}, batch {middle}",
                "dense",
                against_dense(form, level, middle),
            )
            for level in densities
            for form in ("compacted", "BCOO")
        ],
        {
            **{
                f"speed of {form} against dense, batch {batch}, by density": medians(
                    form, batch
                )
                for form in ("compacted", "BCOO")
                for batch in batches
            },
            "share of the kernel weights that compaction removes, by density": removed,
            **{
                f"bytes at density {densities[level]}": facts["bytes"][level]
                for level in densities
            },
            **{
                f"units left at density {densities[level]}": facts["units"][level]
                for level in densities
            },
            "test error by density": {
                f"{densities[level]}:": error for level, error in facts["error"].items()
            },
            "error of the dense network": facts["dense_error"],
        },
    )


# --- the demo -------------------------------------------------------------------------


def memory(quick: bool) -> Row:
    """Peak memory and wall time of the demo command."""
    flags: list[str] = []
    if quick:
        text = "--levels 1 --steps 20it --replicas 1 --arms ticket --model mlp-10"
        flags = text.split()
    with tempfile.TemporaryDirectory() as folder:
        cold = _demo(pathlib.Path(folder), "cold", flags)
        warm = cold if quick else _demo(pathlib.Path(folder), "warm", flags)
    peak = max(cold.peak, warm.peak)
    return Row(
        "memory",
        "`python -m experiments.imp`, the demo: 5 replicas, 3 arms, 17 levels on "
        "MNIST-1D, from the start of the process to its figures. Cold: empty caches; "
        "warm: data and compiled programs cached.",
        comparisons=[
            Comparison(
                "peak resident memory", "", _value(peak), Target("<=", 1.5), "GB"
            ),
            Comparison("wall time, cold", "", _value(cold.seconds), unit="s"),
            Comparison("wall time, warm", "", _value(warm.seconds), unit="s"),
        ],
    )


class _Demo(NamedTuple):
    seconds: float
    peak: float  # GB (10^9 bytes)


def _demo(folder: pathlib.Path, name: str, flags: list[str]) -> _Demo:
    command = [sys.executable, "-m", "experiments.imp", "--out", str(folder / name)]
    environment = os.environ | {
        "LOTTERY_JAX_CACHE": str(folder / "cache"),
        "MPLBACKEND": "agg",
    }
    with tempfile.TemporaryFile("w+") as output:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [*command, *flags],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        # Usage of this child alone, where getrusage(RUSAGE_CHILDREN) has the maximum
        # over all children so far.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed:\n{output.read()[-3000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return _Demo(seconds, usage.ru_maxrss * unit / 1e9)


_STORED = ("tyro", "rich", "matplotlib", "xarray", "h5netcdf", "mnist1d", "safetensors")

ROWS: Mapping[str, Benchmark] = {
    "lenet": Benchmark(lenet, ("torch",), "bench"),
    "resnet20": Benchmark(resnet20, ("torch",), "bench"),
    "paths": Benchmark(paths, ("torch",), "bench"),
    "masking": Benchmark(masking),
    "branching": Benchmark(branching),
    "compilations": Benchmark(compilations),
    "scaling": Benchmark(scaling),
    "memory": Benchmark(memory, _STORED, "experiments"),
    "study": Benchmark(study),
    "compaction": Benchmark(compaction),
}
"""All rows by name, in the order of the table."""
