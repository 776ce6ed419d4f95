"""What a run takes, before anything starts: `python -m experiments.NAME [PRESET] --plan`.

Counted are trainings and steps, as the experiment says them (`Experiment.work`), examples
that are read from a streamed source, and bytes on the host and the disk, from shapes. The
training program is compiled for this machine's devices, from shapes as well, and says what
memory it needs. Hours follow from a rate. Nothing is trained and nothing is written; data
that are not there are counted by their published sizes.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import cost, launch, recipes
from experiments.cost import Measured, Training, Work
from experiments.recipes import Setup
from lottery_jax import keys, streams, training
from lottery_jax.execution import Execution, default_execution, memory
from lottery_jax.optimizers.settings import at
from lottery_jax.storage import checkpoints
from lottery_jax.training import loop, segment
from lottery_jax.types import (
    Network,
    PyTree,
    StreamState,
    TrainState,
)

CAPACITY = 64
"""Steps of a segment that a program is compiled for."""


# --- one network, by its shapes -------------------------------------------------------


class Bytes(NamedTuple):
    """Of one network.

    Attributes:
      network: its weights and model state.
      state: of its training: optimizer and mask, too.
      mask: stored bit by bit.
    """

    network: int
    state: int
    mask: int


def hyper(setup: Setup) -> dict[str, float]:
    """A setting of what a set-up's optimizer is a function of; {} for an optimizer."""
    if not callable(setup.tx):
        return {}
    swept = recipes.sweep(setup.cfg, setup.task.steps_per_epoch)
    return {name: values[0] for name, values in swept.items()}


def state(setup: Setup) -> TrainState:
    """The shapes of one network in training."""
    params, model_state, stream = setup.task.shapes

    def start(network: Network, stream: StreamState) -> TrainState:
        own = at(setup.tx, hyper(setup))
        mask = jax.tree.map(lambda p: p == p, network.params)
        return loop.start(own, network, stream, mask)

    return jax.eval_shape(start, Network(params, model_state), stream)


