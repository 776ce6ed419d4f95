"""Points whose error is measured on splits that lie on no device, part by part.

As in `points`, where all of a point is one program: here its statistics are pooled from
windows of their slice, and its metrics put together from the parts of each split. All
points of a group share what is read.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import streams, trees
from lottery_jax.connectivity import points
from lottery_jax.connectivity.measure import BatchNorm
from lottery_jax.execution import Execution, Where
from lottery_jax.training import measured, windows
from lottery_jax.training.programs import program
from lottery_jax.types import Array, Metrics, ModelState, Network, PyTree, Task


class Group(NamedTuple):
    """Points on the devices.

    Attributes:
      networks: a stack `[N]`, on all devices.
      which: the networks that each point is made of, int32 `[P, m]`.
      weights: how much of each, float32 `[P, m]`.
    """

    networks: Network
    which: Array
    weights: Array


class How(NamedTuple):
    """How points are measured.

    Attributes:
      task: of the networks.
      execution: the devices.
      splits: names of splits.
      batch_norm: the policy.
      members: networks of a point.
    """

    task: Task
    execution: Execution
    splits: tuple[str, ...]
    batch_norm: BatchNorm | None
    members: int


def measure(
    how: How, group: Group, data: PyTree, indices: Array | None, where: Where
) -> Metrics:
    """Metrics of a group of points, `[P, splits]` by name.

    Args:
      how: see `How`.
      group: the points.
      data: splits that lie on the devices.
      indices: of the slice that statistics are recomputed on, or None.
      where: is told how long devices wait for examples.
    """
    task, execution = how.task, how.execution
    of = (task.functions, execution, how.members)
    states: ModelState = ()
    if indices is not None:
        found = _moments(how, group, data, np.asarray(indices), where)
        states = program(_pooled, *of)(found, *group)
    away = streams.streamed(task.data)
    each = []
    for split in how.splits:
        one = program(_measured, *of, split, split in away, indices is not None)
        if split in away:
            parts = measured.parts_of(task, execution, split, where)
            use = functools.partial(_of_part, one, split, states, group)
            each.append(measured.together(execution, windows.each(parts, use)))
        else:
            each.append(one(data, states, *group))
    stacked = {name: jnp.stack([x[name] for x in each], axis=1) for name in each[0]}
    return points.sound(stacked)


def _of_part(
    one: Callable[..., Any], split: str, states: ModelState, group: Group, part: PyTree
) -> Any:
    return one({split: part}, states, *group)


def _network(networks: Network, which: Array, weights: Array, members: int) -> Network:
    own = [trees.rows(networks, which[i]) for i in range(members)]
    return points.combined(own, weights)


def _moments(
    how: How, group: Group, data: PyTree, indices: np.ndarray, where: Where
) -> PyTree:
    """What each point's statistics are pooled from, `[P, batches, ...]`."""
    one = program(_moments_of, how.task.functions, how.execution, how.members)
    share = how.execution.share
    away = streams.streamed(how.task.data)
    if windows.TRAIN not in away:
        return one(data[windows.TRAIN], share(indices), np.int32(0), *group)
    examples = away[windows.TRAIN]
    size = windows.at_once(examples, indices[0].size)
    cuts = range(0, len(indices), size)
    some = [indices[cut : cut + size] for cut in cuts]
    sets = [windows.rebased(batches) for batches in some]
    rows = [wanted for wanted, _ in sets]
    read = windows.of_rows(examples, rows, how.execution, where.waited)
    at = iter(zip(cuts, sets))

    def of_some(part: PyTree) -> PyTree:
        cut, (_, places) = next(at)
        return one(part, share(places), np.int32(cut), *group)

    found = windows.each(read, of_some)
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *found)


def _moments_of(
    functions: Task, execution: Execution, members: int
) -> Callable[..., Any]:
    def of_point(
        examples: PyTree,
        places: Array,
        first: Array,
        networks: Network,
        which: Array,
        weights: Array,
    ) -> PyTree:
        network = _network(networks, which, weights, members)
        task = functions._replace(data={windows.TRAIN: examples})
        return points.moments(task, *network, places, first)

    return execution.parallel(of_point, (None, None, None, None, 0, 0))


def _pooled(functions: Task, execution: Execution, members: int) -> Callable[..., Any]:
    def of_point(
        moments: PyTree, networks: Network, which: Array, weights: Array
    ) -> ModelState:
        network = _network(networks, which, weights, members)
        return points.pooled(functions, moments, network.model_state)

    return execution.parallel(of_point, (0, None, 0, 0))


def _measured(
    functions: Task,
    execution: Execution,
    members: int,
    split: str,
    streamed: bool,
    recomputed: bool,
) -> Callable[..., Any]:
    def of_point(
        data: PyTree,
        state: ModelState,
        networks: Network,
        which: Array,
        weights: Array,
    ) -> Any:
        network = _network(networks, which, weights, members)
        if recomputed:
            network = network._replace(model_state=state)
        if streamed:
            return measured.summed(functions, network, data, split)
        return measured.evaluated(functions, network, data, split)

    return execution.parallel(of_point, (None, 0, None, 0, 0))
