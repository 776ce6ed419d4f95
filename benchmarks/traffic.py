"""What programs read and write on a device that need not be there.

    python -m benchmarks.traffic --replicas 1 9 27 --convolution tiles grouped loop
    python -m benchmarks.traffic --model vgg-16 --target h100 tpu-v5e --out vgg.json
    python -m benchmarks.traffic --model lenet-300-100 --replicas 256 --program evaluate

Each program is compiled for a target (`targets`), its kernels are read from what was
compiled (`kernels`), and their bytes stand beside what arithmetic says must be moved
(`floor`). See docs/traffic.md.
"""

import argparse
import itertools
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from benchmarks import kernels, report, targets
from benchmarks.floor import floor
from benchmarks.rows import Sizes
from lottery_jax import convolution, models
from lottery_jax.activations import ACTIVATIONS
from lottery_jax.execution.replicas import PRECISIONS

MOST = 12
"""Kinds of kernels, and heavy kernels, that are named."""


class Traffic(NamedTuple):
    """What a program moves.

    Attributes:
      program: one of `targets.PROGRAMS`.
      model: its name.
      target: one of `targets.TARGETS`.
      replicas: how many, on all devices together.
      batch: examples of a training step.
      settings: how they run, by the names of the fields of `Execution`.
      unit: what the numbers are of.
      kernels: how many run on a device; None where the compiler does not say.
      bytes: read and written on a device.
      floor: bytes on a device below which nothing can go, see `floor`; None where the
        compiler counts something else.
      temporary: bytes of temporaries on a device.
      slow: share of the bytes in heavy kernels that branch or move single values; None
        where there is no assembly.
      convolutions: in the program.
      collectives: how often devices talk to each other, by how they do.
      kinds: what moves most: kind, how often, bytes read, bytes written.
      slowest: those heavy kernels, in words.
      seconds: that tracing and compiling took.
    """

    program: str
    model: str
    target: str
    replicas: int
    batch: int
    settings: dict[str, Any]
    unit: str
    kernels: int | None
    bytes: float
    floor: float | None
    temporary: int
    slow: float | None
    convolutions: int
    collectives: dict[str, int]
    kinds: list[tuple[str, int, int, int]]
    slowest: list[str]
    seconds: float


def sizes_of(model: str, batch: int | None = None) -> Sizes:
    """A task of the size that a model is usually trained at, on noise.

    Args:
      model: a name of `models.make`.
      batch: examples per step; None for what is usual.

    Raises:
      ValueError: no such model.
    """
    models.make(model, 10)
    family = model.partition("-")[0]
    usual: dict[str, Any] = {"model": model, "test": 10_000, "steps": 60}
    if family in ("vgg", "resnet", "imagenet", "tiny"):
        usual |= {"batch": 128, "optimizer": "sgd", "augment": True}
    if family == "imagenet":
        usual |= {"shape": (224, 224, 3), "examples": 1_000, "test": 1_000}
    elif family == "tiny":
        usual |= {"shape": (64, 64, 3), "examples": 10_000}
    elif family in ("vgg", "resnet", "conv"):
        usual |= {"shape": (32, 32, 3), "examples": 50_000}
    return Sizes(**usual | ({} if batch is None else {"batch": batch}))


def compiled(lowered: Any, target: str) -> tuple[Any, dict[str, kernels.Assembly]]:
    """A lowered program, compiled, and the assembly of its kernels by their names.

    Args:
      lowered: a result of one of `targets.PROGRAMS`.
      target: a TPU's has no assembly.
    """
    if targets.TARGETS[target].platform != "cuda":
        return lowered.compile(), {}
    code: dict[str, kernels.Assembly] = {}
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_emitter_re": "ptx"}
        found = lowered.compile(compiler_options=options)
        for path in pathlib.Path(folder).glob("*.ptx"):
            code |= kernels.assemblies(path.read_text())
    return found, code


def measure(program: str, target: str, asked: targets.Asked) -> Traffic:
    """Compiles a program and reads what it moves.

    Args:
      program: one of `targets.PROGRAMS`.
      target: one of `targets.TARGETS`, whose execution is asked for.
      asked: task, sizes and how replicas run.
    """
    begin = time.perf_counter()
    found, code = compiled(targets.PROGRAMS[program](asked), target)
    seconds = time.perf_counter() - begin
    read, sizes = kernels.parse(found.as_text()), asked.sizes
    training, on_gpu = program == "train", bool(code)
    unit = "step" if training else f"pass over {sizes.test:,} examples"
    if not on_gpu and not training:
        unit = "batch of a pass"
    ran = (kernels.of_step if training else kernels.of_program)(read) if on_gpu else []
    heavy = kernels.slow(ran, code)
    total = float(kernels.moved(ran)) if on_gpu else _compilers_count(found)
    least = floor(program, asked) / asked.execution.groups
    return Traffic(
        *(program, sizes.model, target, sizes.replicas, sizes.batch),
        settings=asked.execution._asdict(),
        unit=unit,
        kernels=sum(one.times for one in ran) if on_gpu else None,
        bytes=total,
        floor=least if on_gpu or training else None,
        temporary=found.memory_analysis().temp_size_in_bytes,
        slow=sum(one.bytes for one, _ in heavy) / total if on_gpu else None,
        convolutions=kernels.convolutions(read),
        collectives=kernels.collectives(read),
        kinds=[(kind, *by) for kind, by in kernels.by_kind(ran).items()][:MOST],
        slowest=[_in_words(*one) for one in heavy[:MOST]],
        seconds=seconds,
    )


