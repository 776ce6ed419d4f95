"""Many points of paths, curves and planes, evaluated in one compiled program.

Where a split that they are measured on is streamed, see `connectivity.streamed`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from lottery_jax import streams, trees
from lottery_jax.connectivity import points, streamed
from lottery_jax.connectivity.measure import BatchNorm, Measure
from lottery_jax.connectivity.measure import check as check_measure
from lottery_jax.errors import whole, wrong
from lottery_jax.execution import Execution, Where, default_execution
from lottery_jax.training import checked, identity, windows
from lottery_jax.training.measured import check
from lottery_jax.training.passes import in_groups
from lottery_jax.training.programs import program
from lottery_jax.training.rows import shared_data
from lottery_jax.types import Array, Metrics, Network, PyTree, Task

AT_ONCE = 8
"""Points that are vmapped at once where training vmaps all: evaluation batches are
larger than those of training, and there are hundreds of points."""


def evaluation_execution(execution: Execution | None) -> Execution:
    """The devices of training, with no more points at once than fit."""
    execution = execution or default_execution()
    return execution._replace(chunk=execution.chunk or AT_ONCE)


def evaluate_many(
    task: Task,
    networks: Network,
    which: np.ndarray,
    weights: np.ndarray,
    measure: Measure,
    *,
    group: int = 128,
    rows: int | None = None,
    where: Where | None = None,
) -> dict[str, np.ndarray]:
    """Metrics of many points in one compiled program, sharded over the devices.

    A point holds one network's weights at a time, so memory does not grow with their
    number.

    Args:
      task: the task.
      networks: a stack, leading axis `[N]`.
      which: the networks that each point is made of, int `[P, m]`.
      weights: how much of each, float `[P, m]`.
      measure: splits and the BatchNorm policy, which is required for networks with a
        model state; its alphas are not looked at.
      group: points per call; the watcher is called after each.
      rows: how many things the points belong to, for the watcher; None for the networks.
      where: devices and chunk (points that are evaluated at once on a device; 0 means
        `AT_ONCE` here), folder, who watches.

    Returns:
      Float32 arrays `[P, splits]` by metric, `loss` among them.

    Raises:
      ValueError: no policy for BatchNorm, or "interpolate" beyond the networks; arrays
        that do not fit, unknown networks or splits; a folder with other points, networks
        or data.
      MemoryError: not even one point fits on a device, or not the data and the networks,
        all of which lie on each.

    Warns:
      RuntimeWarning: a device was full; fewer points are evaluated at once from then on.
    """
    where, measure = checked.place(where), check_measure(measure)
    check(task, trains=False, splits=measure.splits, where=where)
    number, policy = checked.networks("networks", networks, task), measure.batch_norm
    group = whole("group", group, 1)
    rows = None if rows is None else whole("rows", rows, 1)
    which, weights = np.asarray(which), np.asarray(weights)
    if which.size and not np.issubdtype(which.dtype, np.integer):
        raise wrong("which.dtype", which.dtype, "that of whole numbers")
    if weights.size and weights.dtype.kind not in "iuf":
        raise wrong("weights.dtype", weights.dtype, "that of real numbers")
    which, weights = which.astype(np.int32), weights.astype(np.float32)
    if which.ndim != 2 or which.shape != weights.shape or not len(which):
        raise ValueError(
            f"which has shape {which.shape} and weights {weights.shape}; both must be "
            "[points, networks of a point], with a point at least"
        )
    if which.min() < 0 or which.max() >= number:
        raise ValueError(f"which names networks outside of [0, {number})")
    if not np.isfinite(weights).all():
        point, member = np.argwhere(~np.isfinite(weights))[0]
        raise wrong(f"weights[{point}, {member}]", weights[point, member], "finite")
    points.check_policy(task, networks.model_state, policy)
    points.check_between(networks.model_state, policy, weights)
    indices, slice_ = None, 0
    if policy == "recompute" and points.has_statistics(networks.model_state):
        slice_ = measure.statistics_batches
        indices = points.statistics_slice(task, slice_)
    execution = evaluation_execution(where.execution)
    data = shared_data(task, execution, where)
    placed = execution.share((networks, indices))
    looked_at = {*measure.splits, *(() if indices is None else (windows.TRAIN,))}
    in_parts = bool(looked_at & streams.streamed(task.data).keys())

    def measured(execution: Execution) -> Callable[[PyTree], Any]:
        how = execution, measure.splits, policy, which.shape[1]
        if in_parts:
            by, (stack, rows) = streamed.How(task, *how), placed
            return lambda items: streamed.measure(
                by, streamed.Group(stack, *items), data, rows, where
            )
        one = program(_points, task.functions, *how)
        return lambda items: one(data, *placed, *items)

    own: identity.Fields = {}
    if where.store is not None:
        functions = ("order", "batch", "statistics", "pool") if slice_ else ()
        own = (
            {
                "kind": "points",
                "splits": list(measure.splits),
                "batch_norm": policy,
                "statistics_batches": slice_,
            }
            | identity.of_draws()
            | identity.of_task(task, functions, measure.splits)
            | identity.of_data(task, where)
            | identity.of_arrays(networks=networks, which=which, weights=weights)
        )
    return in_groups(
        measured,
        (which, weights),
        group=group,
        execution=execution,
        own=own,
        stage="paths",
        rows=number if rows is None else rows,
        where=where,
    )


def _points(
    functions: Task,
    execution: Execution,
    splits: tuple[str, ...],
    batch_norm: BatchNorm | None,
    members: int,
) -> Callable[..., Any]:
    def point(
        data: PyTree,
        networks: Network,
        indices: Array | None,
        which: Array,
        weights: Array,
    ) -> Metrics:
        return points.evaluate(
            functions._replace(data=data),
            [trees.rows(networks, which[i]) for i in range(members)],
            weights,
            splits=splits,
            batch_norm=batch_norm,
            rows=indices,
        )

    return execution.parallel(point, (None, None, None, 0, 0))
