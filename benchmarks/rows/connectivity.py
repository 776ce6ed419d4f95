"""Paths between networks, and branches, against PyTorch, rulers and plain training."""

from contextlib import ExitStack
from functools import partial

from benchmarks.report import Comparison, Row, Target, cores
from benchmarks.rows.common import JAX, TORCH, costs, once, ready, threads, value
from benchmarks.timing import Side, Worker, ratio, spread, take_turns


def paths(quick: bool) -> Row:
    """Linear paths between networks against PyTorch, and against their products."""
    n = cores()
    widths, shape = ([300, 100], [28, 28, 1]) if not quick else ([20, 10], [8, 8, 1])
    pairs, alphas, test = (4, 30, 10_000) if not quick else (2, 3, 100)
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
        workers = ready(
            stack,
            {
                us: partial(Worker, f"{JAX}.connectivity:paths", ours, devices=n),
                **{
                    f"PyTorch, batch {size:,}, {n} threads": partial(
                        Worker,
                        f"{TORCH}.dense:paths",
                        peer | {"batch": size},
                        threads=threads(quick),
                    )
                    for size in sizes
                },
            },
            quick,
        )
        sides: dict[str, Side] = {
            name: [(worker, "paths")] for name, worker in workers.items()
        }
        sides["ruler"] = [(workers[us], "ruler")]
        rates = take_turns(sides, 1 if quick else 3)
        spent = costs(workers)
    peers = [name for name in rates if name.startswith("PyTorch")]
    best = max(peers, key=lambda name: spread(rates[name]).median)
    memory = once(
        "connectivity:paths_memory",
        {
            "model": model,
            "shape": shape,
            "test": test,
            "pairs": 2,
            "alphas": [alphas, 10 * alphas],
        },
        1,
    )
    more = str(10 * alphas)
    few, many = memory[str(alphas)], memory[more]
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
                value(growth),
                Target("<=", 0.01),
                "of it",
            ),
        ],
        {
            "temporary bytes, by alphas": {
                number: memory[number]["temporary"] for number in (str(alphas), more)
            },
            **spent,
        },
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
    with Worker(f"{JAX}.connectivity:branching", sizes, devices=n) as worker:
        worker.wait_ready()
        sides: dict[str, Side] = {
            name: [(worker, name)] for name in ("branches", "plain")
        }
        rates = take_turns(sides, 1 if quick else 4)
        spent = costs({"lottery_jax": worker})
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
        spent,
    )
