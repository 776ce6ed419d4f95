"""Every benchmark, as data: what is compared with what, at which sizes, and the targets.

Nothing here imports JAX or PyTorch: sides are names of functions (`sides_jax`,
`sides_torch`, `sides_command`) that run in processes of their own. `run` measures a row,
whatever it is. A new row is an entry of `ROWS`.
"""

import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

# --- what rows are made of ------------------------------------------------------------


class Sizes(NamedTuple):
    """What a side may be asked for; each looks at what it needs."""

    model: str = "lenet-300-100"  # a name of `models.make`; PyTorch reads its numbers
    shape: tuple[int, ...] = (28, 28, 1)  # of one example; three axes are an image's
    examples: int = 55_000  # in the training set
    held_out: int = 0  # in the validation set
    test: int = 0
    batch: int = 60  # examples per step, or at once
    optimizer: Literal["adam", "adamw", "rmsprop", "sgd"] = "adam"  # SGD with momentum
    learning_rate: float = 1.2e-3
    rates: tuple[float, ...] = ()  # instead of one: each trains a share of the replicas
    density: float = 0.2  # of the random masks on the kernels
    # "masked_lm" or "classes": of an encoder, of `shape` tokens; "projection": of images;
    # "policy"
    head: str = ""
    vocabulary: int = 30_522  # its token ids
    method: str = ""  # "bernoulli" or "edge-popup": what is trained are masks
    attack: int = 0  # steps of PGD in every step of training; 1 for FGSM
    rule: str = ""  # that prunes during training, by a name of `sides_jax.RULES`
    augment: bool = False  # flip and crop on the device
    replicas: int = 1  # trained together, a multiple of the devices
    devices: int = 0  # of JAX that are used; 0 for all
    chunk: int = 1  # of them at once on a device; 0 for all
    convolution: str | None = None  # how kernels of several replicas are executed
    precision: str | None = None  # of products
    activations: str = "float32"  # what layers store and pass on
    steps: int = 200  # of each replica in a call, or of a level
    every: int = 100  # steps between validations
    levels: tuple[int, ...] = (1,)  # prunings, or those whose tickets are looked at
    fraction: float = 0.2  # of the surviving weights, removed at each level
    pairs: int = 3  # of networks, or branches of an initialisation
    alphas: int = 30  # points of a path
    operations: float = 1.5e10  # about how many a ruler does in a call
    squares: tuple[int, ...] = (256, 512, 1024, 2048)  # products that may be the peak
    data: str = ""  # a data set, or an environment
    seconds: float = 0.3  # that short calls should take together, about
    fused: bool = False  # PyTorch's fused Adam, and masks by one call
    channels_last: bool = False  # PyTorch's memory format
    loaders: int = 0  # PyTorch's processes that load, beside the one that trains
    flags: str = ""  # of a command
    label: str = ""  # of facts, where several sides find the same


class Side(NamedTuple):
    """Something that is timed, or that finds facts.

    Attributes:
      setup: "module:function" of this package: takes `Sizes`, returns programs by name.
        A program is a function without arguments; it returns how many units of work it
        has done, or facts: numbers and tables by name.
      program: which of them.
      change: fields of `Sizes` that differ from the row's.
      devices: host devices of JAX; sides with the same number share a process. None for a
        side without JAX, which has a process of its own.
      threads: of PyTorch.
      processes: how many do this work at the same time; rates add up.
    """

    setup: str
    program: str = "run"
    change: Mapping[str, Any] = {}
    devices: int | None = None
    threads: int | None = None
    processes: int = 1

    @property
    def is_ours(self) -> bool:
        """Whether it runs lottery_jax, and so can run another checkout's."""
        return not self.setup.startswith("sides_torch")


class Target(NamedTuple):
    """A bound, in the unit of the comparison, that the median must keep."""

    sense: Literal[">=", ">", "<="]
    bound: float

    def reached(self, value: float) -> bool:
        """Whether a value keeps the bound."""
        compare = {">=": operator.ge, ">": operator.gt, "<=": operator.le}
        return compare[self.sense](value, self.bound)


class Ratio(NamedTuple):
    """One side against another, turn by turn.

    Attributes:
      of: name of a side.
      to: of the other; of several the best one counts.
      target: None where there is none.
      time: the ratio of times instead of rates: 1.05 is 5% more.
      times: a fact that the ratio is multiplied by, where units differ.
    """

    of: str
    to: str | tuple[str, ...]
    target: Target | None = None
    time: bool = False
    times: str = ""


class Number(NamedTuple):
    """A fact, by its name, that belongs into the table of comparisons."""

    fact: str
    target: Target | None = None
    unit: str = ""


class Row(NamedTuple):
    """One benchmark.

    Attributes:
      question: what ran and against what, in a few sentences.
      full: the sizes.
      quick: fields that are changed to see no more than that the row runs; they win over
        what sides change.
      sides: timed in turns, one after another in each turn.
      unit: of their rates.
      ratios: of sides.
      facts: sides that find facts, each time in a fresh process that nothing has warmed.
      numbers: the facts among the comparisons.
      turns: of the sides.
      repeats: of the facts.
      curves: lines of the figure of costs, by panel and label: sides by x, or the name of
        a fact that is a list of (x, median, smallest, largest).
      needs: modules that must be importable.
    """

    question: str
    full: Sizes = Sizes()
    quick: Mapping[str, Any] = {}
    sides: Mapping[str, Side] = {}
    unit: str = "replica-steps per second"
    ratios: Sequence[Ratio] = ()
    facts: Sequence[Side] = ()
    numbers: Sequence[Number] = ()
    turns: int = 5
    repeats: int = 1
    curves: Mapping[str, Mapping[str, Mapping[float, str] | str]] = {}
    needs: tuple[str, ...] = ()


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- the rows -------------------------------------------------------------------------

