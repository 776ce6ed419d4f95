"""How many replicas fit on a device at once.

An estimate first, from what the compiled program says of itself, then a probe, one real
step; only then training starts. What neither foresaw (a neighbour on the same device, a
work space that a library asks for late, an evaluation that needs more than a step) is an
error in the middle of something: that is then done again with half as many at once, and
so is all that follows under the same `Where`. Whoever calls a program of many replicas
does so through a `Room`.
"""

import math
import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from lottery_jax.execution.replicas import Execution
from lottery_jax.execution.replicas import is_out_of_memory as is_out_of_memory

T = TypeVar("T")

SHARE = 0.9
"""Of a device's memory: the rest is for fragments, work spaces and the runtime."""


def available(device: jax.Device | None = None) -> int | None:
    """Bytes of a device's memory; None where it does not say, as on a CPU."""
    device = device or jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    return (stats or {}).get("bytes_limit")


def of_host() -> int:
    """Bytes of the host's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def needed(program: Any, *args: Any) -> tuple[int, int]:
    """Bytes on each device that a jitted program needs, by XLA's own account.

    Returns:
      The bytes of arguments and results, and those of temporaries, which grow with the
      replicas at once.
    """
    found = program.lower(*args).compile().memory_analysis()
    # Some backends keep no account.
    if found is None:
        return 0, 0
    fixed = found.argument_size_in_bytes + found.output_size_in_bytes
    return fixed - found.alias_size_in_bytes, found.temp_size_in_bytes


def at_once(execution: Execution, rows: int) -> int:
    """How many of a device's rows are vmapped at once.

    Args:
      execution: devices and chunk.
      rows: of all devices.
    """
    own = -(-rows // execution.groups)
    return min(execution.chunk or own, own)


def fewer(execution: Execution, rows: int, share: float = 0.5) -> Execution:
    """The same with fewer replicas at once.

    Args:
      execution: what did not fit.
      rows: of all devices.
      share: how much of it might.

    Raises:
      MemoryError: not even one fits; says what would help.
    """
    chunk = at_once(execution, rows)
    if chunk == 1:
        raise MemoryError(
            "a device is out of memory with one replica at a time; use fewer replicas, a "
            "smaller batch, data_parallel=2 (devices that share a batch), or a device with "
            "more memory"
        )
    return execution._replace(chunk=max(1, min(chunk - 1, math.floor(chunk * share))))


def fitted(
    execution: Execution,
    rows: int,
    prepare: Callable[[Execution], tuple[Any, tuple[Any, ...]]],
    limit: int | None = None,
) -> Execution:
    """The execution with as many replicas at once as fit, at most its own number.

    Args:
      execution: what to begin with.
      rows: how many replicas there are, on all devices.
      prepare: gives for an execution the jitted program and arguments of one short step.
      limit: bytes of a device; None asks it, and leaves it to the probe if it does not say.

    Raises:
      MemoryError: not even one fits.
    """
    limit = available() if limit is None else limit
    while at_once(execution, rows) > 1:
        share = 0.5
        # Compilers, too, try what they make, and may find the device full.
        try:
            program, args = prepare(execution)
            fixed, temporary = (0, 0) if limit is None else needed(program, *args)
            room = math.inf if limit is None else SHARE * limit - fixed
            if temporary <= max(room, 0.0):
                jax.block_until_ready(program(*args))
                return execution
            share = max(room, 0.0) / temporary
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
        execution = fewer(execution, rows, share)
    return execution


def with_room(
    execution: Execution, rows: int, attempt: Callable[[Execution], T]
) -> tuple[T, Execution]:
    """Tries something, with half as many replicas at once whenever a device is full.

    Args:
      execution: what to begin with.
      rows: how many replicas there are, on all devices.
      attempt: does it, under an execution; must leave nothing behind that a second
        attempt could not bear.

    Returns:
      What `attempt` returned, and the execution that it fitted under.

    Raises:
      MemoryError: not even one replica fits.
    """
    while True:
        try:
            # A device may say that it is full only when it comes to the work.
            return jax.block_until_ready(attempt(execution)), execution
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
        execution = fewer(execution, rows)


class Room:
    """How many replicas at once have turned out to fit, for all that shares a `Where`.

    Attributes:
      most: at once on a device; None as long as no device was full.
    """

    def __init__(self) -> None:
        self.most: int | None = None

    def within(self, execution: Execution) -> Execution:
        """The same, with no more replicas at once than have turned out to fit."""
        if self.most is None or 0 < execution.chunk <= self.most:
            return execution
        return execution._replace(chunk=self.most)

    def run(
        self,
        stage: str,
        execution: Execution,
        rows: int,
        attempt: Callable[[Execution], T],
    ) -> tuple[T, Execution]:
        """What `with_room` does, within what has turned out to fit; remembers what does.

        Args:
          stage: what is being done, for the warning.
          execution: what was asked for.
          rows: how many replicas there are, on all devices.
          attempt: does it, as in `with_room`.

        Raises:
          MemoryError: not even one replica fits.

        Warns:
          RuntimeWarning: a device was full; says where, and what it goes on with.
        """
        before = self.within(execution)
        done, fits = with_room(before, rows, attempt)
        if fits != before:
            self.most = fits.chunk
            warnings.warn(
                f"a device ran out of memory in {stage}; went on from there with "
                f"chunk={fits.chunk}",
                RuntimeWarning,
                stacklevel=3,
            )
        return done, fits
