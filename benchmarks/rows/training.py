"""Training steps against PyTorch, against their own products, and against no masks."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks import flops
from benchmarks.report import Comparison, Row, Table, Target, cores
from benchmarks.rows.common import (
    DENSITY,
    JAX,
    PEAK_SIZES,
    TORCH,
    costs,
    once,
    peak_sides,
    ready,
    share_of,
    shares_table,
    split_peak,
    threads,
    value,
)
from benchmarks.timing import Side, Worker, ratio, spread, take_turns


def lenet(quick: bool) -> Row:
    """LeNet-300-100 against arrangements in PyTorch, and against its products."""
    n = cores()
    replicas, batch = 8 * n, 60
    widths, side = ([300, 100], 28) if not quick else ([20, 10], 8)
    examples = 600 if quick else 55_000
    sizes = [side * side, *widths, 10]
    model = "-".join(["lenet", *map(str, widths)])
    peak_sizes = [32] if quick else list(PEAK_SIZES)
    ours = {
        "model": model,
        "shape": [side, side, 1],
        "examples": examples,
        "batch": batch,
        "density": DENSITY,
        "replicas": replicas,
        "steps": 5 if quick else 200,
        "ruler": sizes,
        "ruler_steps": 5 if quick else 1500,
        "peak_sizes": peak_sizes,
        "peak_flops": 1e5 if quick else 1.5e10,
    }
    shared = {
        "widths": widths,
        "examples": examples,
        "batch": batch,
        "density": DENSITY,
    }
    peer = shared | {"pixels": side * side, "steps": 5 if quick else 600}
    loader = shared | {"side": side, "steps": 5 if quick else 250}
    fused = peer | {"arrangement": "fused"}
    us, ruler = "lottery_jax", "its products alone"
    plain = f"PyTorch, plain loop, {n} threads"
    faster = f"PyTorch, fused Adam and foreach masks, {n} threads"
    processes = f"PyTorch, the same, {n} single-thread processes"
    loops = {"PyTorch, open_lth's loop, loading in the same process": 0}
    if not quick:
        loops["PyTorch, open_lth's loop, 2 processes load"] = 2

    def torch(setup: str, arguments: Mapping[str, Any], number: int = 0) -> Any:
        own = number or threads(quick)
        return partial(Worker, f"{TORCH}.{setup}", arguments, threads=own)

    with ExitStack() as stack:
        workers = ready(
            stack,
            {
                us: partial(Worker, f"{JAX}.training:dense", ours, devices=n),
                plain: torch("dense:lenet", peer | {"arrangement": "plain"}),
                faster: torch("dense:lenet", fused),
                **{f"core {i}": torch("dense:lenet", fused, 1) for i in range(n)},
                **{
                    name: torch("loader:lenet", loader | {"workers": number})
                    for name, number in loops.items()
                },
            },
            quick,
        )
        sides: dict[str, Side] = {
            us: [(workers[us], "train")],
            plain: [(workers[plain], "train")],
            faster: [(workers[faster], "train")],
            processes: [(workers[f"core {i}"], "train") for i in range(n)],
            **{name: [(workers[name], "train")] for name in loops},
            ruler: [(workers[us], "ruler")],
            **peak_sides(workers[us], peak_sizes),
        }
        rates, square, peak = split_peak(take_turns(sides, 2 if quick else 7))
        spent = costs(workers)
    account = once(
        "accounts:times",
        {
            "model": model,
            "shape": [side, side, 1],
            "batch": batch,
            "sgd": False,
            "density": DENSITY,
            "steps": 5 if quick else 300,
        },
        1,
    )
    peers = [plain, faster, processes, *loops]
    best = max(peers, key=lambda name: spread(rates[name]).median)
    operations = flops.dense_step(sizes, batch)
    weights = sum((a + 1) * b for a, b in zip(sizes, sizes[1:]))
    return Row(
        "lenet",
        f"LeNet-300-100, batch {batch}, Adam 1.2e-3, random masks of density {DENSITY} "
        f"on the kernels, {examples:,} examples of {side * side} pixels (noise) in memory. "
        f"lottery_jax: {replicas} replicas on {n} host devices, one at a time on each, "
        "`training.train` through `replicas.parallel`, loss and error recorded at every "
        "step; the peers train one network per process and read nothing back. Data "
        "orders are drawn beforehand on all sides but in open_lth's loop: a loader that "
        "converts and normalises each image in Python, masks in the forward pass.",
        {name: spread(values) for name, values in rates.items()},
        "replica-steps per second",
        [
            *(Comparison(us, name, ratio(rates[us], rates[name])) for name in peers),
            Comparison(
                us,
                f"the best peer: {best}",
                ratio(rates[us], rates[best]),
                Target(">=", 1.3),
            ),
            Comparison(
                us,
                "the ruler: the step's own matrix products alone",
                ratio(rates[us], rates[ruler]),
                Target(">=", 0.8),
            ),
            Comparison(
                us,
                f"the peak: {square}, by FLOP/s",
                share_of(rates[us], operations, peak),
            ),
            Comparison(
                "the ruler",
                f"the peak: {square}, by FLOP/s",
                share_of(rates[ruler], operations, peak),
            ),
        ],
        {
            "GFLOP in the products of one step": operations / 1e9,
            f"GFLOP/s of {square}": spread(peak).median / 1e9,
            # Reads weight, gradient, two moments, mask; writes weight and moments.
            "MB that optimizer and masks read and write in a step": weights * 29 / 1e6,
            "milliseconds of a step, 1 replica on 1 device": account["milliseconds"],
            "where the milliseconds of a step go": shares_table(
                account["shares"], account["milliseconds"]
            ),
            **spent,
        },
    )


SHAPES = (
    (32, 16, 16, 1),
    (32, 16, 32, 2),
    (16, 32, 32, 1),
    (16, 32, 64, 2),
    (8, 64, 64, 1),
)
"""The 3x3 convolutions of ResNet-20: input size, channels in and out, stride."""


def resnet20(quick: bool) -> Row:
    """ResNet-20 in the compiled loop against stock JAX steps and PyTorch."""
    n = cores()
    replicas = 2 * n
    depth, width, batch = (8, 4, 8) if quick else (20, 16, 128)
    examples = 64 if quick else 10_000
    peak_sizes = [32] if quick else list(PEAK_SIZES)
    model = f"resnet-{depth}-{width}"
    ours = {
        "model": model,
        "examples": examples,
        "batch": batch,
        "density": DENSITY,
        "steps": 1 if quick else 3,
    }
    peer = {
        "blocks": (depth - 2) // 6,
        "width": width,
        "examples": examples,
        "batch": batch,
        "density": DENSITY,
        "steps": 1 if quick else 8,
    }
    peaks = {"peak_sizes": peak_sizes, "peak_flops": 1e5 if quick else 1.5e10}
    us = f"lottery_jax, {replicas} replicas on {n} host devices"
    one = "lottery_jax, 1 replica on 1 device"
    stock = "JAX, stock convolutions, jitted steps from Python, 1 device"
    default = f"PyTorch, default layout, {n} threads"
    last = f"PyTorch, channels-last, {n} threads"

    def jax(setup: str, devices: int, arguments: dict[str, Any]) -> Any:
        return partial(
            Worker, f"{JAX}.training:{setup}", ours | arguments, devices=devices
        )

    def torch(channels_last: bool) -> Callable[[], Worker]:
        arguments = peer | {"channels_last": channels_last}
        own = threads(quick)
        return partial(Worker, f"{TORCH}.residual:resnet", arguments, threads=own)

    alone = {"replicas": 1, "peak_sizes": [], "peak_flops": 1.0}
    with ExitStack() as stack:
        workers = ready(
            stack,
            {
                us: jax("residual", n, peaks | {"replicas": replicas}),
                one: jax("residual", 1, alone),
                stock: jax("residual_stock", 1, {}),
                default: torch(False),
                last: torch(True),
            },
            quick,
        )
        sides: dict[str, Side] = {
            name: [(worker, "train")] for name, worker in workers.items()
        }
        sides |= peak_sides(workers[us], peak_sizes)
        rates, square, peak = split_peak(take_turns(sides, 1 if quick else 5))
        spent = costs(workers)
    setting = {"model": model, "shape": [32, 32, 3], "batch": batch, "sgd": True}
    account = once(
        "accounts:times",
        setting | {"density": DENSITY, "steps": 1 if quick else 3},
        1,
    )
    numbers = [n] if quick else [n, 2 * n, 8 * n]
    memory = once("accounts:memory", setting | {"replicas": numbers}, n)
    temporary = {
        int(k): program["temporary"] for k, program in memory["programs"].items()
    }
    few, most = temporary[n], temporary[numbers[-1]]
    operations = account["flops"]
    return Row(
        "resnet20",
        f"ResNet-20, batch {batch}, CIFAR-10's shapes (noise in memory, no "
        f"augmentation), SGD with momentum, random masks of density {DENSITY}. "
        "lottery_jax: the compiled loop of `training.train`, the replicas of a device one "
        "after another. The stock side is the same model and step with "
        "`lax.conv_general_dilated` and its own gradients, one jitted call per step, its "
        "state donated.",
        {name: spread(values) for name, values in rates.items()},
        "replica-steps per second",
        [
            Comparison(us, stock, ratio(rates[us], rates[stock])),
            Comparison(one, stock, ratio(rates[one], rates[stock])),
            Comparison(us, one, ratio(rates[us], rates[one])),
            Comparison(us, default, ratio(rates[us], rates[default]), Target(">", 1.0)),
            Comparison(us, last, ratio(rates[us], rates[last])),
            Comparison(
                us,
                f"the peak: {square}, by FLOP/s",
                share_of(rates[us], operations, peak),
            ),
            Comparison(
                f"temporary memory of a device, {numbers[-1]} replicas in all",
                f"{n} replicas in all",
                value(most / few),
                Target("<=", 1.05),
            ),
            Comparison(
                f"temporary memory of a device, {numbers[-1]} replicas in all",
                "the activations of one replica, by arithmetic, and its state",
                value(most / (memory["activations"] + memory["state"])),
                # Beside it, arguments and results hold the states of all.
                Target("<=", 1.05),
            ),
        ],
        {
            "GFLOP in the products of one step": operations / 1e9,
            f"GFLOP/s of {square}": spread(peak).median / 1e9,
            "activations of one replica by arithmetic, MB": memory["activations"] / 1e6,
            "state of one replica (weights, momentum, statistics, mask), MB": memory[
                "state"
            ]
            / 1e6,
            "XLA's account of the program on a device, by replicas": Table(
                ["replicas", "temporary MB", "arguments MB", "outputs MB"],
                [
                    [number, *(f"{1e-6 * program[k]:.1f}" for k in _ACCOUNT)]
                    for number, program in memory["programs"].items()
                ],
            ),
            "milliseconds of a step, 1 replica on 1 device": account["milliseconds"],
            "where the milliseconds of a step go": shares_table(
                account["shares"], account["milliseconds"]
            ),
            "3x3 convolutions alone, forward and both gradients": _convolutions(
                n, batch, quick
            ),
            **spent,
        },
    )


_ACCOUNT = ("temporary", "arguments", "outputs")


def _convolutions(n: int, batch: int, quick: bool) -> Table:
    """GFLOP/s of the convolutions of the network by themselves, in turns."""
    shapes = SHAPES[:1] if quick else SHAPES
    sizes = {
        "batch": batch,
        "operations": 1.0 if quick else 2e10,
        "shapes": [list(shape) for shape in shapes],
    }
    setup = f"{TORCH}.residual:convolutions"
    layouts = {"PyTorch": False, "PyTorch, channels-last": True}
    with ExitStack() as stack:
        workers = ready(
            stack,
            {
                f"lottery_jax, {n} devices": partial(
                    Worker, f"{JAX}.accounts:convolutions", sizes, devices=n
                ),
                **{
                    f"{name}, {n} threads": partial(
                        Worker,
                        setup,
                        sizes | {"channels_last": last},
                        threads=threads(quick),
                    )
                    for name, last in layouts.items()
                },
            },
            quick,
        )
        sides: dict[str, Side] = {
            f"{name}/{i}": [(worker, str(i))]
            for i in range(len(shapes))
            for name, worker in workers.items()
        }
        rates = take_turns(sides, 1 if quick else 3)
    rows = []
    for i, (size, inputs, outputs, stride) in enumerate(shapes):
        text = f"{size}x{size}, {inputs} to {outputs} channels, stride {stride}"
        numbers = [spread(rates[f"{name}/{i}"]).median / 1e9 for name in workers]
        rows.append([text, *(f"{number:.0f}" for number in numbers)])
    return Table(["GFLOP/s", *workers], rows)


def masking(quick: bool) -> Row:
    """What masks cost a step."""
    n = cores()
    networks: dict[str, dict[str, Any]] = {
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
        networks["LeNet-300-100"] |= {"model": "lenet-20", "examples": 600}
        networks = {name: sizes | {"steps": 5} for name, sizes in networks.items()}
    common = {"density": DENSITY, "replicas": n}
    with ExitStack() as stack:
        workers = ready(
            stack,
            {
                name: partial(
                    Worker, f"{JAX}.training:masking", sizes | common, devices=n
                )
                for name, sizes in networks.items()
            },
            quick,
        )
        sides: dict[str, Side] = {
            f"{name}, {kind}": [(worker, kind)]
            for name, worker in workers.items()
            for kind in ("masked", "unmasked")
        }
        rates = take_turns(sides, 2 if quick else 11)
        spent = costs(workers)
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
        spent,
    )
