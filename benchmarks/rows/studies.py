"""Whole studies: compilations, what levels cost, memory, and the start of a command."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks.report import Comparison, Point, Row, Table, Target, cores
from benchmarks.rows.common import JAX, once, value
from benchmarks.timing import ROOT, Side, Spread, Worker, ratio, spread, take_turns


def compilations(quick: bool) -> Row:
    """How often a study compiles, and how long compiling takes."""
    n, levels = cores(), 3
    counted = once("studies:compilations", {"levels": levels}, n)
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
        name: once("accounts:compiling", sizes | {"replicas": n}, n)
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
                value(counted["programs"]["train"]),
                Target("<=", 1),
            ),
            Comparison(
                "compilations in levels 2 and 3",
                "",
                value(sum(by_level[2:])),
                Target("<=", 0),
            ),
            *(
                Comparison(
                    f"compiling {name}", "", value(s["compile_seconds"]), unit="s"
                )
                for name, s in seconds.items()
            ),
            *(
                Comparison(
                    f"tracing and lowering {name}",
                    "",
                    value(s["trace_seconds"]),
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
            "compiled variants of each program": counted["programs"],
        },
    )


def levels(quick: bool) -> Row:
    """What a level costs, and what of a study is not training."""
    n = cores()
    number, rows = (2, 6) if quick else (20, 6)
    fields = {
        "levels": number,
        "replicas": 2,
        "steps": "6it" if quick else "2000it",
        "validate_every": 3 if quick else 100,
    }
    if quick:
        fields["model"] = "lenet-20"
    shape = [28, 28, 1]
    found = once(
        "studies:command",
        {
            "preset": "lenet-fashion",
            "fields": fields,
            "shape": shape,
            "examples": 600 if quick else 55_000,
            "held_out": 50 if quick else 5000,
            "test": 50 if quick else 10_000,
        },
        n,
    )
    sizes = {
        "model": "lenet-20" if quick else "lenet-300-100",
        "shape": shape,
        "examples": 600 if quick else 55_000,
        "batch": 60,
        "replicas": n,
        "values": [0.8, 0.8**number],
        "steps": 5 if quick else 600,
    }
    with Worker(f"{JAX}.scaling:densities", sizes, devices=n) as worker:
        worker.wait_ready()
        sides: dict[str, Side] = {str(i): [(worker, str(i))] for i in (0, 1)}
        rates = take_turns(sides, 2 if quick else 11)
    segments = found["segments"]
    by_level = found["compilations_by_level"]
    wall = found["wall"] - found["compiling"]
    parts = Table(
        ["part of the study", "s", "% of the wall time without compiling"],
        [
            [part, f"{seconds:.2f}", f"{100 * seconds / wall:.1f}"]
            for part, seconds in sorted(found["parts"].items(), key=lambda x: -x[1])
        ],
    )
    return Row(
        "levels",
        f"`experiments.imp lenet-fashion` with {fields['steps']} per level, level 0 and "
        f"{number} prunings, ticket, reinit and random mask, 2 replicas ({rows} networks) "
        f"on {n} host devices, validated every {fields['validate_every']}: with its "
        "checkpoints, tickets, records, figures and verdicts, on generated images of "
        "Fashion-MNIST's shape. Each program is waited for, so that it can be timed. In "
        "turns: random masks of both densities through one compiled program.",
        {
            f"density {0.8**k:.3f}": spread(rates[str(i)])
            for i, k in enumerate((1, number))
        },
        "replica-steps per second",
        [
            Comparison(
                f"time of training in level {number} of the study",
                "level 1, segment by segment",
                ratio(segments[number], segments[1]),
                Target("<=", 1.05),
            ),
            Comparison(
                f"time of a replica-step at density {0.8**number:.3f}, in turns",
                "density 0.8",
                ratio(rates["0"], rates["1"]),
                Target("<=", 1.05),
            ),
            Comparison(
                f"compilations in levels 2 to {number}",
                "",
                value(sum(by_level[2:])),
                Target("<=", 0),
            ),
            Comparison(
                "training and validation",
                "wall time without tracing and compiling",
                value(found["share_without_compiling"]),
                Target(">=", 0.9),
            ),
            Comparison(
                "training and validation",
                "wall time",
                value(found["share_of_wall"]),
            ),
            Comparison("wall time", "", value(found["wall"]), unit="s"),
            Comparison(
                "tracing and compiling", "", value(found["compiling"]), unit="s"
            ),
        ],
        {
            "where the time goes": parts,
            "compilations in levels 0, 1, 2 ...": by_level,
            "compilations after the last level": found["compilations_after"],
            "peak resident memory, GB": found["costs"]["memory"],
        },
        {
            "levels": {
                "LeNet-300-100": [
                    Point(level, Spread(*(1e3 * x for x in spread(times))))
                    for level, times in enumerate(_per_step(segments, fields))
                ]
            }
        },
    )


def _per_step(
    segments: list[list[float]], fields: Mapping[str, Any]
) -> list[list[float]]:
    """Seconds of a replica-step from those of a segment of one replica."""
    steps = int(fields["steps"].removesuffix("it"))
    each = steps / len(segments[0])
    return [[seconds / each for seconds in level] for level in segments]


def startup(quick: bool) -> Row:
    """Seconds from a command to its first training step."""
    flags = "mnist1d --levels 0 --steps 1it --replicas 2"
    if quick:
        flags += " --model mlp-10"
    runs: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": []}
    for _ in range(1 if quick else 3):
        with tempfile.TemporaryDirectory() as folder:
            for kind, found in runs.items():
                found.append(_first_step(pathlib.Path(folder), kind, flags.split()))
    rows = []
    for part in runs["cold"][0]["parts"]:
        each = [spread([r["parts"][part] for r in found]) for found in runs.values()]
        rows.append([part, *(f"{seconds.median:.2f}" for seconds in each)])
    return Row(
        "startup",
        f"`python -m experiments.imp {flags}`, from the start of the process to the end "
        "of the first training step of its 6 networks. Cold: empty caches; warm: data "
        "and compiled programs cached.",
        comparisons=[
            Comparison(
                f"from the command to the first training step, {kind}",
                "",
                spread([run["seconds"] for run in found]),
                unit="s",
            )
            for kind, found in runs.items()
        ],
        facts={
            "where it goes": Table(["seconds", *runs], rows),
            "peak resident memory, GB": max(
                run["memory"] for found in runs.values() for run in found
            ),
        },
    )


def _first_step(folder: pathlib.Path, name: str, flags: list[str]) -> dict[str, Any]:
    """Runs a command until its first training step, in a folder with a cache."""
    arguments = ["imp", *flags, "--out", str(folder / name)]
    environment = _environment(folder) | {"JAX_PLATFORMS": "cpu"}
    begin = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.startup", str(begin), *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout)


def _environment(folder: pathlib.Path) -> dict[str, str]:
    cache = {"LOTTERY_JAX_CACHE": str(folder / "cache"), "MPLBACKEND": "agg"}
    return dict(os.environ) | cache


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
                "peak resident memory", "", value(peak), Target("<=", 1.5), "GB"
            ),
            Comparison("wall time, cold", "", value(cold.seconds), unit="s"),
            Comparison("wall time, warm", "", value(warm.seconds), unit="s"),
        ],
    )


class _Demo(NamedTuple):
    seconds: float
    peak: float  # GB (10^9 bytes)


def _demo(folder: pathlib.Path, name: str, flags: list[str]) -> _Demo:
    command = [sys.executable, "-m", "experiments.imp", "--out", str(folder / name)]
    with tempfile.TemporaryFile("w+") as output:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [*command, *flags],
            cwd=ROOT,
            env=_environment(folder),
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
