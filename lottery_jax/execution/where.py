"""Where something runs, where it is kept, and who watches it."""

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from lottery_jax.errors import at_least, is_a, on_disk, shown, whole, wrong
from lottery_jax.execution.deadline import Deadline, OutOfTimeError
from lottery_jax.execution.memory import Room
from lottery_jax.execution.processes import Meeting
from lottery_jax.execution.replicas import Execution
from lottery_jax.types import Curves, TrainState


class Progress(NamedTuple):
    """How far something is, for whoever watches it.

    Attributes:
      stage: what is going on: "training", "trunk", "branches", "paths", ...
      done: the step that was reached, or how many points are evaluated.
      total: the last step, or all points.
      rows: how many networks train or are compared.
      start: where this stage began.
      level: of a pruning study; None elsewhere.
      resumed: whether it was just taken up from a checkpoint here.
      curves: what was recorded in this stage so far, if it trains.
      states: gives the training states, a stack on the host, in the order of the runs;
        they are fetched when it is called.
      last: the last level of a pruning study; None elsewhere.
      again: the step that the levels to come begin at; None where it is `start`.
    """

    stage: str
    done: int
    total: int
    rows: int
    start: int = 0
    level: int | None = None
    resumed: bool = False
    curves: Curves | None = None
    states: Callable[[], TrainState] | None = None
    last: int | None = None
    again: int | None = None

    @property
    def each(self) -> int:
        """How many steps a level to come has."""
        return self.total - (self.start if self.again is None else self.again)

    @property
    def place(self) -> str:
        """How far it is, in words: "level 3, step 12,000"; "trunk, 500 of 8,000"."""
        if self.level is not None:
            return f"level {self.level}, step {self.done:,}"
        return f"{self.stage}, {self.done:,} of {self.total:,}"


class Clock:
    """When to write a checkpoint: rarely enough to cost at most 5% of the time."""

    def __init__(self) -> None:
        self.last, self.cost = time.monotonic(), 0.0

    def due(self, seconds: float) -> bool:
        """Whether so many seconds have passed, or 20 times what the last one took."""
        wait = max(seconds, 20 * self.cost) if seconds else 0.0
        return time.monotonic() - self.last >= wait

    def __enter__(self) -> None:
        self.begin = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.last = time.monotonic()
        self.cost = self.last - self.begin


