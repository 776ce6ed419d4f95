"""Networks between networks: affine combinations of weights, and what they make wrong.

A point of a path, a curve or a plane is a weighted sum of a few networks. All of them go
through one evaluation, so that BatchNorm is treated alike everywhere:

| policy | statistics of a point |
|---|---|
| "recompute" | re-estimated for its own weights over a fixed slice of training data |
| "interpolate" | the same weighted sum of the networks' statistics: between them alone |

The slice is the first batches of the data order of key 0, augmented as in training. Each
batch passes in training mode; the statistics are the mean and the variance of all examples
together (means and variances are averaged, and the variance of batch means added). The
ends of a path are recomputed like every other point: running averages lag behind.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from lottery_jax import trees
from lottery_jax.connectivity.measure import BatchNorm, Measure
from lottery_jax.connectivity.measure import check as check_measure
from lottery_jax.errors import one_of, whole, wrong
from lottery_jax.execution import Execution, Where, default_execution
from lottery_jax.keys import noise_keys, of_seed
from lottery_jax.training import checked, identity
from lottery_jax.training.measured import check, evaluated
from lottery_jax.training.passes import in_groups
from lottery_jax.training.programs import program
from lottery_jax.training.rows import shared_data
from lottery_jax.trees import combine
from lottery_jax.types import (
    Array,
    Metrics,
    ModelState,
    Network,
    Params,
    PyTree,
    Task,
)


def interpolate(
    a: PyTree, b: PyTree, alpha: Array | float, *, extrapolate: bool = False
) -> PyTree:
    """The point (1 - alpha) a + alpha b of the line through two networks.

    Frankle et al. 2020, section 2.

    Args:
      a: the end at alpha = 0, any pytree of arrays.
      b: the end at alpha = 1, of the same structure and shapes.
      alpha: scalar in [0, 1], may be traced.
      extrapolate: allow alpha outside of [0, 1].

    Raises:
      ValueError: the trees do not match (says at which leaf), or alpha lies outside.
    """
    trees.same(a, b)
    check_alphas(alpha, extrapolate)
    alpha = jnp.asarray(alpha, jnp.result_type(float))
    return combine([a, b], jnp.stack([1 - alpha, alpha]))


def check_alphas(alphas: ArrayLike, extrapolate: bool) -> None:
    """Raises a ValueError for alphas outside of [0, 1], where they are known."""
    if extrapolate or isinstance(alphas, jax.core.Tracer):
        return
    values = np.asarray(alphas)
    if not ((values >= 0) & (values <= 1)).all():  # nan is outside, too
        raise ValueError(
            f"alpha={values[~((values >= 0) & (values <= 1))].flat[0]} lies outside of "
            "[0, 1]; pass extrapolate=True to go there"
        )


# --- BatchNorm ------------------------------------------------------------------------


def has_statistics(model_state: ModelState) -> bool:
    """Whether a network has anything besides its weights."""
    return bool(jax.tree.leaves(model_state))


def check_policy(
    task: Task, model_state: ModelState, batch_norm: BatchNorm | None
) -> None:
    """Raises a ValueError if it is not said, or not possible, how to treat BatchNorm."""
    if batch_norm is not None:
        one_of("batch_norm", batch_norm, ("recompute", "interpolate"))
    if not has_statistics(model_state):
        return
    if batch_norm is None:
        raise ValueError(
            "batch_norm: this network has running statistics "
            f"({trees.paths(model_state)[0]!r}, ...), so say what they are between "
            "networks: 'recompute' or 'interpolate'"
        )
    if batch_norm == "recompute" and (task.statistics is None or task.pool is None):
        raise ValueError(
            "batch_norm='recompute' needs a task with `statistics` and `pool`; this one "
            "does not say what its statistics are"
        )


def check_between(
    model_state: ModelState, batch_norm: BatchNorm | None, weights: np.ndarray
) -> None:
    """Raises a ValueError for points at which interpolated statistics are none.

    A weighted mean of variances is one. Beyond the networks, where a weight is negative,
    it may be negative itself, and the network's output nan or, worse, a number.

    Args:
      model_state: of the networks.
      batch_norm: the policy.
      weights: how much of each network, `[points, networks of a point]`.
    """
    if batch_norm != "interpolate" or not has_statistics(model_state):
        return
    weights = np.asarray(weights)
    beyond = (weights < 0).any(axis=1) | (np.abs(weights.sum(axis=1) - 1) > 1e-3)
    if beyond.any():
        raise ValueError(
            "batch_norm='interpolate': at the weights "
            f"{weights[beyond.argmax()].tolist()} a point lies beyond the networks, where "
            "a variance may become negative; use 'recompute', or positions in [0, 1]"
        )


def statistics_slice(task: Task, statistics_batches: int) -> Array:
    """The fixed slice that statistics are recomputed on, `[batches, ...]` indices.

    Raises:
      ValueError: statistics_batches outside of [1, steps of an epoch - 1].
    """
    statistics_batches = whole("statistics_batches", statistics_batches, 0)
    # The last batch of an epoch may be partial, and averages are over equal batches.
    most = max(1, task.steps_per_epoch - 1)
    if not 1 <= statistics_batches <= most:
        raise ValueError(
            f"statistics_batches={statistics_batches}; it must be between 1 and {most}, all "
            "batches of an epoch but the last, which may be partial"
        )
    key = noise_keys(of_seed(0)).order
    steps = jnp.arange(statistics_batches, dtype=jnp.int32)
    return jax.lax.map(lambda step: task.order(key, step), steps)


def _wide(tree: PyTree) -> PyTree:
    """Half precision as float32: averages are rounded once."""

    def leaf(x: Array) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    return jax.tree.map(leaf, tree)


def recompute(
    task: Task, params: Params, model_state: ModelState, rows: Array
) -> ModelState:
    """Re-estimates the model state of a network for its weights.

    Args:
      task: with `statistics` and `pool`.
      params: the weights.
      model_state: of the same structure; its values do not matter to BatchNorm.
      rows: from `statistics_slice`.
    """
    assert task.statistics is not None and task.pool is not None
    measure, key = task.statistics, noise_keys(of_seed(0)).batch

    def one(step: Array) -> PyTree:
        batch = task.batch(task.data, rows[step], key, step)
        return measure(params, model_state, batch)

    moments = jax.lax.map(one, jnp.arange(rows.shape[0], dtype=jnp.int32))
    pooled = task.pool(_wide(moments))
    return jax.tree.map(lambda new, old: new.astype(old.dtype), pooled, model_state)


# --- evaluation -----------------------------------------------------------------------


def evaluate(
    task: Task,
    networks: list[Network],
    weights: Array,
    *,
    splits: tuple[str, ...],
    batch_norm: BatchNorm | None,
    rows: Array | None,
) -> Metrics:
    """Metrics of one point: pure, so it can be jitted, vmapped and differentiated.

    Args:
      task: the task.
      networks: m of them.
      weights: float `[m]`.
      splits: names of splits that the task evaluates on.
      batch_norm: the policy; None for networks without a model state.
      rows: from `statistics_slice`, for "recompute".

    Returns:
      The scalars that the task's `evaluate` returns, each `[splits]`; nan where the loss
      is not finite.
    """
    params = combine([n.params for n in networks], weights)
    model_state = combine([n.model_state for n in networks], weights)
    if batch_norm == "recompute" and has_statistics(model_state):
        assert rows is not None
        model_state = recompute(task, params, model_state, rows)
    network = Network(params, model_state)
    found = [evaluated(task, network, task.data, split) for split in splits]
    stacked = {name: jnp.stack([one[name] for one in found]) for name in found[0]}
    # A diverged network still predicts some class: its error is no error.
    sound = jnp.isfinite(stacked["loss"])
    return {name: jnp.where(sound, x, jnp.nan) for name, x in stacked.items()}


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
    check_policy(task, networks.model_state, policy)
    check_between(networks.model_state, policy, weights)
    indices, slice_ = None, 0
    if policy == "recompute" and has_statistics(networks.model_state):
        slice_ = measure.statistics_batches
        indices = statistics_slice(task, slice_)
    execution = evaluation_execution(where.execution)
    data = shared_data(task, execution, where)
    placed = execution.share((networks, indices))

    def measured(execution: Execution) -> Callable[[PyTree], Any]:
        one = program(
            *(_points, task.functions, execution),
            *(measure.splits, policy, which.shape[1]),
        )
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
        return evaluate(
            functions._replace(data=data),
            [trees.rows(networks, which[i]) for i in range(members)],
            weights,
            splits=splits,
            batch_norm=batch_norm,
            rows=indices,
        )

    return execution.parallel(point, (None, None, None, 0, 0))
