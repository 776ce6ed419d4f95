"""What is measured on an accelerator, as data: cells by value, and what is compared.

Nothing here imports JAX or PyTorch.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

from benchmarks.rows import Sizes, Target

Side: TypeAlias = Literal["ours", "PyTorch"]


class Numbers(NamedTuple):
    """How numbers are held: what products round to, and what layers store."""

    precision: str
    activations: str


NUMBERS: Mapping[str, Numbers] = {
    "float32": Numbers("float32", "float32"),
    "tf32": Numbers("tensorfloat32", "float32"),
    "bf16 operands": Numbers("bfloat16", "float32"),
    "bf16 activations": Numbers("tensorfloat32", "bfloat16"),
}
"""By the name in tables. Narrow activations make narrow operands, but for the last layer's;
PyTorch's are those of autocast."""


class Cell(NamedTuple):
    """One thing that is timed.

    Attributes:
      side: the process that runs it.
      model: its name in tables, a key of `MODELS`.
      replicas: networks that are trained, each with its own weights and batches.
      way: how: ours, a method of `convolution`, or "" for the library's own choice (on a
        GPU "tiles"; "loop" is a plain convolution for one replica); PyTorch's, "graph" (one
        CUDA graph, a model after the other), "N streams" (one graph, the models on so
        many streams) or "batched" (weights stacked, batched products, one graph).
      numbers: a key of `NUMBERS`.
      batch: examples in a step of each replica; 0 for the model's own.
    """

    side: Side
    model: str
    replicas: int
    way: str
    numbers: str
    batch: int = 0

    @property
    def name(self) -> str:
        """What it is called in results."""
        number = f"{self.replicas} replica{'s' * (self.replicas > 1)}"
        batch = f"batch {self.batch:,}" if self.batch else ""
        parts = [self.side, self.model, number, batch, self.way, self.numbers]
        return ", ".join(part for part in parts if part)


_IMAGES = Sizes(
    shape=(32, 32, 3),
    examples=50_000,
    batch=128,
    optimizer="sgd",
    learning_rate=0.01,
    augment=True,
    chunk=0,
    steps=400,
)
MODELS: Mapping[str, Sizes] = {
    "ResNet-20": _IMAGES._replace(model="resnet-20"),
    "VGG-16": _IMAGES._replace(model="vgg-16"),
    "LeNet-300-100": Sizes(chunk=0, steps=4000),
}
"""What is trained; `steps` are the most that one call makes."""

QUICK: Mapping[str, Sizes] = {
    "ResNet-20": _IMAGES._replace(model="resnet-8-4", batch=8, examples=32, steps=4),
    "VGG-16": _IMAGES._replace(model="vgg-11-4", batch=8, examples=32, steps=4),
    "LeNet-300-100": Sizes(model="lenet-20", chunk=0, examples=120, steps=4),
}
"""Sizes that show no more than that all of it runs."""


def sizes_of(cell: Cell, quick: bool = False) -> Sizes:
    """What a cell trains."""
    own = (QUICK if quick else MODELS)[cell.model]
    replicas = min(cell.replicas, 3) if quick else cell.replicas
    batch = cell.batch or own.batch
    if quick and cell.batch:
        batch = 2 * own.batch
    numbers = NUMBERS[cell.numbers]
    return own._replace(
        replicas=replicas,
        batch=batch,
        devices=1,
        convolution=cell.way or None,
        precision=numbers.precision,
        activations=numbers.activations,
    )


def _ours(
    model: str, replicas: int, ways: Sequence[str], numbers: Sequence[str]
) -> Iterator[Cell]:
    for own in numbers:
        for way in ways:
            yield Cell("ours", model, replicas, way, own)


_R, _V, _L = MODELS
_METHODS = ("tiles", "loop", "grouped")
_MAIN = ("tf32", "bf16 activations")
_ALL = ("tf32", "bf16 operands", "bf16 activations")
WIDE = 9 * _IMAGES.batch
"""The batch of one network that does the work of nine, with shared weights: by plain
convolutions it is what the device's library is best at."""