N = cores()
US, PRODUCTS = "lottery_jax", "its products alone"
PEAK = "the best square products, in operations"
OPERATIONS = "operations of the products in one step"
STEP = "ms of a step, 1 replica on 1 device"
TRAINED = "training and validation, share of the wall time"
STORED = ("xarray", "h5netcdf", "safetensors")
TORCH = ("torch", "PIL")
COMMAND = (*STORED, "tyro", "rich", "matplotlib", "mnist1d")

LENET = Sizes(replicas=8 * N)
TINY: Mapping[str, Any] = {
    "model": "lenet-20",
    "shape": (8, 8, 1),
    "examples": 120,
    "batch": 60,
    "steps": 4,
    "every": 2,
    "operations": 1e5,
    "squares": (32,),
}
RESNET = Sizes(
    model="resnet-20-16",
    shape=(32, 32, 3),
    examples=10_000,
    batch=128,
    optimizer="sgd",
    learning_rate=0.01,
    replicas=2 * N,
    steps=3,
)
TINY_RESNET = TINY | {"model": "resnet-8-4", "shape": (32, 32, 3), "batch": 8}
TINY_RESNET |= {"examples": 32, "steps": 1}


def _jax(function: str, devices: int = N, program: str = "run", **change: Any) -> Side:
    return Side(f"sides_jax:{function}", program, change, devices=devices)


def _torch(function: str, threads: int = N, processes: int = 1, **change: Any) -> Side:
    setup = f"sides_torch:{function}"
    return Side(setup, "run", change, threads=threads, processes=processes)


def _devices(number: int) -> str:
    return f"{number} device{'s' * (number != 1)}"


# lenet

_FUSED = {"steps": 600, "fused": True}
_PEERS = {
    f"PyTorch, plain loop, {N} threads": _torch("lenet", steps=600),
    f"PyTorch, fused Adam and foreach masks, {N} threads": _torch("lenet", **_FUSED),
    f"PyTorch, the same, {N} single-thread processes": _torch("lenet", 1, N, **_FUSED),
    "PyTorch, open_lth's loop, loading in the same process": _torch("open_lth"),
    "PyTorch, open_lth's loop, 2 processes load": _torch("open_lth", loaders=2),
}

_LENET = Row(
    "LeNet-300-100, batch 60, Adam 1.2e-3, random masks of density 0.2 on the kernels, "
    f"55,000 examples of 784 pixels (noise) in memory. lottery_jax: {8 * N} replicas on {N} "
    "host devices, one at a time on each, in the library's compiled loop, loss and error "
    "recorded at every step; the peers train one network per process and read nothing "
    "back. The peers' data orders are drawn beforehand, but in open_lth's loop: a loader "
    "that converts and normalises each image in Python, masks in the forward pass.",
    LENET,
    TINY,
    {
        US: _jax("train"),
        **_PEERS,
        PRODUCTS: _jax("ruler", steps=1500),
        PEAK: _jax("peak"),
    },
    ratios=[
        *(Ratio(US, peer) for peer in _PEERS),
        Ratio(US, tuple(_PEERS), Target(">=", 1.3)),
        Ratio(US, PRODUCTS, Target(">=", 0.8)),
        Ratio(US, PEAK, times=OPERATIONS),
        Ratio(PRODUCTS, PEAK, times=OPERATIONS),
    ],
    facts=[_jax("account", 1, replicas=1, steps=300)],
    turns=7,
    needs=TORCH,
)

# resnet20

_ALL = f"lottery_jax, {2 * N} replicas on {N} host devices"
_ONE = "lottery_jax, 1 replica on 1 device"
_STOCK = "JAX, stock convolutions, jitted steps from Python, 1 device"
_DEFAULT = f"PyTorch, default layout, {N} threads"
_LAST = f"PyTorch, channels-last, {N} threads"
GROWTH = f"temporary memory of a device, {8 * N} replicas in all against {N}"

_RESNET20 = Row(
    "ResNet-20, batch 128, CIFAR-10's shapes (noise in memory, no augmentation), SGD with "
    "momentum, random masks of density 0.2. lottery_jax: the library's compiled loop, the "
    "replicas of a device one after another. The stock side is the same model and step "
    "with `lax.conv_general_dilated` and its own gradients, one jitted call per step, its "
    "state donated. Memory is XLA's own account of the training program.",
    RESNET,
    TINY_RESNET,
    {
        _ALL: _jax("train"),
        _ONE: _jax("train", 1, replicas=1),
        _STOCK: _jax("stock", 1, replicas=1),
        _DEFAULT: _torch("resnet", steps=8),
        _LAST: _torch("resnet", steps=8, channels_last=True),
        PEAK: _jax("peak"),
    },
    ratios=[
        Ratio(_ALL, _STOCK),
        Ratio(_ONE, _STOCK),
        Ratio(_ALL, _ONE),
        Ratio(_ALL, _DEFAULT, Target(">", 1.0)),
        Ratio(_ALL, _LAST),
        Ratio(_ALL, PEAK, times=OPERATIONS),
    ],
    facts=[
        _jax("account", 1, replicas=1),
        _jax("memory", replicas=8 * N, steps=4),
    ],
    numbers=[Number(GROWTH, Target("<=", 1.05))],
    needs=TORCH,
)

# paths and branches

_BATCHES = {
    f"PyTorch, batch {b:,}, {N} threads": _torch("paths", batch=b)
    for b in (500, 2000, 10_000)
}
_FORWARD = "the forward products alone, 500 rows"
MORE = "growth of temporary memory from 30 to 300 alphas, as a share"

