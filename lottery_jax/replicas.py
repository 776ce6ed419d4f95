"""Many of anything at once: vmapped in chunks on a device, sharded over all devices.

A replica is one independent run. Its arrays have a leading axis R; `parallel` turns a
function of one replica into a compiled function of R of them. `Execution` says how: which
devices, how many replicas are vmapped at once on each, how convolutions with a kernel per
replica are executed, what products are rounded to, and how many devices share the batch
of one replica.

`default_execution` is what was measured to be best on each platform. On an accelerator
all replicas of a device are vmapped. On a CPU they run one after another, one host device
per core, because the optimizer state of many replicas does not fit the caches.
`jax_num_cpu_devices` makes the host devices and must be set before JAX starts.

Replicas do not talk to each other, so no array spans several processes: each process
runs its own replicas on its own devices (`lottery_jax.processes`).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lottery_jax import convolution, training
from lottery_jax.convolution import Method
from lottery_jax.types import PyTree

AXIS = "replica"

Precision: TypeAlias = Literal["float32", "tensorfloat32", "bfloat16"]
"""What the operands of products are rounded to; sums, weights and all else are float32."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class Execution(NamedTuple):
    """How replicas run. Results differ between settings by rounding (see the docs).

    Attributes:
      devices: how many devices of this process are used.
      chunk: how many replicas are vmapped at once on a device; 0 means all of them, 1
        runs them one after another.
      convolution: how convolutions with a kernel per replica are executed; None for the
        platform's own way.
      precision: of products; None for JAX's own, which differs by platform. Changes
        results by more than the order of summation, unlike the others.
      data_parallel: how many neighbouring devices share the batch of each replica; for
        models that one device is too small or too slow for. Divides `devices`.
    """

    devices: int
    chunk: int
    convolution: Method | None = None
    precision: Precision | None = None
    data_parallel: int = 1

    @property
    def groups(self) -> int:
        """How many replicas are in work at the same time: the length of the mesh."""
        return self.devices // self.data_parallel


_OF_PLATFORM: dict[str, tuple[int, Method, Precision]] = {
    "cpu": (1, "loop", "float32"),
    "gpu": (0, "grouped", "tensorfloat32"),
    "tpu": (0, "grouped", "bfloat16"),
}


def default_execution(platform: str | None = None) -> Execution:
    """All devices of this process, and the settings of its platform."""
    devices = jax.local_devices(backend=platform)
    # Other platforms ("rocm", say) are accelerators like a GPU.
    own = _OF_PLATFORM.get(devices[0].platform, _OF_PLATFORM["gpu"])
    return Execution(len(devices), *own)


def check_execution(execution: Execution) -> Execution:
    """Raises a ValueError if the settings do not fit this machine."""
    available = jax.local_device_count()
    if not 1 <= execution.devices <= available:
        raise ValueError(
            f"devices={execution.devices}; it must be between 1 and {available}"
        )
    if execution.chunk < 0:
        raise ValueError(f"chunk={execution.chunk}; it must be 0 (all) or more")
    shards = execution.data_parallel
    if shards < 1 or execution.devices % shards:
        raise ValueError(
            f"data_parallel={shards}; it must divide devices={execution.devices}"
        )
    for field, valid in (
        ("convolution", convolution.METHODS),
        ("precision", PRECISIONS),
    ):
        value = getattr(execution, field)
        if value is not None and value not in valid:
            raise ValueError(f"{field}={value!r}; it must be one of {', '.join(valid)}")
    return execution


def mesh(execution: Execution) -> Mesh:
    """The devices: along the replica axis, and those that share a replica's batch."""
    devices = np.array(jax.local_devices()[: execution.devices])
    return Mesh(
        devices.reshape(execution.groups, execution.data_parallel),
        (AXIS, training.DATA_AXIS),
        axis_types=(AxisType.Auto, AxisType.Auto),
    )


def sharded(execution: Execution) -> NamedSharding:
    """The placement of arrays with a replica axis."""
    return NamedSharding(mesh(execution), PartitionSpec(AXIS))


def shared(execution: Execution) -> NamedSharding:
    """The placement of arrays that all replicas share."""
    return NamedSharding(mesh(execution), PartitionSpec())


def padded(number: int, execution: Execution) -> int:
    """The next number of replicas that the groups of devices divide."""
    return -(-number // execution.groups) * execution.groups


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
      A jitted function; every output has a leading axis R, which `execution.groups` must
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
    # Where devices share a batch, the compiler divides it: `training.step_gradient`.
    manual = {AXIS} if execution.data_parallel > 1 else {AXIS, training.DATA_AXIS}

    @jax.jit
    @partial(
        jax.shard_map,
        mesh=mesh(execution),
        in_specs=specs,
        out_specs=PartitionSpec(AXIS),
        axis_names=manual,
        check_vma=False,
    )
    def run(*args: PyTree) -> PyTree:
        with settings(execution):
            return body(*args)

    def body(*args: PyTree) -> PyTree:
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


@contextlib.contextmanager
def settings(execution: Execution) -> Iterator[None]:
    """Traces what is within at an execution's precision and way to convolve."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(convolution.batched_by(execution.convolution))
        if execution.precision is not None:
            stack.enter_context(jax.default_matmul_precision(execution.precision))
        yield