OURS: Sequence[Cell] = list(
    dict.fromkeys(
        [
            *_ours(_R, 9, ("tiles",), _MAIN),
            *_ours(_L, 256, ("",), ("tf32",)),
            *_ours(_L, 1, ("",), ("tf32",)),
            *(Cell("ours", _R, 1, "loop", own, WIDE) for own in _MAIN),
            *_ours(_R, 1, ("",), _MAIN),
            *_ours(_R, 9, ("loop", "grouped"), ("tf32",)),
            *_ours(_R, 9, ("loop", "grouped"), ("bf16 activations",)),
            *_ours(_R, 27, ("tiles",), _MAIN),
            *_ours(_L, 16, ("",), ("tf32",)),
            *_ours(_L, 256, ("",), ("bf16 activations",)),
            *_ours(_V, 9, ("tiles", "loop"), ("tf32",)),
            *_ours(_V, 1, ("",), ("tf32",)),
            *(Cell("ours", _R, 1, "", own, WIDE) for own in _MAIN),
            *_ours(_R, 1, ("",), ("bf16 operands",)),
            *_ours(_R, 9, _METHODS, ("bf16 operands",)),
            *_ours(_R, 1, ("loop",), _MAIN),
            *_ours(_V, 9, ("tiles", "loop"), ("bf16 activations",)),
            *_ours(_V, 1, ("",), ("bf16 activations",)),
            *_ours(_V, 1, ("loop",), _MAIN),
            *_ours(_L, 1, ("",), ("bf16 activations",)),
            *_ours(_L, 16, ("",), ("bf16 activations",)),
            *_ours(_R, 27, ("loop", "grouped"), ("bf16 activations",)),
            *_ours(_V, 9, ("grouped",), _MAIN),
            *_ours(_R, 27, ("loop", "grouped"), ("tf32",)),
            *_ours(_R, 27, _METHODS, ("bf16 operands",)),
        ]
    )
)
"""Ours, the most telling first: what no time is left for is not run."""


def _peers(model: str, replicas: int, way: str, numbers: Sequence[str]) -> list[Cell]:
    return [Cell("PyTorch", model, replicas, way, own) for own in numbers]


PEERS: Sequence[Cell] = [
    *_peers(_R, 9, "9 streams", _MAIN),
    *_peers(_R, 1, "graph", _MAIN),
    *_peers(_L, 256, "batched", ("tf32",)),
    *_peers(_L, 1, "graph", ("tf32",)),
    *_peers(_R, 27, "9 streams", _MAIN),
    *_peers(_V, 9, "9 streams", _MAIN),
    *_peers(_V, 1, "graph", _MAIN),
    *_peers(_L, 16, "batched", ("tf32",)),
    *_peers(_L, 256, "batched", ("bf16 activations",)),
    *_peers(_L, 256, "32 streams", ("tf32",)),
    *_peers(_R, 9, "graph", _MAIN),
    *_peers(_L, 16, "16 streams", ("tf32",)),
    *_peers(_L, 1, "graph", ("bf16 activations",)),
]
"""PyTorch's arrangements, likewise."""


# --- what is compared -----------------------------------------------------------------


class Goal(NamedTuple):
    """The best of some cells against the best of others, in replica-steps per second.

    Attributes:
      label: what is compared.
      of: the cells that are to be fast.
      to: the peers or rulers.
      target: None where there is none.
      scale: the peers' rates are multiplied by it, where units differ.
    """

    label: str
    of: Sequence[Cell]
    to: Sequence[Cell]
    target: Target | None = None
    scale: float = 1.0


def chosen(cells: Sequence[Cell], **fields: Any) -> list[Cell]:
    """The cells with these values; a tuple stands for any of its members."""

    def fits(cell: Cell, name: str, value: Any) -> bool:
        own = getattr(cell, name)
        return own in value if isinstance(value, tuple) else own == value

    return [c for c in cells if all(fits(c, n, v) for n, v in fields.items())]