_PATHS = Row(
    "LeNet-300-100: error and loss of 9 pairs x 30 alphas on 10,000 images of 784 pixels "
    "(noise, uint8 in memory, normalised as they are read; the peer's are normalised "
    f"float32). lottery_jax: `connectivity.paths`, one point at a time on each of {N} host "
    "devices. Memory is XLA's own account of `error_along_path`.",
    Sizes(examples=100, test=10_000, pairs=9),
    TINY | {"test": 100, "batch": 50, "pairs": 2, "alphas": 3},
    {US: _jax("paths"), **_BATCHES, _FORWARD: _jax("forward", batch=500)},
    "images per second",
    [
        Ratio(US, _FORWARD, Target(">=", 0.9)),
        Ratio(US, tuple(_BATCHES), Target(">=", 1.0)),
    ],
    [_jax("paths_memory", 1, pairs=2)],
    [Number(MORE, Target("<=", 0.01))],
    turns=3,
    needs=TORCH,
)

_BRANCHING = Row(
    "LeNet-300-100, batch 60, Adam, 900 steps: 3 inits x 3 branches from each of steps 0, "
    f"90 and 300 as one batch of 27 rows on {N} host devices, each joining at its rewind "
    "step, transfers to the host included; against one compiled segment "
    f"of {N} replicas.",
    Sizes(replicas=N, density=1.0, steps=900),
    TINY | {"steps": 10},
    {"branches": _jax("branches"), "plain training": _jax("train")},
    ratios=[Ratio("branches", "plain training", Target(">=", 0.9))],
    turns=4,
)

# masks

_MLP = Sizes("mlp-100-100", (40,), 3000, batch=100, learning_rate=5e-3, steps=4000)
_NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "LeNet-300-100": {"steps": 600},
    "MNIST-1D MLP": _MLP._replace(replicas=N)._asdict(),
}

_MASKING = Row(
    "The library's loop with random masks of density 0.2 against the same loop written by "
    f"hand without masks, Adam, {N} replicas on {N} host devices. LeNet-300-100: batch 60. "
    "MNIST-1D MLP: 40-100-100-10, batch 100. Ratios are of time: 1.05 is 5% more.",
    Sizes(replicas=N),
    TINY,
    {
        f"{name}, {kind}": _jax(function, **sizes)
        for name, sizes in _NETWORKS.items()
        for kind, function in (("masked", "train"), ("unmasked", "unmasked"))
    },
    ratios=[
        Ratio(f"{name}, masked", f"{name}, unmasked", Target("<=", 1.05), time=True)
        for name in _NETWORKS
    ],
    turns=11,
)

# studies

_TINY_STUDY = Sizes(
    "mlp-8", (6,), 64, held_out=16, test=16, batch=8, steps=24, every=8, levels=(3,)
)._replace(replicas=2)

_COMPILATIONS = Row(
    "A study of 3 levels after level 0, 3 arms and 2 replicas of a tiny network, in a "
    "fresh process without a compilation cache; and the training program of two networks, "
    "compiled alone. Eager calls count, too.",
    _TINY_STUDY,
    TINY,
    facts=[
        _jax("levels"),
        *(
            _jax("compiling", **own._replace(replicas=N, label=label)._asdict())
            for label, own in (("LeNet-300-100", LENET), ("ResNet-20", RESNET))
        ),
    ],
    numbers=[
        Number("compilations from level 2 on", Target("<=", 0)),
        *(
            Number(f"{what} {model}", unit="s")
            for model in ("LeNet-300-100", "ResNet-20")
            for what in ("compiling", "tracing and lowering")
        ),
    ],
    needs=STORED,
)

_LEVELS = Row(
    "Iterative pruning of LeNet-300-100 by 20%, level 0 and 20 prunings of 2,000 steps, "
    f"ticket, reinit and random mask, 2 replicas (6 networks) on {N} host devices, "
    "validated every 100: with its checkpoints, tickets and tests, on noise of "
    "Fashion-MNIST's shape. Training and validation are the median of a level's segments, "
    "times their number. In turns: random masks of both densities.",
    Sizes(replicas=2, steps=2000, levels=(20,), held_out=5000, test=10_000),
    TINY | {"levels": (2,), "held_out": 50, "test": 50},
    {
        f"density {0.8**k:.3f}": _jax("train", replicas=N, density=0.8**k, steps=600)
        for k in (1, 20)
    },
    ratios=[Ratio("density 0.012", "density 0.800", Target("<=", 1.05), time=True)],
    facts=[_jax("levels")],
    numbers=[
        Number("time of the last level against level 1", Target("<=", 1.05)),
        Number("compilations from level 2 on", Target("<=", 0)),
        Number(
            f"{TRAINED} without compiling",
            Target(">=", 0.9),
        ),
        Number(TRAINED),
        Number("wall time", unit="s"),
        Number("tracing and compiling", unit="s"),
    ],
    turns=11,
    curves={"levels": {"LeNet-300-100": "ms of a replica-step by level"}},
    needs=STORED,
)

_STUDY = Row(
    "A study of 20 steps: LeNet-300-100, 3 arms, 2 replicas, 1 pruning, on noise of "
    "MNIST's shape, twice in one fresh process without a compilation cache. For the second "
    "call task and optimizer are made anew, by the same calls: what is compiled belongs to "
    "shapes and functions, not to objects.",
    Sizes(replicas=2, steps=20, every=10, held_out=5000, test=10_000),
    {"model": "lenet-20", "examples": 600, "held_out": 50, "test": 50},
    facts=[_jax("study")],
    numbers=[
        Number("first call", Target("<=", 7.0), "s"),
        Number("second call", Target("<=", 1.0), "s"),
        Number("compilations in the second call", Target("<=", 0)),
    ],
    repeats=3,
)

