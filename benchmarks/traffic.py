"""What programs read and write on a device that need not be there.

    python -m benchmarks.traffic --replicas 1 9 27 --convolution grouped loop
    python -m benchmarks.traffic --model vgg-16 --target h100 tpu-v5e --out vgg.json
    python -m benchmarks.traffic --model lenet-300-100 --replicas 256 --program train

See docs/traffic.md. Each program is compiled for a target (`benchmarks.targets`) and read
(`benchmarks.kernels`); its bytes are compared with `floor`.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from benchmarks import kernels
from benchmarks.rows import Sizes

GPU_OPTIONS = {"xla_dump_emitter_re": "ptx"}
"""Makes the compiler write the assembly of each kernel."""


class Traffic(NamedTuple):
    """What one program moves.

    Attributes:
      label: program, model, target, replicas and settings, by name.
      unit: what the numbers are of.
      kernels: how many run; None where the compiler does not say.
      bytes: read and written.
      floor: see `floor`.
      temporary: bytes of temporaries.
      slow: share of the bytes in heavy kernels that branch or move single values; None
        where there is no assembly.
      convolutions: in the program.
      collectives: how devices talk to each other, and how often.
      kinds: what moves most: kind, how often, bytes read and written.
      slowest: those heavy kernels, in words.
      seconds: that tracing and compiling took.
    """

    label: dict[str, Any]
    unit: str
    kernels: int | None
    bytes: float
    floor: float
    temporary: int
    slow: float | None
    convolutions: int
    collectives: dict[str, int]
    kinds: list[tuple[str, int, float, float]]
    slowest: list[str]
    seconds: float


def compiled(lowered: Any, target: str) -> tuple[Any, dict[str, kernels.Assembly]]:
    """A lowered program compiled, and the assembly of its kernels where there is one."""
    if target != "h100":
        return lowered.compile(), {}
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder} | GPU_OPTIONS
        found = lowered.compile(compiler_options=options)
        code: dict[str, kernels.Assembly] = {}
        for path in pathlib.Path(folder).glob("*.ptx"):
            code |= kernels.assemblies(path.read_text())
    return found, code


def traffic(
    program: str, target: str, sizes: Sizes, number: int = 1, **settings: Any
) -> Traffic:
    """Compiles a program for devices of a target and reads what it moves.

    Args:
      program: one of `targets.PROGRAMS`.
      target: one of `targets.TARGETS`.
      sizes: model, batch, replicas ...
      number: of devices.
      **settings: fields of `Execution`.

    Raises:
      ValueError: see `targets.execution`.
      ModuleNotFoundError: the wheels of a target are not installed.
    """
    from benchmarks import targets

    begin = time.perf_counter()
    asked = targets.asked(sizes, targets.execution(target, number, **settings))
    found, code = compiled(targets.PROGRAMS[program](asked), target)
    read = kernels.parse(found.as_text())
    own = asked.execution._asdict()
    label = {"program": program, "model": sizes.model, "target": target}
    label |= {"replicas": asked.sizes.replicas, "batch": sizes.batch} | own
    steps = kernels.of_step(read) if program == "train" else kernels.of_program(read)
    if target == "h100":
        total, many = float(kernels.moved(steps)), sum(k.times for k in steps)
    else:
        total, many = _cost(found)["bytes accessed"], None
    heavy = kernels.slow(steps, code)
    return Traffic(
        label=label,
        unit="step" if program == "train" else "pass over the test set",
        kernels=many,
        bytes=total,
        floor=float("nan"),
        temporary=found.memory_analysis().temp_size_in_bytes,
        slow=sum(k.bytes for k, _ in heavy) / total if code else None,
        convolutions=kernels.convolutions(read),
        collectives=kernels.collectives(read),
        kinds=[(kind, *counts) for kind, counts in kernels.by_kind(steps).items()][:12],
        slowest=[_in_words(*one) for one in heavy[:12]],
        seconds=time.perf_counter() - begin,
    )


def _cost(found: Any) -> Mapping[str, float]:
    cost = found.cost_analysis()
    return cost[0] if isinstance(cost, list) else cost


def _in_words(kernel: kernels.Kernel, code: kernels.Assembly) -> str:
    return (
        f"{kernel.name}: {1e-9 * kernel.bytes:.2f} GB, {code.instructions} instructions, "
        f"{code.branches} branches, loads {code.load} and stores {code.store} bytes wide, "
        f"{kernel.shape[:60]}"
    )


# --- the command ----------------------------------------------------------------------


def text(found: Traffic) -> str:
    """A report of one program."""
    label, number = found.label, found.label["replicas"]
    names = ("program", "model", "target", "replicas", "convolution", "precision")
    lines = [", ".join(f"{label[name]}" for name in names)]
    lines[0] += f" ({found.seconds:.0f} s)"
    many = "" if found.kernels is None else f"{found.kernels} kernels, "
    lines.append(
        f"   {many}{1e-9 * found.bytes:.2f} GB a {found.unit}, "
        f"{1e-6 * found.bytes / number:.1f} MB a replica; "
        f"floor {1e-9 * found.floor:.2f} GB; "
        f"temporaries {1e-9 * found.temporary:.2f} GB; "
        f"{found.convolutions} convolutions; collectives {found.collectives or 'none'}"
    )
    for kind, times, read, written in found.kinds if found.kernels else ():
        lines.append(
            f"   {kind:48s} x{times:<5d} read {1e-9 * read:7.3f} "
            f"write {1e-9 * written:7.3f}"
        )
    if found.slow is not None:
        lines.append(
            f"   in heavy kernels that branch or move single values: {found.slow:.1%}"
        )
        lines += [f"     {one}" for one in found.slowest]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Prints what programs move; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traffic")
    parser.add_argument("--model", default="resnet-20")
    parser.add_argument("--replicas", type=int, nargs="+", default=[9])
    parser.add_argument("--convolution", nargs="+", default=[None])
    parser.add_argument("--precision", nargs="+", default=[None])
    parser.add_argument("--activations", nargs="+", default=[None])
    parser.add_argument("--target", nargs="+", default=["h100"])
    parser.add_argument("--program", nargs="+", default=["train"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=pathlib.Path)
    chosen = parser.parse_args(arguments)
    # What is compiled for need not be there; what is there is not used.
    jax.config.update("jax_platforms", "cpu")
    image = (28, 28, 1) if chosen.model.startswith(("lenet", "mlp")) else (32, 32, 3)
    sizes = Sizes(
        model=chosen.model, shape=image, examples=50_000, test=10_000,
        batch=chosen.batch, optimizer="adam" if image[0] == 28 else "sgd",
        augment=image[0] != 28, steps=60,
    )  # fmt: skip
    found = []
    for target in chosen.target:
        for program in chosen.program:
            for convolution in chosen.convolution:
                for precision in chosen.precision:
                    for number in chosen.replicas:
                        one = traffic(
                            program,
                            target,
                            sizes._replace(replicas=number),
                            convolution=convolution,
                            precision=precision,
                        )
                        print(text(one), flush=True)
                        found.append(one._asdict())
                        if chosen.out is not None:
                            chosen.out.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
