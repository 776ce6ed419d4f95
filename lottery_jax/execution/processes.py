"""Several processes on one study: who runs what, and how each learns of the others.

Replicas do not talk to each other, so neither do processes while they train: each holds,
trains and checkpoints its own replicas on its own devices, at its own pace, and no array
spans two of them. `start` joins them (`jax.distributed`); `share` deals out what there is
to do; a `Meeting` is how they agree on something, wait for each other and notice that one
is gone. It works through files in the folder of the run, which all processes must see: a
collective would end all of them if one waited for another for half a minute.

    from lottery_jax.execution import processes

    processes.start()                         # before JAX is used; SLURM, TPU pods, ...
    with processes.meet(folder) as meeting:
        for replica in processes.share(range(9)):
            ...
        meeting.gather("done", None)

If a process is lost the others train on to their end. Only the first, which the others
joined at, takes them along, since JAX ends a process that has lost its coordinator.
"""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from lottery_jax.errors import on_disk
from lottery_jax.execution.deadline import MARGIN, Deadline, OutOfTimeError

T = TypeVar("T")

PATIENCE = 120.0
"""Seconds without a sign of life after which a process counts as lost: more than network
file systems keep what they know of a file."""
DONE = "done"
"""The word of a process that has no more to do, and so agrees on nothing any more."""


class LostProcessError(RuntimeError):
    """Another process has ended before its work was done."""


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Joins the processes of a job; before anything else uses JAX.

    Args:
      coordinator: HOST:PORT at which the first process listens; None to ask the cluster
        (SLURM, TPU pods and what else `jax.distributed` knows).
      processes: how many there are; with `coordinator`.
      process: which one this is, from 0; with `coordinator`.

    Raises:
      ValueError: only some of the three are given, they make no sense, or there is no
        cluster to ask.
      RuntimeError: JAX was used already, or the processes did not find each other.
    """
    given = [x is not None for x in (coordinator, processes, process)]
    if any(given) and not all(given):
        raise ValueError(
            f"coordinator={coordinator!r}, processes={processes}, process={process}; give "
            "all three, or none on a cluster that says them"
        )
    if processes is not None and not (process is not None and 0 <= process < processes):
        raise ValueError(
            f"process={process}; it must be between 0 and {processes - 1}, below processes"
        )
    # A process that is lost must not take the others along.
    jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except ValueError as error:
        raise ValueError(
            "found no cluster that says which processes there are (SLURM, TPU pods ...); "
            f"say it with a coordinator HOST:PORT, their number and an index: {error}"
        ) from error


def count() -> int:
    """How many processes there are; 1 without `start`."""
    return jax.process_count()


def index() -> int:
    """Which one this is, from 0."""
    return jax.process_index()


def share(items: Sequence[T]) -> list[T]:
    """This process's part of what there is to do: neighbours, as evenly as they go."""
    parts = np.array_split(np.arange(len(items)), count())
    return [items[int(i)] for i in parts[index()]]


