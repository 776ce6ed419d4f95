"""Many of anything at once: vmapped in chunks on a device, sharded over all devices.

A replica is one independent run. Its arrays have a leading axis R; `Execution.parallel`
turns a function of one into a compiled function of R of them. `Execution` says how: which
devices, how many replicas are vmapped at once on each, how convolutions with a kernel per
replica are executed, what products and activations are rounded to, and how many devices
share the batch of one replica.

`default_execution` is what was measured to be best on each platform. On an accelerator
all replicas of a device are vmapped. On a CPU they run one after another, one host device
per core, because the optimizer state of many replicas does not fit the caches.
`jax_num_cpu_devices` makes the host devices and must be set before JAX starts.

Replicas do not talk to each other, so no array spans several processes: each process
runs its own replicas on its own devices (`lottery_jax.execution.processes`).
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lottery_jax import activations, convolution, trees
from lottery_jax.activations import ACTIVATIONS, Activations
from lottery_jax.convolution import Method
from lottery_jax.errors import one_of
from lottery_jax.types import PyTree

AXIS = "replica"

DATA_AXIS = "data"
"""Mesh axis along which devices share the batch of one replica."""

GROUP = "group"
"""An entry of `in_axes`: each group of devices that works on replicas of its own has its
entry of the leading axis, and all of its replicas share that."""

Axis: TypeAlias = Literal["group"] | int | None

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
      activations: what the layers of `lottery_jax.models` store and pass on, in training
        and in evaluation. Changes results as precision does; with "bfloat16" the
        operands of all products but the output layer's are bfloat16, too.
    """

    devices: int
    chunk: int
    convolution: Method | None = None
    precision: Precision | None = None
    data_parallel: int = 1
    activations: Activations = "float32"

    @property
    def groups(self) -> int:
        """How many replicas are in work at the same time: the length of the mesh."""
        return self.devices // self.data_parallel

    @property
    def placement(self) -> "Execution":
        """The same devices, however replicas run there: where arrays lie, and no more."""
        return self._replace(
            chunk=1, convolution=None, precision=None, activations="float32"
        )

    @property
    def available(self) -> Sequence[jax.Device]:
        """The devices of this process, the first of which are used.

        A subclass may name others, for which programs are then compiled without them.
        """
        return jax.local_devices()

    @property
    def mesh(self) -> Mesh:
        """The devices: along the replica axis, and those that share a replica's batch."""
        devices = np.array(self.available[: self.devices])
        return Mesh(
            devices.reshape(self.groups, self.data_parallel),
            (AXIS, DATA_AXIS),
            axis_types=(AxisType.Auto, AxisType.Auto),
        )

    @property
    def sharded(self) -> NamedSharding:
        """The placement of arrays with a replica axis."""
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    @property
    def shared(self) -> NamedSharding:
        """The placement of arrays that all replicas share."""
        return NamedSharding(self.mesh, PartitionSpec())

    def check(self) -> "Execution":
        """Itself, if it fits this machine.

        Raises:
          ValueError: names the field that does not.
        """
        available = len(self.available)
        if not 1 <= self.devices <= available:
            raise ValueError(
                f"devices={self.devices}; it must be between 1 and {available}"
            )
        if self.chunk < 0:
            raise ValueError(f"chunk={self.chunk}; it must be 0 (all) or more")
        shards = self.data_parallel
        if shards < 1 or self.devices % shards:
            raise ValueError(
                f"data_parallel={shards}; it must divide devices={self.devices}"
            )
        if self.convolution is not None:
            one_of("convolution", self.convolution, convolution.METHODS)
        if self.precision is not None:
            one_of("precision", self.precision, PRECISIONS)
        one_of("activations", self.activations, ACTIVATIONS)
        return self

    def padded(self, number: int) -> int:
        """The next number of replicas that the groups of devices divide."""
        return -(-number // self.groups) * self.groups

    def place(self, tree: PyTree) -> PyTree:
        """Puts arrays with a replica axis onto the devices.

        Everything is placed before the first call, so that a program is compiled once: an
        input that is unplaced at first and sharded later would be traced twice.

        Raises:
          MemoryError: the devices have no room for them.
        """
        with whole(tree, self.groups):
            return jax.block_until_ready(jax.device_put(tree, self.sharded))

    def share(self, tree: PyTree) -> PyTree:
        """Puts arrays that all replicas share onto the devices, all on each.

        Raises:
          MemoryError: a device has no room for them.
        """
        with whole(tree):
            return jax.block_until_ready(jax.device_put(tree, self.shared))

    def spread(self, tree: PyTree) -> PyTree:
        """Pads a stack to a number that the devices divide, by its last row; places it."""
        number = trees.count(tree)
        if self.padded(number) > number:
            index = np.minimum(np.arange(self.padded(number)), number - 1)
            tree = trees.rows(tree, index)
        return self.place(tree)

    def gather(self, tree: PyTree, number: int) -> PyTree:
        """The first rows of a stack on the host: `spread` undone.

        Args:
          tree: arrays with a replica axis.
          number: how many of its rows are real.
        """
        # On the host: a slice of each shape would be a program of its own.
        return jax.tree.map(
            lambda x: x[:number] if trees.is_key(x) else np.asarray(x)[:number], tree
        )

    def parallel(
        self, function: Callable[..., PyTree], in_axes: Sequence[Axis]
    ) -> Callable[..., Any]:
        """A compiled function of R replicas from a function of one.

        Args:
          function: pure, of one replica; positional arguments.
          in_axes: per argument 0 (it has a replica axis), None (all replicas share it) or
            `GROUP` (each group of devices has its own, on a leading axis `[groups]`).

        Returns:
          A jitted function; every output has a leading axis R, which `groups` must divide
          (`padded`). Replica i's output depends on replica i's inputs alone.

        Raises:
          ValueError: an entry of in_axes is none of these, or none is 0; settings that do
            not fit this machine.
        """
        return _parallel(function, in_axes, self)

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        """Traces what is within at this precision, these activations, this way to convolve.

        Whatever JAX's own settings are, draws are the same bits and dtypes are promoted as
        by default: with "strict" promotion no optimizer of optax runs.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(convolution.batched_by(self.convolution))
            stack.enter_context(activations.stored_as(self.activations))
            stack.enter_context(jax.threefry_partitionable(True))
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
            if self.precision is not None:
                stack.enter_context(jax.default_matmul_precision(self.precision))
            yield


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is a device saying that its memory is full."""
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return False
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


@contextlib.contextmanager
def whole(tree: PyTree, parts: int = 1) -> Iterator[None]:
    """Within, arrays are made on the devices that must lie there as a whole.

    Fewer replicas at once would not help if there is no room for them.

    Args:
      tree: the arrays, or others of their shapes.
      parts: how many devices divide them.

    Raises:
      MemoryError: instead of the device's own error, when it is full.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
        raise MemoryError(
            f"a device has no room for arrays of {size / parts / 2**20:.1f} MiB that lie "
            "there as a whole; use fewer replicas or networks, more devices, less data, "
            "or a device with more memory"
        ) from error


_OF_PLATFORM: dict[str, tuple[int, Method, Precision]] = {
    "cpu": (1, "loop", "float32"),
    "gpu": (0, "tiles", "tensorfloat32"),
    "tpu": (0, "grouped", "bfloat16"),
}


def default_execution(platform: str | None = None) -> Execution:
    """All devices of this process, and the settings of its platform."""
    devices = jax.local_devices(backend=platform)
    # Other platforms ("rocm", say) are accelerators like a GPU.
    own = _OF_PLATFORM.get(devices[0].platform, _OF_PLATFORM["gpu"])
    return Execution(len(devices), *own)


def _parallel(
    function: Callable[..., PyTree], in_axes: Sequence[Axis], execution: Execution
) -> Callable[..., Any]:
    if any(axis not in (0, None, GROUP) for axis in in_axes) or 0 not in in_axes:
        raise ValueError(
            f"in_axes={in_axes}; every entry must be 0, None or {GROUP!r}, and one of "
            "them 0"
        )
    execution.check()
    specs = tuple(
        PartitionSpec() if a is None else PartitionSpec(AXIS) for a in in_axes
    )
    # Where devices share a batch, the compiler divides it: `training.loop`.
    manual = {AXIS} if execution.data_parallel > 1 else {AXIS, DATA_AXIS}

    @jax.jit
    @partial(
        jax.shard_map,
        mesh=execution.mesh,
        in_specs=specs,
        out_specs=PartitionSpec(AXIS),
        axis_names=manual,
        check_vma=False,
    )
    def run(*args: PyTree) -> PyTree:
        with execution.settings():
            return body(*args)

    def body(*args: PyTree) -> PyTree:
        args = tuple(
            jax.tree.map(lambda x: x[0], x) if a == GROUP else x
            for a, x in zip(in_axes, args)
        )

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