# sweeps

_RATES = (3e-4, 1.2e-3, 3e-3)
_SWEPT, _ONE_RATE = "3 rates x 3 replicas", "9 replicas at one rate"

_SWEEP = Row(
    f"`training.train` of nine LeNet-300-100 with Adam on {N} host devices, from the same "
    "networks: three learning rates for three replicas each, given to one program, against "
    "one rate that is written into it. Then the sweep again with other rates.",
    Sizes(replicas=9, steps=200, every=100),
    TINY | {"every": 1},
    {_SWEPT: _jax("runner", rates=_RATES), _ONE_RATE: _jax("runner")},
    ratios=[Ratio(_SWEPT, _ONE_RATE, Target(">=", 0.95))],
    facts=[_jax("sweeping", rates=_RATES)],
    numbers=[Number("compilations for other rates", Target("<=", 0))],
)

# scaling

_FIXED = 8 * N  # replicas while devices change; 4 N devices are more than the cores
_GRID = {
    1: sorted({1, 2, 4, 8, 16, 32, 64, N, _FIXED}),
    N: sorted({c for c in (1, 2, 4, 8, 16, 32, 64, N, _FIXED) if c % N == 0}),
}
for _several in (2, 4, 8, 2 * N, 4 * N):
    if _FIXED % _several == 0:
        _GRID.setdefault(_several, [_FIXED])
_WIDTHS = ((12, 10), (40, 20), (130, 60), (300, 100), (1000, 500), (3000, 2500))


def _grid(devices: int, replicas: int) -> str:
    return f"{_devices(devices)}, {replicas} replica{'s' * (replicas != 1)}"


def _weights(a: int, b: int) -> int:
    return 784 * a + a * b + 10 * b


def _width(a: int, b: int) -> str:
    return f"784-{a}-{b}-10, {_weights(a, b):,} weights"


