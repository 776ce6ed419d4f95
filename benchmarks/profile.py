"""Operations of a training step, and where the time of a compiled program goes.

On a CPU XLA's operations run in several threads: what counts is their shares.
"""

import glob
import gzip
import json
import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax

FORWARD, INPUTS = "products, forward", "products, gradients in inputs"
WEIGHTS = "products, gradients in weights"
OPTIMIZER = "optimizer and masks"
BATCH = "batch: gather, augmentation, normalisation"
COPIES, REST = "copies and layouts", "rest"
MODEL = "normalisation, activations, loss and their gradients"

Shape = tuple[int, ...]


class Operation(NamedTuple):
    """One instruction of a compiled program; the path is "" if the compiler made it."""

    name: str
    code: str
    shape: Shape
    path: str  # "jit(run)/while/body/jvp(MLP)/dense_0/dot_general"


_LINE = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = \(?\w+\[(?P<shape>[\d,]*)\]"
    r".*?[\s})](?P<code>[a-z][a-z0-9\-]*)\((?P<rest>.*)$",
    re.MULTILINE,
)
_PATH = re.compile(r'op_name="([^"]*)"')
_CONTAINERS = ("while", "call", "conditional", "async-start", "async-done")
_LAST = ("dot_general", "conv_general_dilated", "conv", "lottery_conv")
_MOVES = ("copy", "transpose", "pad", "slice", "concatenate", "bitcast", "reshape")


def operations(task: Any) -> float:
    """Floating-point operations of the loss of a batch and its gradient, as XLA counts.

    Nearly all are in products. It counts a loop once: trace convolutions as stock ones.
    """
    key = jax.random.key(0)
    params, *state = jax.eval_shape(task.init, key)
    indices = jax.eval_shape(task.order, key, 0)
    batch = jax.eval_shape(
        lambda data, i: task.batch(data, i, key, jax.numpy.int32(0)), task.data, indices
    )
    gradient = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    return gradient.lower(params, *state, batch, key).cost_analysis()["flops"]


def parse(hlo: str) -> dict[str, Operation]:
    """The instructions of a compiled program by name, from its text."""
    found = {}
    for match in _LINE.finditer(hlo):
        path = _PATH.search(match["rest"])
        shape = tuple(int(n) for n in match["shape"].split(",") if n)
        name = match["name"]
        found[name] = Operation(name, match["code"], shape, path[1] if path else "")
    return found


def classify(operation: Operation, weights: Collection[Shape], batch: int) -> str:
    """The kind of an operation of a step, from the shapes of weights and the batch."""
    _, code, shape, path = operation
    last = path.rpartition("/")[2]
    in_model, backward = "jvp(" in path, "transpose(jvp" in path
    # A product in normalisation is a sum over examples; a fusion carries the path of its
    # last instruction.
    product = code in ("dot", "convolution") or last in _LAST
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
    return BATCH if path and shape and math.prod(shape) % batch == 0 else REST


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


def shares(
    seconds: Mapping[str, float], hlo: str, weights: Collection[Shape], batch: int
) -> dict[str, float]:
    """The shares of each kind in the seconds of `trace`; a RuntimeError if it is empty."""
    known, totals = parse(hlo), defaultdict[str, float](float)
    for name, duration in seconds.items():
        base = re.sub(r"[.\d]+$", "", name)
        operation = known.get(name)
        # What contains others would count them twice.
        if base in _CONTAINERS or (operation and operation.code in _CONTAINERS):
            continue
        kind = classify(operation, weights, batch) if operation else REST
        totals[kind] += duration
    if not (whole := sum(totals.values())):
        raise RuntimeError("the trace names no operation of the program")
    return {kind: total / whole for kind, total in totals.items() if total}
