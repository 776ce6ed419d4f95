"""What of streamed splits lies on the devices: windows, the next of which is being read.

A window of training holds the examples that the orders of all runs name for some steps,
each once, and for each run the places in it of what a step's batch is made of. `seen` makes
of a task one whose order is these places: what is compiled, and what is computed, is the
same as with the whole split on the devices. A window of evaluation is a part of a split.

While one window is computed with the next one is read, in a thread.
"""

import concurrent.futures
import contextlib
import functools
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lottery_jax import streams
from lottery_jax.execution import AXIS, DATA_AXIS, Execution, Waited, memory
from lottery_jax.execution.replicas import whole
from lottery_jax.keys import noise_keys
from lottery_jax.streams import Examples
from lottery_jax.training.programs import program
from lottery_jax.types import Array, Key, PyTree, Task

T = TypeVar("T")
R = TypeVar("R")

Job: TypeAlias = Callable[[], Callable[[], T]]
"""Called in the main thread; what it returns is called in another one, and reads."""

TRAIN = "train"
"""The split whose examples an order names."""

SHARE = 1 / 8
"""Of the memory of a device: what the windows take if nobody says how long they are."""

ON_HOST = 2**29
"""Bytes, instead, where a device does not say how much it has: the host's own."""


class Window(NamedTuple):
    """The examples of some steps of many runs, on the devices.

    Attributes:
      examples: arrays by field, `[groups, N, ...]`: each group of devices has those of its
        own runs, and each device of a group an equal part; what lies behind them is not
        looked at.
      places: where among them each step's batch lies, int32 `[P, steps, ...]`.
    """

    examples: dict[str, Array]
    places: Array


class Layout(NamedTuple):
    """How large the windows of some runs are.

    Attributes:
      steps: in a window.
      room: for so many examples.
      together: whether all groups of devices hold the same ones.
    """

    steps: int
    room: int
    together: bool


def seen(
    functions: Task,
    data: PyTree,
    examples: Mapping[str, Array],
    places: Array,
    first: Array | int,
) -> Task:
    """A task whose training data are those of a window: pure, of one run.

    Args:
      functions: of the task.
      data: its splits that lie on the devices as a whole.
      examples: of the window, `[N, ...]` by field.
      places: of the run, int32 `[steps, ...]`.
      first: the step, by the run's own count, of the first of these.
    """

    def order(key: Key, step: Array) -> Array:
        return places[step - first]

    return functions._replace(data={**data, TRAIN: examples}, order=order)


# --- of training ----------------------------------------------------------------------