def _wide(a: int, b: int) -> Side:
    steps = min(max(40_000_000 // _weights(a, b), 2), 4000)  # about as long for all
    return _jax("train", model=f"lenet-{a}-{b}", replicas=N, steps=steps)


_SCALING = Row(
    "`lenet`'s training in lottery_jax, the replicas of a device one after another, all "
    f"masks full; with more host devices than the {N} cores they share them. By "
    "parameters: dense networks with two hidden layers, one replica on each of "
    f"{_devices(N)}.",
    Sizes(density=1.0),
    TINY,
    {
        _grid(d, c): _jax("train", d, replicas=c, steps=max(1600 // c, 40))
        for d, counts in sorted(_GRID.items())
        for c in counts
    }
    | {_width(a, b): _wide(a, b) for a, b in _WIDTHS},
    ratios=[
        Ratio(_grid(4 * N, _FIXED), _grid(N, _FIXED), Target(">=", 0.85)),
        Ratio(_grid(N, _FIXED), _grid(1, _FIXED)),
        Ratio(_grid(1, 64), _grid(1, 1), time=True),
    ],
    turns=4,
    curves={
        "replicas": {
            _devices(d): {c: _grid(d, c) for c in _GRID[d]} for d in sorted({1, N})
        },
        "devices": {f"{_FIXED} replicas": {d: _grid(d, _FIXED) for d in sorted(_GRID)}},
        "parameters": {
            f"training, {_devices(N)}": {_weights(*w): _width(*w) for w in _WIDTHS}
        },
    },
)

# commands

_FIRST_STEP = "mnist1d --levels 0 --steps 1it --replicas 2"

_STARTUP = Row(
    f"`python -m experiments.imp {_FIRST_STEP}`, from the start of the process to the "
    "first line of its metrics: its 6 networks have made a step and are validated. Cold: "
    "empty caches; warm: data and compiled programs cached.",
    Sizes(flags=_FIRST_STEP),
    {"flags": f"{_FIRST_STEP} --model mlp-10"},
    facts=[Side("sides_command:first_step")],
    numbers=[
        Number(f"from the command to the first training step, {kind}", unit="s")
        for kind in ("cold", "warm")
    ],
    repeats=3,
    needs=COMMAND,
)

_MEMORY = Row(
    "`python -m experiments.imp`, the demo: 5 replicas, 3 arms, 17 levels on MNIST-1D, "
    "from the start of the process to its figures. Cold: empty caches; warm: data and "
    "compiled programs cached.",
    quick={
        "flags": "--levels 1 --steps 20it --replicas 1 --arms ticket --model mlp-10"
    },
    facts=[Side("sides_command:demo")],
    numbers=[
        Number("peak resident memory", Target("<=", 1.5), "GB"),
        Number("wall time, cold", unit="s"),
        Number("wall time, warm", unit="s"),
    ],
    needs=COMMAND,
)

# tickets in use

_AT = (7, 13, 18, 20, 23, 26)
_SIZES = (1, 128, 1024)

_COMPACTION = Row(
    "LeNet-300-100, tickets of iterative magnitude pruning (global, 20% per level, rewound "
    "to the start, Adam 1.2e-3, 500 steps of 60) on a synthetic task: 28 x 28 pixels, ten "
    "classes of three smooth patterns each, with noise and an empty frame. Forward passes, "
    "one jitted call at a time from Python, each waited for; 1 host device. Dense: full "
    "arrays, zeros included (the same at every density). Compacted: `compact.shrink`. "
    "BCOO: the compacted network's kernels as `jax.experimental.sparse.BCOO`, int32 "
    "indices.",
    Sizes(examples=10_000, test=10_000, steps=500, every=500, levels=_AT),
    TINY | {"model": "lenet-8-6", "test": 100, "seconds": 0.001},
    {f"dense, batch {b}": _jax("compaction", 1, f"dense {b}") for b in _SIZES}
    | {
        f"{form}, level {k}, batch {b}": _jax("compaction", 1, f"{form} {k} {b}")
        for form in ("compacted", "BCOO")
        for k in _AT
        for b in _SIZES
    },
    "images per second",
    [
        Ratio(f"{form}, level {k}, batch {b}", f"dense, batch {b}")
        for b in _SIZES
        for k in _AT
        for form in ("compacted", "BCOO")
    ],
    [_jax("compaction", 1, "facts")],
    needs=STORED,
)

# precision


_MNIST1D = Sizes(
    "mlp-100-100", batch=100, learning_rate=5e-3, steps=1500, fraction=0.36, levels=(5,)
)._replace(data="mnist1d", replicas=20)
_DIGITS = Sizes(
    "resnet-8-8", batch=64, learning_rate=3e-3, steps=250, fraction=0.6, levels=(3,)
)._replace(data="digits", replicas=6)

_PRECISION = Row(
    "The same pruning studies with the operands of all products rounded: an MLP on "
    "MNIST-1D, 20 replicas, 5 prunings by 36%, 1,500 steps; a narrow ResNet-8 on digits, 6 "
    "replicas, 3 prunings by 60%, 250 steps. Initial weights, data and their order are "
    "those of float32, replica by replica. Changes are mean paired differences with 95% t "
    "intervals. The rounding is that of an accelerator's matrix units; the speed is not, "
    "since a CPU has none.",
    quick={"steps": 4, "levels": (1,), "replicas": 2, "model": "mlp-10"},
    facts=[_jax("precision", **s._asdict()) for s in (_MNIST1D, _DIGITS)],
    numbers=[
        Number(f"test error, {data}, {when} level, {precision}: change", unit="points")
        for data in ("mnist1d", "digits")
        for when in ("first", "last")
        for precision in ("tensorfloat32", "bfloat16")
    ],
    needs=("mnist1d", "sklearn"),
)

# activations

_FASHION = Sizes(steps=1500, fraction=0.9, levels=(1,))
_FASHION = _FASHION._replace(data="fashion_mnist", label="LeNet", replicas=8)
_CIFAR = Sizes("resnet-8-4", batch=64, learning_rate=3e-3, steps=400, levels=(0,))
_CIFAR = _CIFAR._replace(data="cifar10", label="ResNet-8", replicas=6)

_ACTIVATIONS = Row(
    "The same pruning studies with what layers store and pass on rounded to bfloat16: "
    "LeNet-300-100 on Fashion-MNIST, 8 replicas, 1,500 steps, one pruning by 90%; a ResNet-8 "
    "of 4, 8 and 16 channels on CIFAR-10, 6 replicas, 400 steps, dense. Weights, sums, "
    "statistics, losses and the optimizer are float32. Changes are mean paired differences "
    "with 95% t intervals, as above. A CPU rounds after computing in float32: the speed is "
    "not an accelerator's. Both sets must have been prepared.",
    quick={"steps": 4, "replicas": 2, "model": "mlp-10", "data": "mnist1d"},
    facts=[_jax("activations", **s._asdict()) for s in (_FASHION, _CIFAR)],
    numbers=[
        Number(f"test error, {at} level, bfloat16: change", unit="points")
        for at in ("LeNet, first", "LeNet, last", "ResNet-8, first")
    ],
    needs=("tensorflow_datasets", "array_record", "mnist1d"),
)

# permutations

_EPOCH, _MASK = "an epoch of 55,000", "a mask of 2,425,024"
_PERMUTATIONS = Row(
    "A whole data order (LeNet's 55,000 examples) and a whole shuffled mask (as many weights "
    "as Conv-4 prunes) by the keyed permutation, on one device, against "
    "`jax.random.permutation`, which sorts. In training only the places of one batch are "
    "computed, in its own step.",
    Sizes(),
    {"examples": 300},
    {
        f"{what}, {how}": _jax("permutation", 1, how, examples=number)
        for what, number in ((_EPOCH, 55_000), (_MASK, 2_425_024))
        for how in ("keyed", "sorted")
    },
    unit="places per second",
    ratios=[
        Ratio(f"{what}, keyed", f"{what}, sorted", Target(">=", 10))
        for what in (_EPOCH, _MASK)
    ],
)

# selecting

_SELECTED = {
    "LeNet-300-100's first kernel": 235_200,
    "Conv-4": 2_425_024,
    "VGG-16": 14_715_584,
}
_RULERS = {what: ("sorted", "lax.top_k") for what in _SELECTED} | {
    "VGG-16": ("sorted",)  # seconds a call
}

_SELECTION = Row(
    "The mask of the higher half of so many normal float32 numbers, the weights of a layer "
    "or a network, in one compiled call on one device: `selection.keep_highest`, which is "
    "exact, ties by position; a sort whose middle value is the threshold, and `lax.top_k` "
    "the same way, both without a rule for ties.",
    Sizes(),
    {"examples": 300},
    {
        f"{what}, {how}": _jax("selecting", 1, how, examples=number)
        for what, number in _SELECTED.items()
        for how in ("ours", *_RULERS[what])
    },
    unit="values per second",
    ratios=[
        Ratio(f"{what}, ours", f"{what}, {how}", Target(">=", 10))
        for what in _SELECTED
        for how in _RULERS[what]
    ],
    facts=[
        _jax("selecting", 1, "facts", examples=number, label=what)
        for what, number in _SELECTED.items()
    ],
    numbers=[
        Number(f"selecting, {what}", Target("<=", bound), "ms")
        for what, bound in zip(_SELECTED, (2.5, 57, 700))
    ],
    turns=3,
)

_CUT = {"LeNet-300-100": Sizes(), "VGG-16": RESNET._replace(model="vgg-16")}

_PRUNING = Row(
    "20% of the weights that are left after a first pruning by 20%, by magnitude, on one "
    "device: `prune.global_topk` and `prune.layerwise_topk` as they are called from Python, "
    "and compiled.",
    Sizes(),
    {"model": "lenet-20", "shape": (8, 8, 1), "seconds": 0.001},
    facts=[
        _jax("pruning", 1, label=name, model=s.model, shape=s.shape, examples=100)
        for name, s in _CUT.items()
    ],
    numbers=[
        Number(f"{rule}, {name}{how}", Target("<=", bound), "ms")
        for name, bound in (("LeNet-300-100", 5), ("VGG-16", 1000))
        for rule in ("global_topk", "layerwise_topk")
        for how in ("", ", compiled")
    ],
)

# supermasks

_MASKS = {
    "LeNet-300-100": (Sizes(batch=100, steps=300), 2.2, 2.5),
    "Conv-2": (RESNET._replace(model="conv-2", batch=60, steps=6), 1.5, 1.5),
}
_METHODS = ("bernoulli", "edge-popup")

_SUPERMASK = Row(
    "A step of training the mask of frozen random weights against a plain step of the same "
    "network, both in the library's compiled loop with SGD and momentum 0.9, all masks full, "
    f"{N} replicas on {N} host devices. Bernoulli: a draw per weight and step; edge-popup: "
    "the half of each layer that scores highest, selected anew at each step. LeNet-300-100: "
    "batch 100 of 784 pixels; Conv-2: batch 60 of CIFAR-10's shapes. Ratios are of time.",
    Sizes(optimizer="sgd", learning_rate=0.01, density=1.0, replicas=N),
    TINY,
    {
        f"{name}, {kind}": _jax(
            "train",
            model=own.model,
            shape=own.shape,
            examples=10_000,
            batch=own.batch,
            steps=own.steps,
            method="" if kind == "plain" else kind,
        )
        for name, (own, *_) in _MASKS.items()
        for kind in ("plain", *_METHODS)
    },
    ratios=[
        Ratio(f"{name}, {method}", f"{name}, plain", Target("<=", bound), time=True)
        for name, (_, *bounds) in _MASKS.items()
        for method, bound in zip(_METHODS, bounds)
    ],
    turns=7,
)

# tickets of another task

_THERE, _HERE = "imp.retrain of grafted tickets", "training.train of dense networks"

_TRANSFER = Row(
    "LeNet-300-100, batch 60, Adam 1.2e-3, 55,000 examples of 784 pixels (noise): "
    f"{2 * N} replicas of 4 tickets of the same shapes, masks of density 0.2, grafted onto "
    "the task and trained with `imp.retrain` (stacking, moving, validation and test "
    f"included), against `training.train` of {8 * N} dense networks with validation at the "
    f"same steps; on {N} host devices, one at a time on each.",
    Sizes(replicas=2 * N, held_out=500, test=500, steps=600, every=300, pairs=4),
    TINY | {"held_out": 20, "test": 20, "pairs": 2, "replicas": N},
    {_THERE: _jax("transferred"), _HERE: _jax("untransferred")},
    ratios=[Ratio(_THERE, _HERE, Target(">=", 0.9))],
)

# pruning during training

_GROWN = {
    "LeNet-300-100": Sizes(steps=400),
    "Conv-2-8": RESNET._replace(model="conv-2-8", batch=60, steps=40),
}
_DURING = ("static", "gradual", "SET", "RigL", "straight-through")
_PLAIN = "plain optax"
_FREE, _STATIC = "training.train", "training.train, a static rule"
_EACH = {"gradual": "gradual, every 100", "RigL": "RigL, every 100"}
_CHANGED = {"LeNet-300-100": Sizes(), "ResNet-20": RESNET}

_DYNAMIC = Row(
    "Pruning during training at density 0.1, one replica on one device. A loop of one's own: "
    "the optimizer within `dynamic.masked`, between two updates of the mask, against the "
    "same loop with the optimizer alone; Adam, batch 60; Conv-2-8 is Conv-2 with 8 channels "
    "on CIFAR-10's shapes. The runner: `training.train` of LeNet-300-100 for 600 steps with a "
    "rule that starts with a mask and never changes it, and with rules that act every 100 "
    "steps, their updates included, against none. Ratios are of time. An update of the "
    "mask, compiled: a rule, the weights and Adam's state under the new mask, the gradient "
    "given; 2 of 4, blocks of 4 x 4 and channels spare the layers that 4 does not divide. "
    "Each of 8: 8 replicas by `jax.vmap`, the time of one. Weights are random.",
    Sizes(density=0.1),
    TINY | {"seconds": 0.001},
    {
        f"{name}, {kind}": _jax(
            "own_loop",
            1,
            rule="" if kind == _PLAIN else kind,
            model=own.model,
            shape=own.shape,
            examples=10_000,
            batch=own.batch,
            steps=own.steps,
        )
        for name, own in _GROWN.items()
        for kind in (_PLAIN, *_DURING)
    }
    | {
        what: _jax("runner", 1, rule=rule, steps=600, every=600)
        for what, rule in ((_FREE, ""), (_STATIC, "static"))
    }
    | {
        f"training.train, {what}": _jax("runner", 1, rule=what, steps=600, every=600)
        for what in _EACH.values()
    },
    ratios=[
        *(
            Ratio(f"{name}, {kind}", f"{name}, {_PLAIN}", Target("<=", 1.05), time=True)
            for name in _GROWN
            for kind in _DURING
        ),
        Ratio(_STATIC, _FREE, Target("<=", 1.05), time=True),
        *(
            Ratio(f"training.train, {what}", _FREE, time=True)
            for what in _EACH.values()
        ),
    ],
    facts=[
        _jax("updating", 1, label=name, model=s.model, shape=s.shape, examples=100)
        for name, s in _CHANGED.items()
    ],
    turns=9,
)


# encoders

_ENCODERS = {
    "BERT-tiny": Sizes("bert-2-128-2-512", steps=8),
    "MiniLM-L6": Sizes("bert-6-384-12-1536", steps=2),
}
_HEADS = {"masked tokens": "masked_lm", "sentences": "classes"}
_TRAINED = {
    f"{name}, {task}": {"model": own.model, "steps": own.steps, "head": head}
    for name, own in _ENCODERS.items()
    for task, head in _HEADS.items()
}
_PLAIN_JAX, _ENCODER_PEER = "plain JAX", f"PyTorch, {N} threads"

_ENCODER = Row(
    "A training step of an encoder, AdamW, batch 32 of 64 tokens (noise), dropout 0.1, one "
    "network with all cores. BERT-tiny: 2 layers of width 128; MiniLM-L6: 6 of 384; 30,522 "
    "token ids. Masked tokens: 10 of each window, gathered before the tied decoder; "
    "sentences: a pooler and 2 classes. lottery_jax: its tasks in its compiled loop, random "
    "masks of density 0.3 on the kernels of the layers. Plain JAX: the same model without "
    "masks under optax, one jitted call per step, its state donated. PyTorch: the same "
    "encoder, fused AdamW, masks by one call after each step. Ratios with a target are of "
    "time: 1.05 is 5% more.",
    Sizes(
        shape=(64,),
        examples=4000,
        batch=32,
        optimizer="adamw",
        learning_rate=1e-4,
        density=0.3,
    ),
    {
        "model": "bert-1-8-2-16",
        "shape": (8,),
        "examples": 16,
        "batch": 4,
        "vocabulary": 40,
        "steps": 2,
    },
    {
        f"{what}, {who}": side
        for what, own in _TRAINED.items()
        for who, side in (
            (US, _jax("train", 1, **own)),
            (_PLAIN_JAX, Side("sides_encoder:plain", change=own, devices=1)),
            (_ENCODER_PEER, _torch("encoder", **own)),
        )
    },
    ratios=[
        ratio
        for what in _TRAINED
        for ratio in (
            Ratio(
                f"{what}, {US}",
                f"{what}, {_PLAIN_JAX}",
                Target("<=", 1.10),
                time=True,
            ),
            Ratio(f"{what}, {US}", f"{what}, {_ENCODER_PEER}"),
        )
    ],
    turns=7,
    needs=TORCH,
)


# policies

GAMES, HORIZON = 32, 4
"""Games that a policy plays at once, and time steps of each in a step of training."""

_PLAYED = {
    "CartPole": {"data": "cartpole-v0", "model": "actor-critic-128-128-128"},
    "Acrobot": {"data": "acrobot-v1", "model": "actor-critic-256-256-256"},
}

_POLICY = Row(
    "A step of advantage actor-critic, RMSprop, 32 games for 4 time steps, which are played "
    "on the device; one network on one device. CartPole: 3 layers of 128; Acrobot: of 256. "
    "lottery_jax: its task in its compiled loop, random masks of density 0.05 on the "
    "kernels. Plain JAX: the same network and environment without masks, all steps in one "
    "compiled loop. Ratios are of time: 1.05 is 5% more.",
    Sizes(
        head="policy", optimizer="rmsprop", learning_rate=1e-3, density=0.05, steps=300
    ),
    {"model": "actor-critic-8", "steps": 2},
    {
        f"{what}, {who}": side
        for what, own in _PLAYED.items()
        for who, side in (
            (US, _jax("train", 1, **own)),
            (_PLAIN_JAX, Side("sides_policy:plain", change=own, devices=1)),
        )
    },
    ratios=[
        Ratio(f"{what}, {US}", f"{what}, {_PLAIN_JAX}", Target("<=", 1.25), time=True)
        for what in _PLAYED
    ],
    turns=7,
)


# attacks

_ATTACKS = {"plain": 0, "FGSM": 1, "PGD-7": 7, "PGD-10": 10}
_ATTACKED = {
    "LeNet-300-100": Sizes(batch=128, steps=60),
    "ResNet-8-8": RESNET._replace(model="resnet-8-8", batch=128, steps=3),
}
_STOCK_ATTACK = "ResNet-8-8, PGD-7, stock convolutions"


def _attacked(function: str, own: Sizes, attack: int) -> Side:
    return _jax(
        function,
        1,
        model=own.model,
        shape=own.shape,
        optimizer=own.optimizer,
        batch=own.batch,
        steps=own.steps,
        attack=attack,
    )


_ADVERSARIAL = Row(
    "A step of training under attack against a plain step of the same network, batch 128, in "
    "the library's compiled loop, one replica on one device. FGSM: one gradient in the "
    "images before the step; PGD: 7 and 10 of them, from random starts; radius 8/255. Images "
    "of MNIST's shape and of CIFAR-10's (noise); ResNet-8-8: 8 channels, BatchNorm by the "
    "batch inside of the attack. Ratios are of time; a target is 1 and the number of the "
    "attack's gradients: each pass counted as a step. Stock convolutions: the same attack "
    "and step through `jax.lax`'s, one jitted call per step.",
    Sizes(examples=10_000, density=1.0),
    TINY,
    {
        f"{name}, {kind}": _attacked("train", own, steps)
        for name, own in _ATTACKED.items()
        for kind, steps in _ATTACKS.items()
    }
    | {_STOCK_ATTACK: _attacked("stock", _ATTACKED["ResNet-8-8"], 7)},
    ratios=[
        Ratio(f"{name}, {kind}", f"{name}, plain", Target("<=", 1 + steps), time=True)
        for name in _ATTACKED
        for kind, steps in _ATTACKS.items()
        if steps
    ]
    + [Ratio("ResNet-8-8, PGD-7", _STOCK_ATTACK, time=True)],
    turns=7,
)


# contrastive

_SIMCLR = "SimCLR"

_CONTRASTIVE = Row(
    "A training step of ResNet-8 of width 8 on noise of 32 x 32 x 3, batch 128, SGD with "
    "momentum, one network with all cores. SimCLR: two views of each image, so 256 go "
    "through the network, a projection 32-128-64 and the contrastive loss; supervised: the "
    "same network with 10 classes, not augmented. lottery_jax: its tasks in its compiled "
    "loop, random masks of density 0.2. Plain JAX: the same network and views without "
    "masks under optax, one jitted call per step, its state donated. Ratios are of time: "
    "1.05 is 5% more.",
    Sizes(
        model="resnet-8-8",
        shape=(32, 32, 3),
        examples=10_000,
        batch=128,
        optimizer="sgd",
        learning_rate=0.01,
        steps=4,
    ),
    TINY_RESNET,
    {
        f"{_SIMCLR}, {US}": _jax("train", 1, head="projection"),
        f"{_SIMCLR}, {_PLAIN_JAX}": Side("sides_contrastive:plain", devices=1),
        f"supervised, {US}": _jax("train", 1),
    },
    ratios=[
        Ratio(
            f"{_SIMCLR}, {US}",
            f"{_SIMCLR}, {_PLAIN_JAX}",
            Target("<=", 1.10),
            time=True,
        ),
        Ratio(f"{_SIMCLR}, {US}", f"supervised, {US}", time=True),
    ],
    turns=9,
)

# streaming

_IN_MEMORY = {
    "ResNet-8-8": "ResNet-8-8, in memory",
    "LeNet": "LeNet-300-100, in memory",
}
_MAPPED = {"ResNet-8-8": "ResNet-8-8, streamed", "LeNet": "LeNet-300-100, streamed"}
_READ: Mapping[str, Mapping[str, Any]] = {
    "ResNet-8-8": {},
    "LeNet": dict(
        model="lenet-300-100",
        shape=(28, 28, 1),
        batch=60,
        optimizer="adam",
        augment=False,
        steps=1000,
        every=500,
    ),
}


def _streamed(function: str, program: str, **change: Any) -> Side:
    return Side(f"sides_streamed:{function}", program, change, devices=N)


_STREAMING = Row(
    f"The runner on {N} replicas, {N} host devices: the same examples (noise, 45,000) as "
    "arrays in memory and as a memory map of a file, of which each window is read in a "
    "thread while the one before is trained on. Every replica has an order of its own. "
    "ResNet-8 of width 8 on images of CIFAR-10's shape, batch 128, flip and crop; "
    "LeNet-300-100, batch 60, on MNIST's, where a step takes a millisecond.",
    Sizes(
        model="resnet-8-8",
        shape=(32, 32, 3),
        examples=45_000,
        batch=128,
        optimizer="sgd",
        learning_rate=0.01,
        augment=True,
        replicas=N,
        steps=40,
        every=20,
    ),
    TINY_RESNET | {"every": 1},
    {
        text: _streamed("train", program, **_READ[name])
        for names, program in ((_IN_MEMORY, "memory"), (_MAPPED, "streamed"))
        for name, text in names.items()
    },
    ratios=[
        Ratio(
            _MAPPED[name],
            _IN_MEMORY[name],
            Target(">=", 0.95) if name != "LeNet" else None,
        )
        for name in _READ
    ],
    facts=[_streamed("waiting", "run", steps=200, every=100)],
    numbers=[Number("share of the time that devices waited for data", unit="share")],
    turns=25,
)

_SOURCES = Row(
    "Examples that one thread reads from each source, a window of 512 in rising order, as the "
    "runner asks for them: maps of uint8 pixels (in the page cache), a folder of PNG files of "
    "CIFAR-10's shape, a folder of JPEG files of 500 x 375 pixels (quality 90) of which the "
    "middle square is cut and resized.",
    Sizes(examples=1024, batch=512),
    {"examples": 20, "batch": 10},
    {
        name: _streamed("sources", name)
        for name in (
            "map of 32 x 32",
            "map of 64 x 64",
            "map of 256 x 256",
            "PNG of 32 x 32",
            "JPEG of 500 x 375 to 64 x 64",
            "JPEG of 500 x 375 to 256 x 256",
        )
    },
    unit="examples per second",
    needs=("PIL",),
)

ROWS: Mapping[str, Row] = {
    "lenet": _LENET,
    "resnet20": _RESNET20,
    "paths": _PATHS,
    "masking": _MASKING,
    "branching": _BRANCHING,
    "study": _STUDY,
    "compilations": _COMPILATIONS,
    "scaling": _SCALING,
    "levels": _LEVELS,
    "startup": _STARTUP,
    "memory": _MEMORY,
    "compaction": _COMPACTION,
    "precision": _PRECISION,
    "activations": _ACTIVATIONS,
    "permutations": _PERMUTATIONS,
    "selection": _SELECTION,
    "pruning": _PRUNING,
    "supermask": _SUPERMASK,
    "sweep": _SWEEP,
    "transfer": _TRANSFER,
    "dynamic": _DYNAMIC,
    "encoder": _ENCODER,
    "policy": _POLICY,
    "adversarial": _ADVERSARIAL,
    "contrastive": _CONTRASTIVE,
    "streaming": _STREAMING,
    "sources": _SOURCES,
}
"""All rows by name, in the order of the table; they are for a CPU: see `benchmarks.gpu`."""
