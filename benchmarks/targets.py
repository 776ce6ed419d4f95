"""Devices that programs are compiled for and that need not be there.

JAX compiles for an H100 or a TPU on any machine that has the wheels of its compiler
(`pip install 'lottery-jax[targets]'`): the device comes from a description. What is
compiled are the library's own programs, as they run: `TRAIN`, `EVALUATE` and
`INTERPOLATE` are built by the functions that the library builds them with, on a mesh of
such devices, and are given shapes instead of arrays.
"""

import importlib.util
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies

from benchmarks.rows import Sizes
from benchmarks.sides_jax import make_task, make_tx
from lottery_jax import keys, trees
from lottery_jax.connectivity import Measure, evaluation, points
from lottery_jax.execution import Execution
from lottery_jax.execution.replicas import _OF_PLATFORM
from lottery_jax.training import measured, runs, segment
from lottery_jax.types import Network, Task

# --- devices --------------------------------------------------------------------------

_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
}
platform_name: "CUDA" device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 12 minor: 9 patch: 0 }
"""


class Target(NamedTuple):
    """A kind of device.

    Attributes:
      platform: the name of its compiler in JAX.
      modules: of which one must be installed.
      wheels: what installs them.
      topology: by number of devices, how they are connected.
      options: of the description.
      like: the platform whose settings the library takes.
    """

    platform: str
    modules: tuple[str, ...]
    wheels: str
    topology: dict[int, str]
    options: dict[str, Any]
    like: str


TARGETS = {
    "h100": Target(
        "cuda",
        ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12"),
        "jax[cuda13] (or jax[cuda12])",
        {1: ""},
        {"target_config": _H100, "topology": "1x1x1"},
        "gpu",
    ),
    "tpu-v5e": Target(
        "tpu",
        ("libtpu",),
        "libtpu",
        # The smallest slice that the compiler knows has four chips.
        {1: "v5e:2x2", 4: "v5e:2x2"},
        {},
        "tpu",
    ),
}


def missing(name: str) -> str | None:
    """What must be installed before a target can be compiled for; None if nothing.

    Args:
      name: of a target.
    """
    target = TARGETS[name]
    if any(map(_is_there, target.modules)):
        return None
    return (
        f"target={name!r}; it needs {target.wheels} of jax {jax.__version__}: "
        "pip install 'lottery-jax[targets]'"
    )


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


@lru_cache
def devices(name: str, number: int = 1) -> tuple[jax.Device, ...]:
    """Devices of a target, which compile and cannot run.

    Args:
      name: one of `TARGETS`.
      number: how many of them.

    Raises:
      ValueError: no such target, or not with this number of devices.
      ModuleNotFoundError: its compiler is not installed; says what installs it.
    """
    if name not in TARGETS:
        raise ValueError(f"target={name!r}; it must be one of {', '.join(TARGETS)}")
    target = TARGETS[name]
    if number not in target.topology:
        those = ", ".join(map(str, target.topology))
        raise ValueError(f"devices={number}; for target={name!r} it must be of {those}")
    if message := missing(name):
        raise ModuleNotFoundError(message)
    found = topologies.get_topology_desc(
        target.topology[number], target.platform, **target.options
    )
    return tuple(found.devices[:number])


def execution(name: str, number: int = 1, **settings: Any) -> Execution:
    """How replicas run on devices of a target: as is usual on its platform.

    Args:
      name: one of `TARGETS`.
      number: how many devices.
      **settings: fields of `Execution`; None where the platform's own is meant.

    Raises:
      ValueError: see `devices`; settings that do not fit.
      ModuleNotFoundError: see `devices`.
    """
    there, target = devices(name, number), TARGETS[name]

    class Elsewhere(Execution):
        """On devices that are not there."""

        @property
        def available(self) -> Sequence[jax.Device]:
            return there

    usual = Elsewhere(number, *_OF_PLATFORM[target.like])
    own = {field: value for field, value in settings.items() if value is not None}
    return usual._replace(**own).check()


# --- programs -------------------------------------------------------------------------


class Asked(NamedTuple):
    """What a program is compiled for.

    Attributes:
      task: the task; only its functions and the shapes of its data matter.
      sizes: what else is looked at: optimizer, replicas, steps.
      execution: of the target.
    """

    task: Task
    sizes: Sizes
    execution: Execution

    def shared(self, tree: Any) -> Any:
        """Shapes of arrays that all replicas share, and where they would lie."""
        return _placed(tree, self.execution.shared)

    def own(self, tree: Any) -> Any:
        """Shapes of arrays with a replica axis, likewise."""
        return _placed(tree, self.execution.sharded)

    @property
    def measure(self) -> Measure:
        """What of a path is measured: the test set, at recomputed statistics."""
        # Half of a small training set: an epoch's last batch may be partial.
        most = max(1, self.task.steps_per_epoch // 2)
        measure = Measure(batch_norm="recompute", splits=("test",))
        return measure._replace(
            statistics_batches=min(measure.statistics_batches, most)
        )


def _placed(tree: Any, sharding: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding), tree
    )


def asked(sizes: Sizes, execution: Execution) -> Asked:
    """The task of the sizes on an execution; replicas become as many as the mesh divides.

    Args:
      sizes: model, shape and number of examples, batch, optimizer, replicas, steps.
      execution: of a target.
    """
    padded = sizes._replace(replicas=execution.padded(sizes.replicas))
    return Asked(_task(sizes._replace(replicas=1)), padded, execution)


_task = lru_cache(maxsize=4)(make_task)


def _states(asked: Asked) -> tuple[Any, Any]:
    """Shapes of states about to be trained, and of noise keys, `[R]`."""
    both = jax.eval_shape(lambda: keys.of_replicas(0, range(asked.sizes.replicas)))
    start = runs._start(asked.task.functions, asked.execution, make_tx(asked.sizes))
    return asked.own(jax.eval_shape(start, {}, (), both.init)), asked.own(both.noise)


def train(asked: Asked) -> Any:
    """A segment of training of all replicas, lowered."""
    functions, number = asked.task.functions, asked.sizes.replicas
    state, noise = _states(asked)
    run = segment.train_rows(
        functions, asked.execution, make_tx(asked.sizes), asked.sizes.steps
    )
    bound = jax.ShapeDtypeStruct((), np.int32)
    offset, active = asked.own((np.zeros(number, "i4"), np.ones(number, bool)))
    data = asked.shared(asked.task.data)
    return run.lower(data, state, noise, bound, bound, {}, offset, active)


def evaluate(asked: Asked) -> Any:
    """The evaluation of all replicas on the test set, lowered."""
    state, _ = _states(asked)
    run = measured.tested(asked.task.functions, asked.execution, "test")
    return run.lower(asked.shared(asked.task.data), state.network)


def interpolate(asked: Asked) -> Any:
    """One point of a linear path for each replica, lowered."""
    number, task, measure = asked.sizes.replicas, asked.task, asked.measure
    state, _ = _states(asked)
    stack = asked.shared(jax.eval_shape(_two, state.network))
    rows = None
    if jax.tree.leaves(state.model_state):
        rows = asked.shared(
            jax.eval_shape(
                lambda: points.statistics_slice(task, measure.statistics_batches)
            )
        )
    execution = evaluation.evaluation_execution(asked.execution)
    run = evaluation._points(
        task.functions, execution, measure.splits, measure.batch_norm, 2
    )
    ends = asked.own((np.zeros((number, 2), "i4"), np.zeros((number, 2), "f4")))
    return run.lower(asked.shared(task.data), stack, rows, *ends)


def _two(network: Network) -> Network:
    """The stack of networks that paths lie between, `[R + 1]`."""
    first = trees.rows(network, slice(1))
    return trees.concatenate((network, first))


PROGRAMS: dict[str, Callable[[Asked], Any]] = {
    "train": train,
    "evaluate": evaluate,
    "interpolate": interpolate,
}
"""What can be compiled, by name."""
