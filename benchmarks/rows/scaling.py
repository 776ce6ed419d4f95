"""What a replica-step costs as replicas, devices and parameters become more."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks.report import Comparison, Curve, Point, Row, Target, cores
from benchmarks.rows.common import JAX, costs, count_devices, ready
from benchmarks.timing import Side, Spread, Worker, ratio, spread, take_turns

WIDTHS = ((12, 10), (40, 20), (130, 60), (300, 100), (1000, 500), (3000, 2500))
"""Hidden layers of networks for 784 pixels, from 10^4 weights to 10^7."""


def scaling(quick: bool) -> Row:
    """LeNet by replicas and devices, dense networks by width."""
    n = cores()
    fixed = 8 * n  # replicas while devices change
    counts = [fixed] if quick else sorted({1, 2, 4, 8, 16, 32, 64, n, fixed})
    sizes = {
        "model": "lenet-20" if quick else "lenet-300-100",
        "shape": [28, 28, 1],
        "examples": 600 if quick else 55_000,
        "batch": 60,
        "steps": 32 if quick else 1600,
        "least": 1 if quick else 40,
    }
    # Each device takes the same number of replicas; 4 n devices are more than the cores.
    numbers = {1: counts, n: [c for c in counts if c % n == 0]}
    for several in [4 * n] if quick else [2, 4, 8, 2 * n, 4 * n]:
        if fixed % several == 0:
            numbers.setdefault(several, [fixed])
    networks = [(20, 10)] if quick else list(WIDTHS)
    wide = {
        "networks": [list(widths) for widths in networks],
        "shape": sizes["shape"],
        "examples": sizes["examples"],
        "batch": sizes["batch"],
        "replicas": n,
        "operations": 1.0 if quick else 1.5e10,
    }
    with ExitStack() as stack:
        workers = ready(
            stack,
            {
                count_devices(devices): partial(
                    Worker,
                    f"{JAX}.scaling:replicas",
                    sizes | {"numbers": replicas},
                    devices=devices,
                )
                for devices, replicas in sorted(numbers.items())
            },
            quick,
        )
        sides: dict[str, Side] = {
            _name(devices, c): [(workers[count_devices(devices)], str(c))]
            for devices, replicas in sorted(numbers.items())
            for c in replicas
        }
        rates = take_turns(sides, 1 if quick else 4)
        spent = costs(workers)
    with Worker(f"{JAX}.scaling:widths", wide, devices=n) as worker:
        worker.wait_ready()
        of_widths = {
            f"{i} {kind}": [(worker, f"{i} {kind}")]
            for i in range(len(networks))
            for kind in ("train", "ruler")
        }
        by_width = take_turns(of_widths, 1 if quick else 4)
    base, more = _name(n, fixed), _name(4 * n, fixed)
    first, most = _name(1, counts[0]), _name(1, counts[-1])
    comparisons = [
        Comparison(more, base, ratio(rates[more], rates[base]), Target(">=", 0.85)),
        Comparison(base, _name(1, fixed), ratio(rates[base], rates[_name(1, fixed)])),
        Comparison(
            f"time per replica-step, {most}", first, ratio(rates[first], rates[most])
        ),
    ]
    weights = [_weights(widths) for widths in networks]
    comparisons += [
        Comparison(
            f"dense network of {number:,} weights, {n} replicas on {count_devices(n)}",
            "its products alone",
            ratio(by_width[f"{i} train"], by_width[f"{i} ruler"]),
        )
        for i, number in enumerate(weights)
    ]
    summaries = {name: spread(values) for name, values in rates.items()}
    for i, (widths, number) in enumerate(zip(networks, weights)):
        text = f"784-{'-'.join(map(str, widths))}-10, {number:,} weights"
        summaries[text] = spread(by_width[f"{i} train"])
        summaries[f"{text}: its products alone"] = spread(by_width[f"{i} ruler"])
    return Row(
        "scaling",
        "`lenet`'s training in lottery_jax, the replicas of a device one after another, "
        f"all masks full; with more host devices than the {n} cores they share them. By "
        "parameters: dense networks with two hidden layers, one replica on each of "
        f"{count_devices(n)}, and the matrix products of their steps alone.",
        summaries,
        "replica-steps per second",
        comparisons,
        spent,
        {
            "replicas": {
                f"{count_devices(devices)}": _curve(
                    rates, {c: _name(devices, c) for c in numbers[devices]}
                )
                for devices in sorted({1, n})
            },
            "devices": {
                f"{fixed} replicas": _curve(
                    rates, {d: _name(d, fixed) for d in sorted(numbers)}
                )
            },
            "parameters": {
                f"training, {count_devices(n)}": _curve(
                    by_width, {w: f"{i} train" for i, w in enumerate(weights)}
                ),
                "its products alone": _curve(
                    by_width, {w: f"{i} ruler" for i, w in enumerate(weights)}
                ),
            },
        },
    )


def _name(devices: int, replicas: int) -> str:
    return f"{count_devices(devices)}, {replicas} replica{'s' * (replicas != 1)}"


def _weights(widths: Sequence[int]) -> int:
    sizes = [784, *widths, 10]
    return sum(a * b for a, b in zip(sizes, sizes[1:]))


def _curve(rates: Mapping[str, list[float]], names: Mapping[Any, str]) -> Curve:
    """Milliseconds of a replica-step at each x, from the rates of its side."""
    return [
        Point(x, Spread(*(1e3 / rate for rate in _reversed(spread(rates[name])))))
        for x, name in names.items()
    ]


def _reversed(rate: Spread) -> tuple[float, float, float]:
    """The fastest turn is the cheapest."""
    return rate.median, rate.high, rate.low
