"""How long something still takes, and a line that says so while it runs.

    study = lj.imp.run(task, tx, plan, levels=16, where=lj.Where(watch=lj.execution.line()))

What is told of a run (`Progress`) and a clock give its pace: seconds for a step of one
network, and seconds between two levels, both smoothed. The first piece of a stage is left
out, since programs are compiled in it, and so is all that was done before a run was taken
up again.
"""

import sys
import time
from collections.abc import Callable
from typing import NamedTuple, TextIO

from lottery_jax.execution.where import Progress

_KEPT = 0.9
"""Weight of what was measured before, against what is measured now."""


class Pace(NamedTuple):
    """What is known of the speed of something; `paced` makes one of another.

    Attributes:
      counted: what is going on: a stage, or "levels" for all levels together.
      level: the level that was reached; 0 where there are none.
      done: the step that was reached there.
      time: when, by the clock.
      pieces: how many were seen since this began, the first one included.
      seconds: that pieces took, the later ones more: a decaying sum.
      steps: of all networks in these pieces: a decaying sum, likewise.
      crossings: how many times one level followed another.
      between: seconds from the end of a level to the next one, smoothed.
    """

    counted: str = ""
    level: int = 0
    done: int = 0
    time: float = 0.0
    pieces: int = 0
    seconds: float = 0.0
    steps: float = 0.0
    crossings: int = 0
    between: float = 0.0

    @property
    def rate(self) -> float:
        """Steps of all networks per second; 0 while nothing is known."""
        return self.steps / self.seconds if self.seconds > 0 else 0.0


def paced(before: Pace, at: Progress, now: float) -> Pace:
    """The pace after something was told.

    Args:
      before: until then; `Pace()` at the beginning.
      at: what was told.
      now: the time, in seconds from any moment on, that does not run back.
    """
    counted = at.stage if at.level is None else "levels"
    level, took = at.level or 0, now - before.time
    if counted != before.counted or at.resumed or level < before.level:
        return Pace(counted, level, at.done, now)
    found = before._replace(level=level, done=at.done, time=now)
    if level > before.level and at.done <= at.start:
        # The first of these times holds the compilation of what measures a level.
        known = before.crossings > 1
        smoothed = _KEPT * before.between + (1 - _KEPT) * took if known else took
        return found._replace(crossings=before.crossings + 1, between=smoothed)
    steps = at.done - (before.done if level == before.level else at.start)
    if steps <= 0 or took <= 0:
        return found
    found = found._replace(pieces=before.pieces + 1)
    if found.pieces == 1:
        return found
    return found._replace(
        seconds=_KEPT * before.seconds + took,
        steps=_KEPT * before.steps + steps * at.rows,
    )


def remaining(pace: Pace, at: Progress, last: int | None = None) -> float | None:
    """Seconds until a stage has ended, or the last level of a study.

    Args:
      pace: after `at`.
      at: what was told last.
      last: the last level; None for what `at` says of it.

    Returns:
      None while nothing is known: after the first piece, which compiles.
    """
    if not pace.rate:
        return None
    last = at.last if last is None else last
    levels = max((last or 0) - at.level, 0) if at.level is not None else 0
    steps = at.total - at.done + levels * at.each
    return steps * at.rows / pace.rate + levels * pace.between


def left(seconds: float | None) -> str:
    """Seconds that are left, in words: "about 3 min left"; "" for None and for 0."""
    if not seconds:
        return ""
    if seconds < 90:
        return f"about {max(round(seconds), 1)} s left"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"about {minutes} min left"
    if minutes < 48 * 60:
        return f"about {minutes // 60} h {minutes % 60:02d} min left"
    return f"about {round(minutes / 60 / 24)} days left"


def line(
    file: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[Progress], None]:
    """A watcher for `Where(watch=...)`: a line that says how far it is and how long still.

    In a notebook and on a terminal it is one line that changes; elsewhere a line is
    printed at the end of each stage and level, and every 30 s.

    Args:
      file: where it is printed; None for what is then the standard output, or the cell of
        a notebook.
      clock: seconds that do not run back.

    Returns:
      A function of a `Progress`.
    """
    began, pace = clock(), Pace()
    shown, update = began - _OFTEN, None

    def watch(at: Progress) -> None:
        nonlocal pace, shown, update
        now = clock()
        pace = paced(pace, at, now)
        if update is None:
            update = _notebook() if file is None else None
            update = update or _printed(sys.stdout if file is None else file)
        ends = at.done == at.total
        if ends or now - shown >= update.seconds:
            shown = now
            update.say(_text(at, pace, now - began), ends)

    return watch


_OFTEN, _SELDOM = 0.2, 30.0
"""Seconds between two changes of a line, and between two lines."""


class _Update(NamedTuple):
    """How a line is shown: how often, and the function of its text and of whether it stays."""

    seconds: float
    say: Callable[[str, bool], None]


def _text(at: Progress, pace: Pace, seconds: float) -> str:
    place = at.place
    if at.level is not None:
        of = f" of {at.last}" if at.last else ""
        place = f"level {at.level}{of}, step {at.done:,} of {at.total:,}"
    networks = f"{at.rows} network{'s' * (at.rows != 1)}"
    parts = [networks, f"{seconds:.0f} s", left(remaining(pace, at))]
    return f"{place}: " + ", ".join(filter(None, parts))


def _printed(file: TextIO) -> _Update:
    if not file.isatty():
        return _Update(_SELDOM, lambda text, _: print(text, file=file, flush=True))
    width = 0

    def say(text: str, stays: bool) -> None:
        nonlocal width
        # Blanks over what the line before was longer by.
        blank = " " * max(width - len(text), 0)
        print(f"\r{text}{blank}", end="\n" * stays, file=file, flush=True)
        width = 0 if stays else len(text)

    return _Update(_OFTEN, say)


def _notebook() -> _Update | None:
    """The output of a notebook's cell; None anywhere else."""
    if "ipykernel" not in sys.modules:
        return None
    from IPython import display, get_ipython

    if not hasattr(get_ipython(), "kernel"):
        return None
    handle = display.DisplayHandle()
    handle.display({"text/plain": "..."}, raw=True)
    return _Update(
        _OFTEN, lambda text, _: handle.update({"text/plain": text}, raw=True)
    )