class Meeting:
    """Where processes leave word for each other; made by `meet`.

    Attributes:
      folder: of the words, one file each; hidden in that of the run.
      index: this process.
      count: how many there are.
      patience: seconds without a sign of life until one counts as lost.
      deadline: at which waiting for others ends; None for no limit.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        index: int,
        count: int,
        patience: float,
        deadline: Deadline | None = None,
    ) -> None:
        self.folder, self.index, self.count = folder, index, count
        self.patience, self.deadline = patience, deadline

    def say(self, name: str, word: Any) -> None:
        """Leaves a word, JSON-able, under a name that this process has not used yet."""
        path = self._path(name, self.index)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(word))
        os.replace(part, path)

    def hear(self, name: str, of: int, margin: float = MARGIN) -> Any:
        """Waits for the word of a process, as long as that is alive and there is time.

        Args:
          name: of the word.
          of: the process.
          margin: seconds before the deadline at which to wait no more.

        Raises:
          LostProcessError: it has failed (says why) or is gone.
          OutOfTimeError: the deadline is near, here or there.
        """
        return self._hear_any((name,), of, margin)

    def _hear_any(self, names: Sequence[str], of: int, margin: float) -> Any:
        """The same for the first of several words that is there."""
        paths, beat = [self._path(n, of) for n in names], self._path("alive", of)
        seen, since, wait = -1.0, time.monotonic(), 0.02
        while not any(path.exists() for path in paths):
            failed, stopped = self._path("failed", of), self._path("stopped", of)
            if failed.exists():
                raise LostProcessError(
                    f"process {of} has failed: {json.loads(failed.read_text())}"
                )
            if stopped.exists():
                raise OutOfTimeError(json.loads(stopped.read_text()))
            if self.deadline is not None and self.deadline.over(margin):
                self.deadline.place = f"the wait for process {of}"
                raise self.deadline.stopped()
            with contextlib.suppress(OSError):
                now = beat.stat().st_mtime
                if now != seen:
                    seen, since = now, time.monotonic()
            if time.monotonic() - since > self.patience:
                raise LostProcessError(
                    f"process {of} has given no sign of life for {self.patience:.0f} s"
                )
            time.sleep(wait)
            wait = min(2 * wait, 1.0)
        # Looked at again: the first may have come while the second was looked for.
        return json.loads(next(p for p in paths if p.exists()).read_text())

    def gather(self, name: str, word: Any) -> list[Any]:
        """Leaves a word and waits for those of all; in the order of the processes.

        Raises:
          LostProcessError: one has failed or is gone.
          OutOfTimeError: the deadline is near.
        """
        self.say(name, word)
        return [self.hear(name, of) for of in range(self.count)]

    def smallest(self, name: str, value: int) -> int:
        """The smallest of the processes' values: what all can do, the same for all.

        The first call under a name settles it. Who is `DONE` and has offered nothing has
        no part in it.

        Raises:
          LostProcessError: one has failed or is gone.
          OutOfTimeError: the deadline is near.
        """
        self.offer(name, value)
        words = [self._hear_any((name, DONE), i, MARGIN) for i in range(self.count)]
        return min(word for word in words if isinstance(word, int))

    def offer(self, name: str, value: int) -> None:
        """Leaves a value for the `smallest` of a name, if this process has left none."""
        if not self._path(name, self.index).exists():
            self.say(name, int(value))

    def _path(self, name: str, of: int) -> pathlib.Path:
        return self.folder / f"{name}.{of:04d}.json"


@contextlib.contextmanager
def meet(
    folder: pathlib.Path | str,
    patience: float | None = None,
    deadline: Deadline | None = None,
) -> Iterator[Meeting]:
    """A meeting of all processes, in a folder that all of them see.

    While it lasts each process shows that it is alive; if one leaves with an error the
    others hear of it. None waits for others beyond the deadline, unless that was over
    before they met: in such a call each does its one piece, and waits for the others'.

    Args:
      folder: of the run; made if need be.
      patience: seconds without a sign of life until a process counts as lost; None for
        `PATIENCE`.
      deadline: when the call must have ended; None for no limit.
    """
    folder, patience = on_disk("folder", folder), patience or PATIENCE
    here = folder / f".meeting-{_token()}"
    here.mkdir(parents=True, exist_ok=True)
    if deadline is not None and deadline.over():
        deadline = None
    meeting = Meeting(here, index(), count(), patience, deadline)
    over = threading.Event()

    def beat() -> None:
        mine = f"{socket.gethostname()} {os.getpid()}"
        while not over.is_set():
            with contextlib.suppress(OSError):  # a full disk: the others will tell
                meeting._path("alive", meeting.index).write_text(mine)
            over.wait(patience / 20)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield meeting
        meeting.say("left", None)
        if meeting.index == 0:
            # Where the coordinator is: it goes last.
            with contextlib.suppress(OutOfTimeError):
                for of in range(meeting.count):
                    meeting.hear("left", of, MARGIN / 2)
                over.set()
    except OutOfTimeError as error:
        with contextlib.suppress(OSError):
            meeting.say("stopped", str(error))
        raise
    except BaseException as error:
        with contextlib.suppress(OSError):
            meeting.say("failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        clean = over.is_set() or meeting.count == 1
        over.set()
        thread.join()
        # After a failure the others may still have to read of it.
        for old in folder.glob(".meeting-*") if clean else ():
            shutil.rmtree(old, ignore_errors=True)


def _token() -> str:
    """What tells this start of the processes from earlier ones; the same in all."""
    if count() == 1:
        return f"{os.getpid()}"
    from jax.experimental import multihost_utils

    drawn = np.frombuffer(os.urandom(8), np.uint32)
    return "".join(f"{x:08x}" for x in multihost_utils.broadcast_one_to_all(drawn))
