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

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from lottery_jax import trees
from lottery_jax.connectivity.measure import BatchNorm
from lottery_jax.errors import one_of, whole
from lottery_jax.keys import noise_keys, of_seed
from lottery_jax.training.measured import evaluated
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
    return pooled(task, moments(task, params, model_state, rows, 0), model_state)


def moments(
    task: Task, params: Params, model_state: ModelState, rows: Array, first: Array | int
) -> PyTree:
    """What the statistics of a network are pooled from, of each batch of a slice.

    Args:
      task: with `statistics`.
      params: the weights.
      model_state: see `recompute`.
      rows: batches of a slice, `[batches, ...]` indices.
      first: the number of the first of them in the slice.
    """
    assert task.statistics is not None
    measure, key = task.statistics, noise_keys(of_seed(0)).batch

    def one(at: Array) -> PyTree:
        batch = task.batch(task.data, rows[at], key, first + at)
        return measure(params, model_state, batch)

    return jax.lax.map(one, jnp.arange(rows.shape[0], dtype=jnp.int32))


def pooled(task: Task, moments: PyTree, model_state: ModelState) -> ModelState:
    """The model state of a network, from the moments of several batches.

    Args:
      task: with `pool`.
      moments: from `moments`.
      model_state: says of which dtypes it is.
    """
    assert task.pool is not None
    found = task.pool(_wide(moments))
    return jax.tree.map(lambda new, old: new.astype(old.dtype), found, model_state)


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
    params, model_state = combined(networks, weights)
    if batch_norm == "recompute" and has_statistics(model_state):
        assert rows is not None
        model_state = recompute(task, params, model_state, rows)
    network = Network(params, model_state)
    found = [evaluated(task, network, task.data, split) for split in splits]
    return sound({n: jnp.stack([one[n] for one in found]) for n in found[0]})


def combined(networks: list[Network], weights: Array) -> Network:
    """The weighted sum of networks, of their model states, too."""
    # Fused with what is computed of it, it may be rounded twice in one program, and once,
    # by a fused multiply-add, in the next: a point has the same bits in all of them.
    return jax.lax.optimization_barrier(
        Network(
            combine([n.params for n in networks], weights),
            combine([n.model_state for n in networks], weights),
        )
    )


def sound(found: Metrics) -> Metrics:
    """Metrics of points; a diverged network still predicts some class: that is no error."""
    finite = jnp.isfinite(found["loss"])
    return {name: jnp.where(finite, x, jnp.nan) for name, x in found.items()}