def _compilers_count(found: Any) -> float:
    """Bytes by the compiler's own account, for which each loop runs once."""
    cost = found.cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost)["bytes accessed"])


# --- what is printed ------------------------------------------------------------------


def _in_words(kernel: kernels.Kernel, code: kernels.Assembly) -> str:
    return (
        f"{kernel.name}: {1e-9 * kernel.bytes:.3g} GB, {code.instructions} instructions, "
        f"{code.branches} branches, loads {code.load} and stores {code.store} bytes wide, "
        f"{kernel.shape[:60]}"
    )


def details(found: Traffic) -> str:
    """What moves most in one program, and its heavy kernels that are slow."""
    own = {name: value for name, value in found.settings.items() if value is not None}
    settings = ", ".join(f"{name} {value}" for name, value in own.items())
    lines = [
        f"{found.program} of {found.replicas} x {found.model} on {found.target}: "
        f"{settings} ({found.seconds:.0f} s)"
    ]
    lines += [
        f"  {kind[:46]:46s} x{times:<5d} read {1e-9 * read:7.3f} written "
        f"{1e-9 * written:7.3f} GB"
        for kind, times, read, written in found.kinds
    ]
    lines += [f"  slow: {one}" for one in found.slowest]
    return "\n".join(lines)


def summary(found: Sequence[Traffic]) -> str:
    """A Markdown table of programs."""
    settings = ("convolution", "precision", "activations")
    header = ["program", "model", "target", "replicas", *settings]
    header += ["kernels", "GB", "of a", "MB a replica", "floor, GB", "temporaries, GB"]
    header += ["slow, %", "convolutions", "collectives"]
    rows = []
    for one in found:
        row = [one.program, one.model, one.target, one.replicas]
        row += [one.settings.get(name) or "" for name in settings]
        on_device = one.replicas / (
            one.settings["devices"] // one.settings["data_parallel"]
        )
        row += [
            "" if one.kernels is None else one.kernels,
            f"{1e-9 * one.bytes:.3g}",
            one.unit,
            f"{1e-6 * one.bytes / on_device:.3g}",
            "" if one.floor is None else f"{1e-9 * one.floor:.3g}",
            f"{1e-9 * one.temporary:.2g}",
            "" if one.slow is None else f"{100 * one.slow:.1f}",
            one.convolutions,
            ", ".join(f"{n} {code}" for code, n in one.collectives.items()) or "none",
        ]
        rows.append(row)
    return "\n".join(report.table(header, rows))


def main(arguments: list[str] | None = None) -> int:
    """Prints what programs move; returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.traffic",
        description="What programs read and write on devices that need not be there.",
    )
    parser.add_argument("--model", default="resnet-20", help=models.FORMS)
    own = {"nargs": "+", "metavar": "NAME"}
    number: dict[str, Any] = {"type": int, "nargs": "+", "metavar": "N"}
    parser.add_argument("--replicas", **number, default=[9])
    for name, choices in (
        ("target", tuple(targets.TARGETS)),
        ("program", tuple(targets.PROGRAMS)),
    ):
        first = f"default: {choices[0]}"
        many = {**own, "choices": choices, "default": choices[:1]}
        parser.add_argument(
            f"--{name}", **many, help=f"of {', '.join(choices)}; {first}"
        )
    for name, choices in (
        ("convolution", convolution.METHODS),
        ("precision", PRECISIONS),
        ("activations", ACTIVATIONS),
    ):
        many = {**own, "choices": choices, "default": [None]}
        parser.add_argument(
            f"--{name}", **many, help=f"of {', '.join(choices)}; default: the target's"
        )
    parser.add_argument(
        "--batch", type=int, help="default: what is usual for the model"
    )
    parser.add_argument("--devices", type=int, default=1, help="of a target")
    parser.add_argument(
        "--out", type=pathlib.Path, help="a JSON file, written as it goes"
    )
    chosen = parser.parse_args(arguments)
    # What is compiled for need not be there, and what is there is not used.
    jax.config.update("jax_platforms", "cpu")
    try:
        sizes = sizes_of(chosen.model, chosen.batch)
        work = list(_work(chosen))
        for target in chosen.target:
            targets.devices(target, chosen.devices)
        if min(chosen.replicas) < 1:
            raise ValueError(f"replicas={min(chosen.replicas)}; it must be 1 or more")
        found = []
        for target, program, replicas, settings in work:
            execution = targets.execution(target, chosen.devices, **settings)
            asked = targets.asked(sizes._replace(replicas=replicas), execution)
            found.append(measure(program, target, asked))
            print(details(found[-1]), flush=True)
            if chosen.out is not None:
                stored = {"versions": report.versions(), "date": time.strftime("%F")}
                stored["programs"] = [one._asdict() for one in found]
                chosen.out.write_text(json.dumps(stored, indent=1) + "\n")
    except (ValueError, ModuleNotFoundError) as error:
        parser.error(str(error))
    print("\n" + summary(found))
    return 0


def _work(chosen: argparse.Namespace) -> Any:
    """Target, program, replicas and settings of all that is asked for."""
    settings = ("convolution", "precision", "activations")
    for target, program, replicas, *values in itertools.product(
        *(chosen.target, chosen.program, chosen.replicas),
        *(getattr(chosen, name) for name in settings),
    ):
        own = {name: x for name, x in zip(settings, values) if x is not None}
        # One replica is convolved in one way.
        if replicas > 1 or values[0] == chosen.convolution[0]:
            yield target, program, replicas, own


if __name__ == "__main__":
    sys.exit(main())
