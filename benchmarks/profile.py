"""Where the time of a compiled program goes: a trace, summed by kind of operation.

On a CPU XLA's operations run in several threads, and one may run beside another: sums are
of the time of operations, so what counts is their shares.
"""

import glob
import gzip
import json
import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import jax

FORWARD = "products, forward"
INPUTS = "products, gradients in inputs"
WEIGHTS = "products, gradients in weights"
OPTIMIZER = "optimizer and masks"
BATCH = "batch: gather, augmentation, normalisation"
COPIES = "copies and layouts"
MODEL = "normalisation, activations, loss and their gradients"
REST = "rest"
KINDS = (FORWARD, INPUTS, WEIGHTS, OPTIMIZER, BATCH, COPIES, MODEL, REST)
"""What `classify` tells apart, in the order of a table."""

Shape = tuple[int, ...]


class Operation(NamedTuple):
    """One instruction of a compiled program.

    Attributes:
      name: its name there, and in a trace.
      code: its opcode.
      shape: of its (first) result.
      path: where it came from, "jit(run)/while/body/jvp(MLP)/dense_0/dot_general"; "" if
        the compiler made it.
    """

    name: str
    code: str
    shape: Shape
    path: str


_LINE = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = \(?\w+\[(?P<shape>[\d,]*)\]"
    r".*?[\s})](?P<code>[a-z][a-z0-9\-]*)\(",
    re.MULTILINE,
)
_PATH = re.compile(r'op_name="([^"]*)"')
_CONTAINERS = ("while", "call", "conditional", "async-start", "async-done")
_PRODUCTS = ("dot", "convolution")
_LAST = ("dot_general", "conv_general_dilated", "conv", "lottery_conv")
_MOVES = ("copy", "transpose", "pad", "slice", "concatenate", "bitcast", "reshape")


def operations(hlo: str) -> dict[str, Operation]:
    """The instructions of a compiled program by name, from its text."""
    found = {}
    for match in _LINE.finditer(hlo):
        end = hlo.find("\n", match.start("name"))
        path = _PATH.search(hlo, match.start("name"), end if end >= 0 else len(hlo))
        shape = tuple(int(n) for n in match["shape"].split(",") if n)
        found[match["name"]] = Operation(
            match["name"], match["code"], shape, path[1] if path else ""
        )
    return found


def trace(program: Callable[[], object]) -> dict[str, float]:
    """Runs a program once; seconds of each operation by name, all threads together."""
    seconds: dict[str, float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            program()
        for path in glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True):
            with gzip.open(path) as file:
                events = json.load(file)["traceEvents"]
            for event in events:
                if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
                    seconds[event["args"]["hlo_op"]] += event.get("dur", 0) / 1e6
    return dict(seconds)


def classify(operation: Operation, weights: Collection[Shape], batch: int) -> str:
    """The kind of an operation of a training step, one of `KINDS`.

    Args:
      operation: what it is.
      weights: the shapes of the network's parameters.
      batch: examples per step.
    """
    code, shape, path = operation.code, operation.shape, operation.path
    last = path.rpartition("/")[2]
    in_model, backward = "jvp(" in path, "transpose(jvp" in path
    # A product in normalisation is a sum over examples; a fusion carries the path of its
    # last instruction.
    product = code in _PRODUCTS or (last in _LAST and "norm" not in path)
    if product and in_model and "norm" not in path:
        if not backward:
            return FORWARD
        return INPUTS if batch in shape and shape not in weights else WEIGHTS
    base = re.sub(r"[.\d]+$", "", operation.name)
    moved = base.removesuffix("_fusion").removeprefix("wrapped_").split("_")
    if code in _MOVES or all(word in _MOVES for word in moved):
        return COPIES
    if in_model:
        return MODEL
    if shape in weights and path:
        return OPTIMIZER
    if path and shape and math.prod(shape) % batch == 0:
        return BATCH
    return REST


def shares(
    program: Callable[[], object],
    hlo: str,
    weights: Collection[Shape],
    batch: int,
) -> dict[str, float]:
    """The shares of each kind in the time of a program's operations; they add up to 1.

    Args:
      program: runs the compiled program once.
      hlo: its text.
      weights: the shapes of the network's parameters.
      batch: examples per step.

    Raises:
      RuntimeError: the trace names no operation of this program.
    """
    known = operations(hlo)
    return summarize(trace(program), known, weights, batch)


def summarize(
    seconds: Mapping[str, float],
    known: Mapping[str, Operation],
    weights: Collection[Shape],
    batch: int,
) -> dict[str, float]:
    """The shares of each kind in the time of operations, from `trace` and `operations`."""
    totals = dict.fromkeys(KINDS, 0.0)
    for name, duration in seconds.items():
        base = re.sub(r"[.\d]+$", "", name)
        # What contains others would count them twice.
        if base in _CONTAINERS or (name in known and known[name].code in _CONTAINERS):
            continue
        operation = known.get(name)
        kind = classify(operation, weights, batch) if operation else REST
        totals[kind] += duration
    whole = sum(totals.values())
    if not whole:
        raise RuntimeError("the trace names no operation of the program")
    return {kind: total / whole for kind, total in totals.items() if total}
