"""Many of anything at once: vmapped in chunks on a device, sharded over all devices.

A replica is one independent run. Its arrays have a leading axis R; `parallel` turns a
function of one replica into a compiled function of R of them. On an accelerator all
replicas of a device are vmapped. On a CPU they run one after another, one host device per
core, because the optimizer state of many replicas does not fit the caches.
`jax_num_cpu_devices` makes the host devices and must be set before JAX starts.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lottery_jax.types import PyTree

AXIS = "replica"


class Execution(NamedTuple):
    """How replicas run. Results differ between settings by rounding (see the docs).

    Attributes:
      devices: number of devices that share the replicas.
      chunk: how many replicas are vmapped at once on a device; 0 means all of them, 1
        runs them one after another.
    """

    devices: int
    chunk: int


def default_execution(platform: str | None = None) -> Execution:
    """All devices; one replica at a time on CPU, all at once elsewhere."""
    devices = jax.devices(platform)
    return Execution(len(devices), 1 if devices[0].platform == "cpu" else 0)


def check_execution(execution: Execution) -> Execution:
    """Raises a ValueError if the settings do not fit this machine."""
    available = jax.device_count()
    if not 1 <= execution.devices <= available:
        raise ValueError(
            f"devices={execution.devices}; it must be between 1 and {available}"
        )
    if execution.chunk < 0:
        raise ValueError(f"chunk={execution.chunk}; it must be 0 (all) or more")
    return execution


def mesh(execution: Execution) -> Mesh:
    """The devices, along the replica axis."""
    return Mesh(jax.devices()[: execution.devices], (AXIS,))


def sharded(execution: Execution) -> NamedSharding:
    """The placement of arrays with a replica axis."""
    return NamedSharding(mesh(execution), PartitionSpec(AXIS))


def shared(execution: Execution) -> NamedSharding:
    """The placement of arrays that all replicas share."""
    return NamedSharding(mesh(execution), PartitionSpec())


def padded(number: int, execution: Execution) -> int:
    """The next number of replicas that the devices divide."""
    return -(-number // execution.devices) * execution.devices


def place(tree: PyTree, execution: Execution) -> PyTree:
    """Puts arrays with a replica axis onto the devices.

    Everything is placed before the first call, so that a program is compiled once: an
    input that is unplaced at first and sharded later would be traced twice.
    """
    return jax.device_put(tree, sharded(execution))


def parallel(
    function: Callable[..., PyTree],
    in_axes: Sequence[int | None],
    execution: Execution,
) -> Callable[..., Any]:
    """A compiled function of R replicas from a function of one.

    Args:
      function: pure, of one replica; positional arguments.
      in_axes: per argument 0 (it has a replica axis) or None (all replicas share it).
      execution: devices and chunk.

    Returns:
      A jitted function; every output has a leading axis R, which `execution.devices` must
      divide (`padded`). Replica i's output depends on replica i's inputs alone.

    Raises:
      ValueError: an entry of in_axes is neither 0 nor None, or none is 0; execution does
        not fit.
    """
    if any(axis not in (0, None) for axis in in_axes) or 0 not in in_axes:
        raise ValueError(
            f"in_axes={in_axes}; every entry must be 0 or None, and one of them 0"
        )
    check_execution(execution)
    specs = tuple(PartitionSpec(AXIS) if a == 0 else PartitionSpec() for a in in_axes)

    @jax.jit
    @partial(
        jax.shard_map,
        mesh=mesh(execution),
        in_specs=specs,
        out_specs=PartitionSpec(AXIS),
        check_vma=False,
    )
    def run(*args: PyTree) -> PyTree:
        def one(own: list[PyTree]) -> PyTree:
            rest = iter(own)
            return function(
                *(next(rest) if a == 0 else x for a, x in zip(in_axes, args))
            )

        own = [x for a, x in zip(in_axes, args) if a == 0]
        number = jax.tree.leaves(own)[0].shape[0]
        if number == 1:
            first = one(jax.tree.map(lambda x: x[0], own))
            return jax.tree.map(lambda y: jnp.asarray(y)[None], first)
        if execution.chunk == 0 or execution.chunk >= number:
            return jax.vmap(one)(own)
        if execution.chunk == 1:
            # Not batch_size=1, which vmaps over one replica: `cond` would run both sides.
            return jax.lax.map(one, own)
        return jax.lax.map(one, own, batch_size=execution.chunk)

    return run