class Reader:
    """Makes the windows of runs that lie on devices in an order.

    Attributes:
      layout: how large they are; settled by the steps that the first run begins with.
    """

    def __init__(
        self,
        task: Task,
        execution: Execution,
        noise: Key,
        joins: np.ndarray,
        offset: np.ndarray,
        window: int | None,
        longest: int,
    ) -> None:
        """Sees which runs have an order in common, and how many steps fit.

        Args:
          task: whose split "train" is streamed.
          execution: the devices.
          noise: noise keys as rows on these, `[P]`.
          joins: the step at which each row begins to train; one that never does comes last.
          offset: of each row, `[P]`.
          window: steps of a window; None for as many as fit, see `Where`.
          longest: steps of the longest segment.

        Raises:
          MemoryError: so many steps do not fit on a device; says how many would.
        """
        self.examples = streams.streamed(task.data)[TRAIN]
        self.functions, self.execution = task.functions, execution
        self.noise, self.joins = noise, joins
        self.offset = execution.place(offset)
        never = np.iinfo(np.int32).max
        self.real = joins < never
        self.shape: tuple[int, ...] = ()  # of a batch, which the first of them tells
        once = self._asked(int(joins.min()), 1)
        sizes = [_streams(once[rows]) for rows in self._blocks(False)]
        whole = _streams(once[self.real])
        # One copy of what all need, if it is not much more than what each needs.
        together = whole <= 1.5 * max(sizes)
        self.shape, batch = once.shape[2:], once[0].size
        rows = (whole if together else max(sizes)) * batch
        shards = execution.data_parallel
        steps = _steps(rows * self.examples.nbytes, shards, window, longest)
        room = self._divided(min(rows * steps, len(self.examples)))
        self.layout = Layout(steps, room, together)

    def _blocks(self, together: bool) -> list[np.ndarray]:
        """The rows whose examples are read together: of all groups, or of each."""
        rows = np.arange(len(self.joins))
        real = self.real
        if together:
            return [rows[real]]
        return [part[real[part]] for part in np.split(rows, self.execution.groups)]

    def _divided(self, number: int) -> int:
        """The next number of examples that the devices of a group divide."""
        shards = self.execution.data_parallel
        return -(-number // shards) * shards

    def _asked(self, a: int, steps: int) -> np.ndarray:
        shape = len(self.joins), steps, *self.shape
        with whole(jax.ShapeDtypeStruct(shape, np.int32), self.execution.groups):
            return np.asarray(self._ask(a, steps))

    def _ask(self, a: int, steps: int) -> Array:
        one = program(_orders, self.functions, self.execution.placement, steps)
        return one(self.noise, self.offset, np.int32(a))

    def empty(self) -> Window:
        """A window of no step, to try a program."""
        none = np.zeros((len(self.joins), 0, *self.shape), np.int32)
        return self._window(none, 0, Waited())

    def specs(self) -> Window:
        """What a program is compiled for: the shapes of a window, and where they lie."""
        execution, layout = self.execution, self.layout
        examples = {
            name: jax.ShapeDtypeStruct(
                (execution.groups, layout.room, *one.shape),
                one.dtype,
                sharding=_divided(execution),
            )
            for name, one in self.examples.fields.items()
        }
        places: Any = jax.ShapeDtypeStruct(
            (len(self.joins), layout.steps, *self.shape),
            np.int32,
            sharding=execution.sharded,
        )
        return Window(examples, places)  # type: ignore[arg-type]

    def windows(
        self, segments: Iterable[tuple[int, int]], waited: Waited
    ) -> Generator[Window, None, None]:
        """The windows of segments that follow one another, each read one ahead.

        Args:
          segments: pairs (a, b) of at most `layout.steps` steps.
          waited: is told how long that took.

        Raises:
          streams.SourceError: an example cannot be read; names it.
        """

        def job(a: int, b: int) -> Callable[[], Window]:
            # Asked for before the segment before it begins: devices compute in order.
            asked = self._ask(a, self.layout.steps)

            def read() -> Window:
                return self._window(np.asarray(asked)[:, : b - a], a, waited)

            return read

        return ahead((functools.partial(job, a, b) for a, b in segments), waited)

    def _window(self, indices: np.ndarray, a: int, waited: Waited) -> Window:
        """The window of orders `[P, steps, ...]` from step a on."""
        layout, groups = self.layout, self.execution.groups
        steps = (len(indices), layout.steps, *indices.shape[2:])
        places = np.zeros(steps, np.int32)
        parts = []
        for block in self._blocks(layout.together):
            rows = block[self.joins[block] <= a]
            wanted, places[rows, : indices.shape[1]] = rebased(indices[rows])
            room = max(layout.room, self._divided(len(wanted)))
            part = _buffers(self.examples, room)
            _read(self.examples, wanted, part, waited)
            parts.append(part)
        largest = max(len(next(iter(part.values()))) for part in parts)
        if any(len(next(iter(part.values()))) < largest for part in parts):
            parts = [_longer(part, largest) for part in parts]
        parts = parts if len(parts) == groups else parts * groups
        try:
            examples = _by_group(self.execution, parts)
        except jax.errors.JaxRuntimeError as error:
            if not memory.is_out_of_memory(error):
                raise
            raise MemoryError(
                "a device has no room for the examples of the next "
                f"{layout.steps} steps; use a shorter window, such as "
                f"window={max(1, layout.steps // 2)}"
            ) from error
        return Window(examples, self.execution.place(places))


def _orders(functions: Task, execution: Execution, steps: int) -> Callable[..., Any]:
    def orders(noise: Key, offset: Array, a: Array) -> Array:
        key = noise_keys(noise).order
        at = a + offset + jnp.arange(steps, dtype=jnp.int32)
        return jax.lax.map(lambda step: functions.order(key, step), at)

    return execution.parallel(orders, (0, 0, None))


def of_first_steps(
    task: Task, execution: Execution, noise: Key, number: int, waited: Waited
) -> Window:
    """The window of the first steps of many runs, all at once.

    Args:
      task: whose split "train" is streamed.
      execution: the devices.
      noise: noise keys as rows on these, `[P]`.
      number: of steps.
      waited: is told how long that took.

    Raises:
      MemoryError: they do not fit on a device.
      streams.SourceError: an example cannot be read; names it.
    """
    zeros = np.zeros(noise.shape[0], np.int32)
    reader = Reader(task, execution, noise, zeros, zeros, number, number)
    (window,) = reader.windows([(0, number)], waited)
    return window


def _streams(orders: np.ndarray) -> int:
    """How many different orders there are among those of some rows, `[rows, ...]`."""
    if not len(orders):
        return 1
    return len(np.unique(orders.reshape(len(orders), -1), axis=0))


def _steps(one: int, shards: int, asked: int | None, longest: int) -> int:
    """How many steps a window has that so many devices divide; one takes so many bytes."""
    if asked is None:
        fit = int(_own(shards) / one)
        if fit:
            return min(fit, longest)
        asked = 1
    device = memory.available()
    limit = memory.of_host() if device is None else device * shards
    most = memory.SHARE * limit / 2 / one
    asked = min(asked, longest)
    if asked > most:
        fits = (
            f"at most {int(most):,} steps fit (window={int(most)})"
            if most >= 1
            else "not even one step fits: use smaller batches or images, fewer runs at "
            "once, or one order for all"
        )
        raise MemoryError(
            f"window={asked}: the examples of so many steps take {asked * one / 2**20:,.1f} "
            f"MiB, and there are two windows at a time; {fits}"
        )
    return asked


def _own(shards: int = 1) -> float:
    """Bytes of a window if nobody says how long it is; so many devices divide it."""
    device = memory.available()
    if device is None:
        return ON_HOST / 2
    # What is read lies on the host first.
    return SHARE * min(device * shards, memory.of_host()) / 2


def rebased(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which examples are named, each once and rising, and where among them each lies.

    Args:
      indices: int of any shape; below 0 for an empty slot, which stays what it is.

    Returns:
      Numbers `[n]`, and places of the shape of indices, int32.
    """
    wanted, at = np.unique(indices, return_inverse=True)
    empty = int(np.searchsorted(wanted, 0))
    places = np.where(indices < 0, indices, at.reshape(indices.shape) - empty)
    return wanted[empty:], places.astype(np.int32)


# --- of evaluation --------------------------------------------------------------------


def parts(examples: Examples, batch: int) -> list[tuple[int, int]]:
    """The parts that a split is gone through in: of whole batches, as many as fit.

    Args:
      examples: of the split.
      batch: examples that are evaluated at once.

    Returns:
      Pairs (start, stop). What is left over at the end, less than a batch, belongs to the
      last part: alone it would be a smaller batch than it is in the whole split.
    """
    number = len(examples)
    size = batch * at_once(examples, batch)
    edges = list(range(0, max(number - number % batch, 1), size))
    return list(zip(edges, [*edges[1:], number]))


def at_once(examples: Examples, batch: int) -> int:
    """How many batches of examples are read together, one at least."""
    return max(1, int(_own() / (batch * examples.nbytes)))


def of_split(
    examples: Examples,
    bounds: Sequence[tuple[int, int]],
    execution: Execution,
    waited: Waited,
) -> Generator[dict[str, Array], None, None]:
    """The parts of a split, each whole on all devices, read one ahead.

    Args:
      examples: of the split.
      bounds: from `parts`.
      execution: the devices.
      waited: is told how long that took.
    """
    return of_rows(examples, [np.arange(*pair) for pair in bounds], execution, waited)


def of_rows(
    examples: Examples,
    rows: Sequence[np.ndarray],
    execution: Execution,
    waited: Waited,
) -> Generator[dict[str, Array], None, None]:
    """Examples by their numbers, each set whole on all devices, read one ahead.

    Args:
      examples: of a split.
      rows: the numbers of each set, int `[n]`.
      execution: the devices.
      waited: is told how long that took.
    """

    def job(own: np.ndarray) -> Callable[[], dict[str, Array]]:
        def read() -> dict[str, Array]:
            part = _buffers(examples, len(own))
            _read(examples, own, part, waited)
            return _shared(execution, part)

        return read

    return ahead((functools.partial(job, own) for own in rows), waited)


# --- reading --------------------------------------------------------------------------


def ahead(jobs: Iterable[Job[T]], waited: Waited) -> Generator[T, None, None]:
    """What jobs return, in order; one is at work while its predecessor's result is used.

    Args:
      jobs: see `Job`.
      waited: is told for how long there was nothing to use.
    """
    left = iter(jobs)
    with (
        concurrent.futures.ThreadPoolExecutor(1, "examples") as thread,
        waited.counted(),
    ):

        def begun() -> concurrent.futures.Future[T] | None:
            job = next(left, None)
            return None if job is None else thread.submit(job())

        coming = begun()
        while coming is not None:
            with waited.waiting():
                found = coming.result()
            coming = begun()
            yield found
            del found


def each(read: Generator[T, None, None], use: Callable[[T], R]) -> list[R]:
    """What is made of each of what is read, when it is there: two are alive at a time.

    Args:
      read: from `ahead`.
      use: makes arrays of it, and keeps nothing else.
    """
    found = []
    with contextlib.closing(read):
        for one in read:
            found.append(jax.block_until_ready(use(one)))
            del one  # before the next but one is read
    return found


_ALIGNED = 64
"""Bytes: arrays that begin at such an address need not be copied onto a CPU's devices."""


def _buffers(examples: Examples, number: int) -> dict[str, np.ndarray]:
    """Room for so many examples."""
    found = {}
    for name, one in examples.fields.items():
        shape, dtype = (number, *one.shape), np.dtype(one.dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        raw = np.empty(size + _ALIGNED, np.uint8)
        begin = -raw.ctypes.data % _ALIGNED
        found[name] = raw[begin : begin + size].view(dtype).reshape(shape)
    return found


_one_reads = threading.Lock()
"""Sources are asked by one thread at a time: training reads ahead during a validation."""


def _read(
    examples: Examples,
    wanted: np.ndarray,
    part: Mapping[str, np.ndarray],
    waited: Waited,
) -> None:
    if not len(wanted):
        return
    own = {name: x[: len(wanted)] for name, x in part.items()}
    with _one_reads:
        examples.read(wanted.astype(np.int64), own)
        waited.examples += len(wanted)
        waited.replaced |= examples.replaced


def _longer(part: Mapping[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    return {
        name: np.concatenate([x, np.zeros((number - len(x), *x.shape[1:]), x.dtype)])
        for name, x in part.items()
    }


def _divided(execution: Execution) -> NamedSharding:
    """Where a window lies: with its group, an equal part on each device of that."""
    return NamedSharding(execution.mesh, PartitionSpec(AXIS, DATA_AXIS))


def _by_group(
    execution: Execution, parts: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, Array]:
    """Each group's arrays on its devices, as arrays `[groups, ...]`.

    Devices that share a batch divide a window: each is sent, and holds, an equal part of
    its examples. A step's batch they put together themselves, by a sum of the size of the
    batch to which each example is added by the one that has it, and as zeros by the others.
    """
    devices, shards = execution.mesh.devices, execution.data_parallel

    def field(name: str) -> Array:
        pieces = [
            jax.device_put(piece[None], device, may_alias=True)
            for part, own in zip(parts, devices)
            for piece, device in zip(np.split(part[name], shards), own)
        ]
        shape = (len(parts), *parts[0][name].shape)
        return jax.make_array_from_single_device_arrays(
            shape, _divided(execution), pieces
        )

    return jax.block_until_ready({name: field(name) for name in parts[0]})


def _shared(execution: Execution, part: Mapping[str, np.ndarray]) -> dict[str, Array]:
    """Arrays that lie on all devices."""
    devices = execution.mesh.devices.reshape(-1)

    def field(x: np.ndarray) -> Array:
        pieces = [jax.device_put(x, device, may_alias=True) for device in devices]
        return jax.make_array_from_single_device_arrays(
            x.shape, execution.shared, pieces
        )

    return jax.block_until_ready({name: field(x) for name, x in part.items()})
