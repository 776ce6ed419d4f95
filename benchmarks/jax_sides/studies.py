"""Whole studies: how often they compile, and where their time goes."""

import contextlib
import dataclasses
import pathlib
import statistics
import tempfile
import types
from typing import Any
from unittest import mock

import numpy as np
import optax

from benchmarks import monitor
from benchmarks.jax_sides.common import make_task
from benchmarks.stopwatch import Interval, Stopwatch, totals
from benchmarks.worker import Programs
from lottery_jax import data, engine, imp
from lottery_jax.data import Dataset


def compilations(*, levels: int) -> Programs:
    """`study`: how often JAX compiles in a tiny study of three arms, by level.

    Args:
      levels: number of prunings.
    """

    def study() -> dict[str, Any]:
        compiling = monitor.Compiling()
        at_end: dict[int, int] = {}
        built: list[engine.Programs] = []

        def watch(moment: imp.Moment) -> None:
            at_end[moment.level] = compiling.count()

        def build(*args: Any, **kwargs: Any) -> engine.Programs:
            built.append(original(*args, **kwargs))
            return built[-1]

        task = make_task("mlp-8", [6], 64, 8, validation=16, test=16)
        plan = imp.Plan(steps=16, validate_every=8)
        original = engine.compile_programs
        with mock.patch.object(engine, "compile_programs", build):
            imp.run(
                task,
                optax.adam(1e-3),
                plan,
                levels=levels,
                replicas=(0, 1),
                watch=watch,
            )
        ends = [at_end[level] for level in range(levels + 1)]
        by_level = [ends[0], *(b - a for a, b in zip(ends, ends[1:]))]
        programs = built[0]._asdict().items()
        return {
            "arms": len(plan.arms),
            "compilations_by_level": by_level,
            "compilations_after": compiling.count() - ends[-1],
            "programs": {name: program._cache_size() for name, program in programs},
        }

    return {"study": study}


def command(
    *,
    preset: str,
    fields: dict[str, Any],
    shape: list[int],
    examples: int,
    held_out: int,
    test: int,
) -> Programs:
    """`study`: where the time of `experiments.imp` goes, from its data to its figures.

    The data set is generated: prototypes of ten classes and noise.

    Args:
      preset: of `experiments.imp`.
      fields: of its configuration that are changed.
      shape: of one image.
      examples: in the training set.
      held_out: in the validation set.
      test: in the test set.
    """
    from experiments import imp as command_
    from lottery_jax import resume

    dataset = _prototypes(shape, examples, held_out, test)
    own = command_.EXPERIMENT
    command = types.SimpleNamespace(run=own.run, report=own.report)
    config = dataclasses.replace(command_.PRESETS[preset].config, **fields)

    def study() -> dict[str, Any]:
        compiling, watch = monitor.Compiling(), Stopwatch()
        watch.also(command_.imp, "run", "study")
        watch.also(resume, "save", "checkpoints")
        watch.also(resume, "store_tickets", "tickets")
        watch.also(command, "report", "figures, table and verdicts")
        with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
            folder = pathlib.Path(name)
            fake = mock.patch.object(data, "load", lambda *_, **__: dataset)
            stack.enter_context(fake)
            stack.enter_context(watch)
            begin = watch.now()
            results = command.run(config, folder)
            assert results is not None  # one process has them all
            command.report(results, config, preset, folder)
            end = watch.now()
        return _account(watch, compiling, begin, end) | _levels(
            watch.programs, compiling, int(results.sizes["level"]), _rows(config)
        )

    return {"study": study}


def _rows(config: Any) -> int:
    return config.replicas * len(config.arms)


def _account(
    watch: Stopwatch, compiling: monitor.Compiling, begin: float, end: float
) -> dict[str, Any]:
    """Where the wall time went, in seconds."""
    programs = totals(watch.programs, compiling.seconds)
    functions = totals(watch.functions, compiling.seconds)
    wall, compiled = end - begin, compiling.seconds(begin, end)
    study = functions.pop("study")
    trained = sum(programs.get(name, 0.0) for name in ("train", "validate"))
    others = {k: v for k, v in programs.items() if k not in ("train", "validate")}
    stored = functions.get("checkpoints", 0.0) + functions.get("tickets", 0.0)
    figures = functions.get("figures, table and verdicts", 0.0)
    parts = {
        "training": programs.get("train", 0.0),
        "validation": programs.get("validate", 0.0),
        "testing": others.pop("test", 0.0),
        "pruning, rewinding, starting": sum(others.values()),
        **functions,
        "data, set-up and records": wall - compiled - study - figures,
    }
    parts["host, between programs"] = study - sum(programs.values()) - stored
    return {
        "wall": wall,
        "compiling": compiled,
        "share_of_wall": trained / wall,
        "share_without_compiling": trained / (wall - compiled),
        "parts": parts,
    }


def _levels(
    programs: list[Interval], compiling: monitor.Compiling, levels: int, rows: int
) -> dict[str, Any]:
    """What each level cost: milliseconds of a replica-step, and compilations.

    Every level has the same segments, since none is rewound to a later step.
    """
    train = [p for p in programs if p.name == "train"]
    after = [p for p in programs if p.name in ("train", "validate")]
    each, rest = divmod(len(train), levels)
    if rest or not each:
        raise RuntimeError(f"{len(train)} segments of training in {levels} levels")
    seconds = np.array([p.stop - p.start for p in train]).reshape(levels, each)
    spent = np.array([compiling.seconds(p.start, p.stop) for p in train])
    seconds -= spent.reshape(levels, each)
    per_level = len(after) // levels
    ends = [after[(i + 1) * per_level - 1].stop for i in range(levels)]
    starts = [float("-inf"), *ends]
    return {
        "segments": (seconds / rows).tolist(),
        "median": [statistics.median(level) / rows for level in seconds.tolist()],
        "compilations_by_level": [compiling.count(a, b) for a, b in zip(starts, ends)],
        "compilations_after": compiling.count(ends[-1]),
    }


def _prototypes(shape: list[int], examples: int, held_out: int, test: int) -> Dataset:
    """Images of ten classes in so much noise that a network errs now and then."""
    generator = np.random.default_rng(0)
    means = 128 + 8 * generator.standard_normal((10, *shape))

    def split(number: int) -> dict[str, np.ndarray]:
        label = generator.integers(0, 10, number, np.int32)
        noise = generator.normal(0, 120, (number, *shape)).astype(np.float32)
        image = np.clip(means[label] + noise, 0, 255).astype(np.uint8)
        return {"image": image, "label": label}

    arrays = {
        "train": split(examples),
        "validation": split(held_out),
        "test": split(test),
    }
    mean, std = (0.5,) * shape[-1], (0.35,) * shape[-1]
    return Dataset(arrays, 10, tuple(shape), mean, std, "prototypes")