def size(tree: PyTree) -> int:
    """Bytes of arrays, or of their shapes."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.shape) * _itemsize(x.dtype) for x in leaves)


def _itemsize(dtype: Any) -> int:
    return 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize


def bytes_of(setup: Setup) -> Bytes:
    """What one network of a set-up takes."""
    one = state(setup)
    weights = sum(math.prod(p.shape) for p in jax.tree.leaves(one.params))
    return Bytes(size(one.network), size(one), -(-weights // 8))


# --- device memory --------------------------------------------------------------------


class Device(NamedTuple):
    """What the training program needs on each device, by XLA's own account.

    Attributes:
      of: what it trains.
      networks: in it.
      execution: how.
      data: bytes of all splits that lie there.
      fixed: of the program's other arguments and its results.
      temporary: of all between; they grow with the networks at once.
      seconds: that compiling took.
    """

    of: Training
    networks: int
    execution: Execution
    data: int
    fixed: int
    temporary: int
    seconds: float

    @property
    def total(self) -> int:
        """All of it."""
        return self.data + self.fixed + self.temporary


def together(one: Training) -> int:
    """How many of its networks train side by side: those of a group of replicas."""
    cfg = one.of.setup.cfg if one.of.setup is not None else None
    group, replicas = (getattr(cfg, name, None) for name in ("group_size", "replicas"))
    if group is None or not replicas or group >= replicas:
        return one.networks
    return -(-one.networks * group // replicas)


def largest(work: Work) -> Training:
    """The training whose networks and batches are the largest together."""

    def own(one: Training) -> int:
        assert one.of.setup is not None
        batch = one.of.batch_size * size(_examples(one.of.setup))
        return together(one) * (bytes_of(one.of.setup).state + batch)

    return max(work.trainings, key=own)


def _examples(setup: Setup) -> PyTree:
    """The shapes of one training example; () if the task has none."""
    data = setup.task.data
    split = data.get("train", ()) if isinstance(data, Mapping) else ()
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), split)


def placed(data: PyTree, window: int) -> PyTree:
    """The shapes of what lies on the devices: of a streamed split a window alone.

    Args:
      data: of a task.
      window: examples of a training window.
    """
    away = streams.streamed(data)

    def leaf(path: Any, x: Any) -> Any:
        number = len(x) if np.ndim(x) else None
        if path and (split := getattr(path[0], "key", None)) in away:
            number = min(window, len(away[split])) if split == "train" else 1
        shape = x.shape if number is None else (number, *x.shape[1:])
        return jax.ShapeDtypeStruct(shape, x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, data)


def trainer(setup: Setup, execution: Execution) -> Any:
    """The steps of a segment of many networks, as the runner takes them."""
    functions = setup.task.functions
    return segment.train_rows(functions, execution, setup.tx, CAPACITY)


def specs(setup: Setup, rows: int, execution: Execution, window: int) -> Sequence[Any]:
    """The shapes of what `trainer` is called with, and where they lie.

    Args:
      setup: what is trained.
      rows: networks, in a number that the devices divide.
      execution: the devices.
      window: examples of a training window.
    """

    def row(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=execution.sharded)

    def shared(x: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=execution.shared)

    key = jax.eval_shape(lambda: keys.of_seed(0))
    step = jax.ShapeDtypeStruct((), np.int32)
    return (
        jax.tree.map(shared, placed(setup.task.data, window)),
        jax.tree.map(lambda x: row(x.shape, x.dtype), state(setup)),
        row((), key.dtype),
        step,
        step,
        {name: row((), np.float32) for name in hyper(setup)},
        row((), np.int32),
        row((), bool),
    )


def orders(one: Training) -> int:
    """How many data orders what trains side by side has, each of which is read."""
    setup = one.of.setup
    if setup is not None and setup.cfg.shared_order:
        return 1
    return -(-one.orders * together(one) // one.networks)


def device(one: Training, execution: Execution) -> Device:
    """Compiles the program of a training, from shapes, and asks what it needs.

    Args:
      one: the training.
      execution: the devices.
    """
    setup, number = one.of.setup, together(one)
    assert setup is not None
    window = (setup.cfg.window_steps or 1) * one.of.batch_size * orders(one)
    given = specs(setup, execution.padded(number), execution, window)
    begin = time.monotonic()
    fixed, temporary = memory.needed(trainer(setup, execution), *given)
    seconds = time.monotonic() - begin
    # What a program does not look at is none of its arguments.
    data = given[0]
    seen = data.get("train", data) if isinstance(data, Mapping) else data
    fixed = max(fixed - size(seen), 0)
    return Device(one, number, execution, size(data), fixed, temporary, seconds)


# --- hours ----------------------------------------------------------------------------


class Rate(NamedTuple):
    """How many replica-steps a second there are, and who says so."""

    steps: float
    source: str


MOST_SECONDS, MOST_BYTES = 15.0, 2**30
"""A program that took longer to compile, or needs more, is not tried for its rate."""


def rate(cfg: Any, work: Work, found: Device, given: float | None) -> Rate | None:
    """The rate that hours are counted by; None if none is known.

    Args:
      cfg: the configuration.
      work: what it computes.
      found: its largest training, compiled.
      given: `--rate`.
    """
    if given is not None:
        return Rate(given, "as stated")
    known = cost.RATES.get((cfg.model, cfg.activations))
    if known is not None and (minutes := cost.minutes(cfg, work)) is not None:
        return Rate(work.total / minutes / 60, known.measured)
    setup = found.of.of.setup
    assert setup is not None
    small = found.seconds < MOST_SECONDS and found.total < MOST_BYTES
    if not small or not recipes.there(setup.cfg) or streams.streamed(setup.task.data):
        return None
    return Rate(measured(setup, found), "of some steps, just now, on this machine")


def measured(setup: Setup, found: Device) -> float:
    """The replica-steps/s of a training, by some steps of drawn networks.

    Args:
      setup: what is trained.
      found: it, compiled.
    """
    execution, number = found.execution, found.networks
    own = keys.of_replicas(setup.cfg.seed, np.arange(number))
    swept = {name: [value] * number for name, value in hyper(setup).items()}
    runs = training.fresh(setup.task, setup.tx, own.init, own.noise, hyper=swept)
    zeros = np.zeros(number, np.int32)
    rows = own.noise, dict(runs.hyper), zeros, np.ones(number, bool)
    noise, values, *which = execution.spread(rows)
    given = execution.share(setup.task.data), execution.place(runs.state), noise
    run = trainer(setup, execution)

    def seconds(steps: int) -> float:
        begin = time.monotonic()
        bounds = np.int32(0), np.int32(steps)
        jax.block_until_ready(run(*given, *bounds, values, *which))
        return time.monotonic() - begin

    seconds(1)  # compiles
    steps, took = 1, seconds(1)
    while took < 0.5 and steps < CAPACITY:
        steps = min(2 * steps, CAPACITY)
        took = seconds(steps)
    return number * steps / took


# --- in words -------------------------------------------------------------------------


def shown(name: str, cfg: Any, work: Work, given: float | None = None) -> Iterator[str]:
    """The lines of a plan; each comes when it is known.

    Args:
      name: of experiment and preset.
      cfg: the configuration.
      work: what it computes.
      given: `--rate`, replica-steps/s.
    """
    yield f"{name}: {cfg.model} on {cfg.data}"
    yield ""
    names = [x.name for x in work.trainings] + [x.name for x in work.measured]
    width = max(map(len, names))
    for one in work.trainings:
        times = f", {one.times} times" if one.times > 1 else ""
        yield (
            f"  {one.name:<{width}}  {_networks(one.networks)}, steps {one.first:,} to "
            f"{one.last:,}{times}"
        )
    for other in work.measured:
        what = "points" if other.path else "networks"
        yield (
            f"  {other.name:<{width}}  {other.points:,} {what} on {other.examples:,} "
            "examples each"
        )
    yield ""
    most = f"at most: {work.bound}; " if work.bound else ""
    number = sum(one.networks * one.times for one in work.trainings)
    steps = sum(one.steps for one in work.trainings)
    yield (
        f"Trainings: {most}{number:,}, in {steps:,} steps one after another; "
        f"{work.training:,} replica-steps"
    )
    yield (
        f"Measuring: as much as {work.evaluation + work.paths:,.0f} replica-steps; "
        f"in all {work.total:,.0f}"
    )
    execution = launch.execution(cfg) or default_execution()
    found = device(largest(work), execution)
    speed = rate(cfg, work, found, given)
    seconds = None if speed is None else work.total / speed.steps
    yield f"Examples: {_reading(work, seconds)}"
    yield f"Device memory: {_memory(found)}"
    yield f"Kept on the host: at most {_amount(host(work))}, beside the data"
    yield f"Disk: at most {_amount(disk(work))} of checkpoints and tickets"
    if speed is None or seconds is None:
        yield "Hours: no rate is known; pass --rate REPLICA-STEPS/S"
    else:
        yield (
            f"Hours: {seconds / 3600:,.2f} at {speed.steps:,.0f} replica-steps/s "
            f"({speed.source})"
        )


def host(work: Work) -> int:
    """Bytes that are kept on the host at a time, at most: of the largest training."""
    most = 0
    for one in work.trainings:
        assert one.of.setup is not None
        own, number = bytes_of(one.of.setup), together(one)
        held = one.held * number // one.networks
        most = max(most, held * own.network + number * one.kept * own.state)
    return most


def disk(work: Work) -> int:
    """Bytes of checkpoints and tickets of all trainings, at most."""
    total = 0
    for one in work.trainings:
        assert one.of.setup is not None
        own = bytes_of(one.of.setup)
        each = (1 + one.kept) * own.state + one.best * own.network
        # Of levels the last two, of a study its last two moments.
        moments = one.networks * each * min(one.times, 2) + one.held * own.network
        total += checkpoints.KEEP * moments
        total += one.tickets * (own.network + own.mask)
    return total


def _reading(work: Work, seconds: float | None) -> str:
    """What is read of streamed splits, and how fast that is."""
    read = size_of_all = 0
    pieces: list[Training | Measured] = [*work.trainings, *work.measured]
    for one in pieces:
        if one.of.setup is None:
            continue
        away, own = streams.streamed(one.of.setup.task.data), 0
        groups = _groups(one.of.setup.cfg)
        if isinstance(one, Training):
            if "train" in away:
                shared = one.of.setup.cfg.shared_order
                own += groups * one.read // one.orders if shared else one.read
            if away:  # all networks of a group are measured in one pass
                own += groups * one.times * one.evaluated
        elif away:
            passes = math.ceil(one.points / groups / AT_ONCE) if one.path else 1
            own += groups * passes * one.examples
        read += own
        size_of_all += own * max((x.nbytes for x in away.values()), default=0)
    if not read:
        return "none are streamed; all data lie on each device"
    text = f"{read:,} are read from a streamed source, {_amount(size_of_all)} in all"
    return text if seconds is None else f"{text}: {read / seconds:,.0f} a second"


AT_ONCE = 128
"""Points of paths for which a split is read once, see `connectivity.evaluation`."""


def _groups(cfg: Any) -> int:
    """In how many groups replicas train, one after another: each reads for itself."""
    size, replicas = getattr(cfg, "group_size", None), getattr(cfg, "replicas", 1)
    return math.ceil(replicas / size) if size and isinstance(replicas, int) else 1


def _memory(found: Device) -> str:
    execution = found.execution
    devices = execution.available[: execution.devices]
    kind = devices[0].device_kind
    rows = execution.padded(found.networks)
    once = memory.at_once(execution, rows)
    text = (
        f"{_amount(found.total)} on each of {len(devices)} ({kind}), as compiled: "
        f"{_amount(found.data)} of data, {_amount(found.fixed)} of other arguments and "
        f"results, {_amount(found.temporary)} of all between, for "
        f"{_networks(found.networks)} of {found.of.name!r}, {once} at once on a device"
    )
    setup = found.of.of.setup
    assert setup is not None
    if away := streams.streamed(setup.task.data).get("train"):
        step = found.of.of.batch_size * orders(found.of) * away.nbytes
        steps = setup.cfg.window_steps or 1
        text += (
            f"; of what is streamed a window of {steps} step{'s' * (steps > 1)} is among "
            f"the data: each is {_amount(step)}, and two windows lie there at a time"
        )
    return f"{text} ({found.seconds:.0f} s to compile)"


def _networks(number: int) -> str:
    return "1 network" if number == 1 else f"{number:,} networks"


def _amount(number: float) -> str:
    """Bytes in the unit that suits them."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(int(math.log(max(number, 1), 1024)), len(units) - 1)
    return f"{number / 1024**power:,.{1 if power else 0}f} {units[power]}"


def show(
    name: str,
    cfg: Any,
    prepare: Callable[[Any], Any],
    work: Callable[[Any], Work],
    given: float | None,
) -> None:
    """Prints a plan, line by line as it is known.

    Args:
      name: of experiment and preset.
      cfg: the configuration.
      prepare: of the experiment.
      work: likewise.
      given: `--rate`, replica-steps/s.

    Raises:
      ValueError: a field that makes no sense; names it.
    """
    with recipes.by_size():
        for line in shown(name, cfg, work(prepare(cfg)), given):
            print(line, flush=True)
