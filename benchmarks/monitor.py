"""What compiling costs, as JAX reports it, and what memory a process has taken."""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

COMPILED = "/jax/core/compile/backend_compile_duration"
EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    COMPILED,
)


class Compiling:
    """Remembers every interval in which JAX traces, lowers or compiles, from now on.

    Args:
      clock: what the intervals are measured with.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        import jax

        self._clock = clock
        self._intervals: list[tuple[float, float]] = []
        self._compiled: list[float] = []
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event in EVENTS:
            now = self._clock()
            self._intervals.append((now - duration_secs, now))
            if event == COMPILED:
                self._compiled.append(now)

    def seconds(
        self, start: float = float("-inf"), stop: float = float("inf")
    ) -> float:
        """Seconds of tracing, lowering and compiling between two readings of the clock.

        Functions are traced within others: what overlaps counts once.
        """
        total, reached = 0.0, start
        for a, b in sorted(self._intervals):
            a, b = max(a, reached), min(b, stop)
            if b > a:
                total, reached = total + b - a, b
        return total

    def count(self, start: float = float("-inf"), stop: float = float("inf")) -> int:
        """How many programs were compiled (or fetched from a cache) after `start`."""
        return sum(start < at <= stop for at in self._compiled)


def peak_memory() -> float:
    """The largest resident memory of this process so far, in GB (10^9 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9