def goals() -> list[Goal]:
    """All that is compared, those with a target first."""
    own = {"side": "ours", "batch": 0}
    found, more = [], []
    for numbers in _MAIN:
        nine = chosen(OURS, model=_R, replicas=9, numbers=numbers, **own)
        peers = chosen(PEERS, model=_R, numbers=numbers)
        label = f"{_R}, 9 replicas, {numbers}, against PyTorch's best arrangement"
        found.append(Goal(label, nine, peers, Target(">=", 1.5)))
        default = chosen(nine, way="tiles")
        label = f"{_R}, 9 replicas, {numbers}: the default against the best method"
        more.append(Goal(label, default, nine))
        one = chosen(OURS, model=_R, replicas=1, numbers=numbers, **own)
        label = f"{_R}, {numbers}: 9 replicas against 1"
        more.append(Goal(label, nine, one))
        many = chosen(OURS, model=_R, replicas=27, numbers=numbers, **own)
        label = f"{_R}, 27 replicas, {numbers}, against PyTorch's best arrangement"
        more.append(Goal(label, many, peers))
        label = f"{_R}, 9 replicas, {numbers}, against 1 network at batch {WIDE:,}, "
        wide = partial(chosen, OURS, model=_R, batch=WIDE, numbers=numbers)
        target = Target(">=", 1.0) if numbers == _MAIN[1] else None
        scale = WIDE / _IMAGES.batch
        plain = f"{label}plain convolutions"
        found.append(Goal(plain, nine, wide(way="loop"), target, scale))
        more.append(Goal(f"{label}the default way", nine, wide(way=""), None, scale))
        ours = chosen(OURS, model=_V, replicas=9, numbers=numbers, **own)
        peers = chosen(PEERS, model=_V, numbers=numbers)
        label = f"{_V}, 9 replicas, {numbers}, against PyTorch's best arrangement"
        more.append(Goal(label, ours, peers))
    tf32 = {"model": _L, "numbers": "tf32"}
    many = chosen(OURS, replicas=256, **tf32)
    label = f"{_L}, tf32: 256 replicas against 1"
    found.append(Goal(label, many, chosen(OURS, replicas=1, **tf32), Target(">=", 50)))
    label = f"{_L}, 256 replicas, tf32, against PyTorch's best arrangement"
    found.append(Goal(label, many, chosen(PEERS, **tf32), Target(">=", 1.5)))
    for numbers, ours in (("tf32", ("tf32",)), ("bf16 activations", _ALL[1:])):
        one = chosen(OURS, model=_R, replicas=1, numbers=ours, **own)
        graph = chosen(PEERS, model=_R, replicas=1, numbers=numbers)
        kind = "tf32" if numbers == "tf32" else "bf16"
        label = f"{_R}, 1 replica, {kind}, against PyTorch's CUDA graph"
        found.append(Goal(label, one, graph, Target(">=", 1.2)))
    return found + more


class Reached(NamedTuple):
    """What a comparison has come to.

    Attributes:
      label: of its goal.
      of: name of the fastest of its cells.
      to: name of the fastest peer.
      value: the ratio of their rates.
      target: the bound, as text; "" for none.
      reached: whether it is kept; None without a target.
    """

    label: str
    of: str
    to: str
    value: float
    target: str
    reached: bool | None


def compare(found: Mapping[str, Mapping[str, Any]]) -> list[Reached]:
    """The comparisons whose two sides were measured.

    Args:
      found: results of cells by name; those with a `rate` were measured.
    """

    def best(cells: Sequence[Cell]) -> str | None:
        rated = [c.name for c in cells if "rate" in found.get(c.name, {})]
        return max(rated, key=lambda name: found[name]["rate"], default=None)

    reached = []
    for goal in goals():
        of, to = best(goal.of), best(goal.to)
        if of is None or to is None:
            continue
        value = found[of]["rate"] / (found[to]["rate"] * goal.scale)
        target = "{} {:g}".format(*goal.target) if goal.target else ""
        kept = goal.target.reached(value) if goal.target else None
        reached.append(Reached(goal.label, of, to, value, target, kept))
    return reached
