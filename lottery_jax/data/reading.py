"""Many examples at once, and again where a file system fails for a moment."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

WAIT = 0.1
"""Seconds before something is tried a second time."""

GROWTH = 4
"""By what that grows from one time to the next: three retries take 2.1 s, six 136 s."""


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def spread(
    work: Callable[[int, int], None], number: int, at_once: int, workers: int
) -> None:
    """Does the work of `number` things in ranges, some of them at the same time.

    Threads, not processes: what takes time (files, Pillow, array_record, NumPy's copies)
    leaves the interpreter to others, results are written where they belong, and a process
    that is forked once JAX has started its threads may stand still for ever. The package
    grain has both, behind an iterator with a state of its own; here the list of what is
    read is known and a window is waited for as a whole, for which the pool of the
    standard library is enough.

    Args:
      work: `(first, end)`, of one range.
      number: of things.
      at_once: the length of a range, 1 or more.
      workers: how many ranges at the same time, 1 or more.

    Raises:
      Exception: what the first of the ranges that fail has raised, whichever was sooner.
    """
    firsts = range(0, number, at_once)
    ends = [min(first + at_once, number) for first in firsts]
    if workers == 1 or len(firsts) < 2:
        for first, end in zip(firsts, ends):
            work(first, end)
        return
    with ThreadPoolExecutor(min(workers, len(firsts))) as pool:
        # An error here cancels the ranges that have not begun.
        for _ in pool.map(work, firsts, ends):
            pass


def retried(work: Callable[[], T], retries: int) -> T:
    """What work gives, which is tried again after an OSError, waiting longer each time.

    Args:
      work: what is tried.
      retries: how often again, 0 or more.

    Raises:
      OSError: that of the last time.
    """
    for attempt in range(retries):
        try:
            return work()
        except OSError:
            time.sleep(WAIT * GROWTH**attempt)
    return work()