class Waited:
    """How long devices waited for the examples of streamed splits.

    Attributes:
      seconds: that they waited.
      of: seconds in all that windows took, waiting and computing.
      examples: how many were read.
      replaced: by the names of corrupt ones, those that were read instead.
    """

    def __init__(self) -> None:
        self.seconds = self.of = 0.0
        self.examples = 0
        self.replaced: dict[str, str] = {}
        self._counts = False

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Counts the time within; not that of others within it once more."""
        if self._counts:
            yield
            return
        self._counts, begin = True, time.monotonic()
        try:
            yield
        finally:
            self._counts = False
            self.of += time.monotonic() - begin

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time within as waited for."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - begin

    @property
    def share(self) -> float:
        """Of their time, in [0, 1]; 0 where nothing is streamed."""
        return self.seconds / self.of if self.of else 0.0


class Held:
    """What stays on the devices between calls that share it: the data.

    A study calls the runner once a level: shipping the data each time would cost as much
    as a short level.
    """

    def __init__(self, most: int = 4) -> None:
        self.most, self.found = most, dict[Any, Any]()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """What was made under a key before, or makes it; the oldest make room."""
        if key not in self.found:
            while len(self.found) >= self.most:
                del self.found[next(iter(self.found))]
            self.found[key] = make()
        return self.found[key]


@dataclasses.dataclass(frozen=True)
class Where:
    """Where and how something runs; none of it determines what is run.

    Attributes:
      execution: devices and how many replicas at once; None for the stored settings of
        the folder, or for the platform's with as many at once as fit its memory.
      folder: where checkpoints and what is stored go, on a mounted file system; None
        keeps everything in memory. A folder with a checkpoint is continued from there,
        and one whose numbers follow from anything else is refused.
      checkpoint_seconds: write a checkpoint when so many seconds have passed since the
        last one; a kill loses no more than that. Checkpoints take at most 5% of the time.
      watch: called with a `Progress` at the start, and after every segment.
      window: steps whose examples are read together, where splits are streamed, and no
        more than there are between two records: two windows lie on a device at a time.
        None for as many as fit if both take an eighth of its memory, on a CPU 512 MiB.
      meeting: of all processes that work on this, for what they must agree on; None for
        one process.
      deadline: when all this must have ended; None for no limit. Whoever trains or
        measures under it writes a checkpoint in time and raises an `OutOfTimeError`, if
        there is a folder; the same call goes on from there.
      clock: of its checkpoints; shared with what is `below`.
      held: what stays on the devices; shared likewise.
      waited: how long devices waited for examples; shared likewise.
      room: how many replicas at once fit, once a device was full: all that shares this
        goes on with no more.
    """

    execution: Execution | None = None
    folder: pathlib.Path | str | None = None
    checkpoint_seconds: float = 30.0
    watch: Callable[[Progress], None] | None = None
    window: int | None = None
    meeting: Meeting | None = None
    deadline: Deadline | None = dataclasses.field(
        default=None, repr=False, compare=False
    )
    clock: Clock = dataclasses.field(default_factory=Clock, repr=False, compare=False)
    held: Held = dataclasses.field(default_factory=Held, repr=False, compare=False)
    waited: Waited = dataclasses.field(
        default_factory=Waited, repr=False, compare=False
    )
    room: Room = dataclasses.field(default_factory=Room, repr=False, compare=False)

    def __post_init__(self) -> None:
        at_least("checkpoint_seconds", self.checkpoint_seconds, 0)
        if self.folder is not None:
            is_a("folder", self.folder, (str, os.PathLike), "a path, or None")
            on_disk("folder", self.folder)
        if self.window is not None:
            whole("window", self.window, 1)
        if self.watch is not None and not callable(self.watch):
            raise wrong("watch", shown(self.watch), "a function of a Progress, or None")
        if self.deadline is not None:
            must = "an execution.Deadline(minutes), or None"
            is_a("deadline", self.deadline, Deadline, must)
        if self.execution is not None:
            must = "an Execution(devices, chunk), or None"
            is_a("execution", self.execution, Execution, must)
            self.execution.check()

    @property
    def store(self) -> pathlib.Path | None:
        """The folder as a path."""
        return None if self.folder is None else pathlib.Path(self.folder)

    def below(self, name: str) -> "Where":
        """The same in a folder below this one."""
        folder = None if self.store is None else self.store / name
        return dataclasses.replace(self, folder=folder)

    def by(self, execution: Execution) -> "Where":
        """The same, executed so."""
        return dataclasses.replace(self, execution=execution)

    def aside(self) -> "Where":
        """The same without a folder, unwatched: for what takes but a moment."""
        return dataclasses.replace(self, folder=None, watch=None)

    def due(self) -> bool:
        """Whether it is time for a checkpoint, if there is a folder for it."""
        return self.store is not None and self.clock.due(self.checkpoint_seconds)

    def ended(self, piece: str) -> None:
        """Notes, for the deadline, that a piece of work of a kind has ended.

        Without a folder the piece is a part of the next one: nothing is kept of it.

        Args:
          piece: the kind; see `Deadline.ended`.
        """
        if self.deadline is not None and self.store is not None:
            self.deadline.ended(piece)

    def written(self, stage: str) -> None:
        """Notes, for the deadline, that a checkpoint of a stage was written.

        Args:
          stage: whose checkpoint.
        """
        if self.deadline is not None and self.store is not None:
            self.deadline.written(stage)

    def unmeasured(self, stage: str) -> bool:
        """Whether a deadline has yet to learn what a checkpoint of a stage costs.

        One is written then at the first moment at which that is possible, due or not: a
        checkpoint more for each stage, and the only one that takes unknown time.

        Args:
          stage: whose checkpoints.
        """
        if self.deadline is None or self.store is None:
            return False
        return stage not in self.deadline.wrote

    def ending(self, piece: str, stage: str) -> bool:
        """Whether there may be no time for one more piece of work of a kind.

        Args:
          piece: the kind; see `Deadline.near`.
          stage: whose checkpoint must be written after it.
        """
        if self.deadline is None or self.store is None:
            return False
        cost = self.deadline.wrote.get(stage, self.clock.cost)
        return self.deadline.near(piece, cost)

    def stopped(self) -> OutOfTimeError:
        """What is raised when time is nearly over and all is stored."""
        assert self.deadline is not None
        return self.deadline.stopped()

    def tell(self, progress: Progress) -> None:
        """Lets the watcher know, and the deadline."""
        if self.deadline is not None and self.store is not None:
            self.deadline.place = progress.place
        if self.watch is not None:
            self.watch(progress)

    def renamed(self, **changes: Any) -> "Where":
        """The same, whose watcher sees other fields: the stage, say, or the level."""
        if self.watch is None:
            return self
        watch = self.watch
        return dataclasses.replace(
            self, watch=lambda progress: watch(progress._replace(**changes))
        )
