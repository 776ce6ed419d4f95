"""A call that has to end in time: it stops by itself before it is stopped.

On a machine that is lent for some minutes a run must have written its checkpoint, and
have ended, before the machine goes away. Work between two moments at which a run may stop
is a *piece*: a segment of training, a group of points, what lies between two stages.
Pieces of one kind take about as long each time; one of a kind that was not seen yet may
compile, and is taken for as long as the longest so far, the start of the process among
them.

    where = lj.Where(folder="run", deadline=Deadline(minutes=9))
    lj.train(task, tx, 63_000, where=where)        # or OutOfTimeError; the same goes on
"""

import os
import pathlib
import time
from collections.abc import Callable

from lottery_jax.errors import wrong

MARGIN = 10.0
"""Seconds that are left for what is not measured: a last look, the end of the process."""
SLOWER = 1.5
"""How many times as long as the last one a piece may take."""
BETWEEN = "between stages"
"""The piece that lies between the end of one stage and the start of the next."""

_LOADED = time.monotonic()
_BEFORE = time.process_time()


class OutOfTimeError(RuntimeError):
    """A call has stopped before its time was over; nothing is lost, the same goes on."""


def process_age() -> float:
    """Seconds since this process started, imports included.

    Where the system does not tell: what it had computed when this module was imported,
    and the time since then.
    """
    try:
        # The command in parentheses may contain anything; the start is the 22nd field.
        stat = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(stat[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, IndexError, AttributeError):
        age = -1.0
    known = time.monotonic() - _LOADED + _BEFORE
    return age if age >= 0 else known


class Deadline:
    """When a call must have ended, and how long its pieces take; shared by all it does.

    At least one piece is done in a call, however short, so that repeated calls come to an
    end.

    Attributes:
      minutes: that the call may take.
      place: where it is now, for the message.
      took: seconds that the last piece of each kind took.
      wrote: seconds that the last checkpoint of each stage took, which is no piece.
    """

    def __init__(
        self,
        minutes: float,
        *,
        age: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts to count.

        Args:
          minutes: above 0, from the start of the call to its end.
          age: seconds since that start; `process_age()` where the process is the call.
          now: the clock, in seconds.

        Raises:
          ValueError: no time at all.
        """
        if not (isinstance(minutes, (int, float)) and 0 < minutes < float("inf")):
            raise wrong(
                "minutes", repr(minutes), "a number above 0, or None for no limit"
            )
        self.minutes, self._now = minutes, now
        self._begin = self._last = now() - age
        self.place = "the start"
        self.took: dict[str, float] = {}
        self.wrote: dict[str, float] = {}

    def ended(self, piece: str) -> None:
        """Notes that a piece of a kind has ended now, and began where the last one ended.

        Args:
          piece: the kind: `BETWEEN`, or what names the work.
        """
        now = self._now()
        self.took[piece], self._last = now - self._last, now

    def written(self, stage: str) -> None:
        """Notes that a checkpoint of a stage was written, and the next piece begins.

        Args:
          stage: whose checkpoint.
        """
        now = self._now()
        self.wrote[stage], self._last = now - self._last, now

    def near(self, piece: str, checkpoint: float = 0.0) -> bool:
        """Whether one more piece of a kind, and a checkpoint, might not end in time.

        Args:
          piece: the kind.
          checkpoint: seconds that writing one takes.
        """
        if not self.took.keys() - {BETWEEN}:  # nothing is gained yet
            return False
        expected = self.took.get(piece, max(self.took.values()))
        need = SLOWER * expected + 2 * checkpoint + MARGIN
        return self._now() + need > self._begin + 60 * self.minutes

    def over(self, margin: float = MARGIN) -> bool:
        """Whether the time is over, for whoever only waits.

        Args:
          margin: seconds that are left then.
        """
        return self._now() + margin > self._begin + 60 * self.minutes

    def stopped(self) -> OutOfTimeError:
        """The error that says where the call has stopped, and when."""
        spent = (self._now() - self._begin) / 60
        return OutOfTimeError(
            f"stopped after {spent:.1f} of {self.minutes:g} minutes at {self.place}; the "
            "same command goes on"
        )
