"""How many replicas fit on a device at once.

An estimate first, from what the compiled program says of itself, then a probe, one real
step; only then training starts. What neither foresaw (a neighbour on the same device, a
work space that a library asks for late) is an error in the middle of a segment: that
segment then starts again with half as many at once (`lottery_jax.training`).
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from lottery_jax.execution.replicas import Execution

T = TypeVar("T")

SHARE = 0.9
"""Of a device's memory: the rest is for fragments, work spaces and the runtime."""


def available(device: jax.Device | None = None) -> int | None:
    """Bytes of a device's memory; None where it does not say, as on a CPU."""
    device = device or jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    return (stats or {}).get("bytes_limit")


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is a device saying that its memory is full."""
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return False
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


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
        program, args = prepare(execution)
        if limit is not None:
            fixed, temporary = needed(program, *args)
            room = SHARE * limit - fixed
            if temporary > room:
                execution = fewer(execution, rows, max(room, 0.0) / temporary)
                continue
        try:
            jax.block_until_ready(program(*args))
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            execution = fewer(execution, rows)
            continue
        return execution
    return execution


def with_room(
    execution: Execution, rows: int, attempt: Callable[[Execution], T]
) -> tuple[T, Execution]:
    """Tries something, with half as many replicas at once whenever a device is full.

    Args:
      execution: what to begin with.
      rows: how many replicas there are, on all devices.
      attempt: does it, under an execution; must leave nothing behind that a second
        attempt could not bear, and wait for its own results.

    Returns:
      What `attempt` returned, and the execution that it fitted under.

    Raises:
      MemoryError: not even one replica fits.
    """
    while True:
        try:
            return attempt(execution), execution
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
        execution = fewer(execution, rows)
