"""Timing the compiled programs and the functions of a study from outside of it."""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import jax

from lottery_jax import replicas
from lottery_jax.replicas import Execution


class Interval(NamedTuple):
    """When something ran.

    Attributes:
      name: of the program or function.
      start: in seconds.
      stop: when its results were there.
    """

    name: str
    start: float
    stop: float


class Stopwatch:
    """Remembers when each compiled program of the library ran, while it is entered.

    Every call waits for its results: a study under the watch does not overlap programs
    with the host.

    Args:
      clock: returns seconds.

    Attributes:
      programs: calls of what `replicas.parallel` has made, by the name of its function.
      functions: calls of what `also` was told.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.programs: list[Interval] = []
        self.functions: list[Interval] = []
        self._clock = clock
        self._stack = ExitStack()
        self._others: list[tuple[ModuleType, str, str]] = []
        self._watchers: list[Callable[[Interval], None]] = []

    def also(self, module: ModuleType, attribute: str, name: str) -> None:
        """Times a function too, wherever it is called through its module."""
        self._others.append((module, attribute, name))

    def tell(self, watcher: Callable[[Interval], None]) -> None:
        """Calls `watcher` after each program."""
        self._watchers.append(watcher)

    def __enter__(self) -> "Stopwatch":
        original = replicas.parallel
        timed = partial(self._parallel, original)
        # Wherever it was imported by name.
        for name, module in list(sys.modules.items()):
            ours = name.startswith("lottery_jax")
            if ours and getattr(module, "parallel", None) is original:
                self._patch(module, "parallel", timed)
        for module, attribute, name in self._others:
            function = getattr(module, attribute)
            self._patch(module, attribute, partial(self._call, function, name))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def _patch(self, module: ModuleType, attribute: str, value: Any) -> None:
        self._stack.enter_context(mock.patch.object(module, attribute, value))

    def _call(self, function: Callable, name: str, *args: Any, **kwargs: Any) -> Any:
        begin = self._clock()
        try:
            return function(*args, **kwargs)
        finally:
            self.functions.append(Interval(name, begin, self._clock()))

    def _parallel(
        self,
        original: Callable[..., Any],
        function: Callable[..., Any],
        in_axes: Sequence[int | None],
        execution: Execution,
        **options: Any,
    ) -> "_Timed":
        inner = getattr(function, "func", function)
        name = getattr(inner, "__name__", "other").strip("_<>")
        return _Timed(original(function, in_axes, execution, **options), name, self)

    def record(self, interval: Interval) -> None:
        """Adds a call of a program."""
        self.programs.append(interval)
        for watcher in self._watchers:
            watcher(interval)

    def now(self) -> float:
        """The clock."""
        return self._clock()


class _Timed:
    """A compiled function whose calls are timed; otherwise as it was."""

    def __init__(self, run: Any, name: str, watch: Stopwatch) -> None:
        self._run, self._name, self._watch = run, name, watch

    def __call__(self, *args: Any) -> Any:
        begin = self._watch.now()
        out = jax.block_until_ready(self._run(*args))
        self._watch.record(Interval(self._name, begin, self._watch.now()))
        return out

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._run, attribute)


def totals(
    intervals: Sequence[Interval], compiling: Callable[[float, float], float]
) -> dict[str, float]:
    """Seconds by name, without those of compiling, the longest first.

    Args:
      intervals: calls.
      compiling: seconds of compiling between two times.
    """
    found: dict[str, float] = defaultdict(float)
    for name, start, stop in intervals:
        found[name] += stop - start - compiling(start, stop)
    return dict(sorted(found.items(), key=lambda item: -item[1]))
