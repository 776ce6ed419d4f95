"""Networks between networks: affine combinations of weights, and what they make wrong.

A point of a path, a curve or a plane is a weighted sum of a few networks. All of them go
through one evaluation, so that BatchNorm is treated alike everywhere:

| policy | statistics of a point |
|---|---|
| "recompute" | re-estimated for its own weights over a fixed slice of training data |
| "interpolate" | the same weighted sum of the networks' statistics |

The slice is the first batches of the data order of key 0, augmented as in training. Each
batch passes in training mode; means and raw second moments are averaged over batches, so
the variance is that of all examples together (the variance of batch means is in it). The
ends of a path are recomputed like every other point: running averages lag behind.
"""

import functools
import hashlib
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from lottery_jax import masks, training
from lottery_jax.replicas import Execution, default_execution, padded, parallel, place
from lottery_jax.replicas import shared as shared_placement
from lottery_jax.storage import checkpoints
from lottery_jax.types import (
    Array,
    Metrics,
    ModelState,
    Network,
    Params,
    PyTree,
    Task,
)

BatchNorm: TypeAlias = Literal["recompute", "interpolate"]

SPLITS = ("train", "test")


def combine(trees: Sequence[PyTree], weights: Array) -> PyTree:
    """The weighted sum of trees, leaf by leaf.

    Where a weight is exactly 1 and the others 0 the result equals that tree. Leaves that
    are not floating-point (counters) are those of the first tree.

    Args:
      trees: m of them, with equal structures and shapes.
      weights: float `[m]`, may be traced.
    """

    def leaf(*leaves: Array) -> Array:
        if not jnp.issubdtype(jnp.asarray(leaves[0]).dtype, jnp.inexact):
            return leaves[0]
        parts = [weights[i].astype(x.dtype) * x for i, x in enumerate(leaves)]
        return functools.reduce(jnp.add, parts)

    return jax.tree.map(leaf, *trees)


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
    same_trees(a, b)
    check_alphas(alpha, extrapolate)
    alpha = jnp.asarray(alpha, jnp.float32)
    return combine([a, b], jnp.stack([1 - alpha, alpha]))


def same_trees(a: PyTree, b: PyTree, names: tuple[str, str] = ("a", "b")) -> None:
    """Raises a ValueError that says where two trees differ in structure or shape."""
    first, second = (
        dict(zip(masks.paths(tree), jax.tree.leaves(tree))) for tree in (a, b)
    )
    for path in first.keys() ^ second.keys():
        has = names[0] if path in first else names[1]
        raise ValueError(f"only {has} has a leaf {path!r}; both must have the same")
    for path, leaf in first.items():
        if np.shape(leaf) != np.shape(second[path]):
            raise ValueError(
                f"leaf {path!r} has shape {np.shape(leaf)} in {names[0]} and "
                f"{np.shape(second[path])} in {names[1]}; they must be the same"
            )
    if not masks.same_structure(a, b):
        raise ValueError(
            f"{names[0]} and {names[1]} have the same leaves in different structures: "
            f"{jax.tree.structure(a)} and {jax.tree.structure(b)}"
        )


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
    if batch_norm not in (None, "recompute", "interpolate"):
        raise ValueError(
            f"batch_norm={batch_norm!r}; it must be 'recompute' or 'interpolate'"
        )
    if not has_statistics(model_state):
        return
    if batch_norm is None:
        raise ValueError(
            "batch_norm: this network has running statistics "
            f"({masks.paths(model_state)[0]!r}, ...), so say what they are between "
            "networks: 'recompute' or 'interpolate'"
        )
    if batch_norm == "recompute" and (task.statistics is None or task.pool is None):
        raise ValueError(
            "batch_norm='recompute' needs a task with `statistics` and `pool`; this one "
            "does not say what its statistics are"
        )


def statistics_slice(task: Task, batches: int) -> Array:
    """The fixed slice that statistics are recomputed on, `[batches, ...]` indices.

    Raises:
      ValueError: batches outside of [1, steps of an epoch - 1].
    """
    # The last batch of an epoch may be partial, and averages are over equal batches.
    most = max(1, task.steps_per_epoch - 1)
    if not 1 <= batches <= most:
        raise ValueError(
            f"statistics_batches={batches}; it must be between 1 and {most}, all "
            "batches of an epoch but the last, which may be partial"
        )
    order = task.order(training.noise_keys(jax.random.key(0)).order, jnp.int32(0))
    return order[:batches]


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
    measure, key = task.statistics, training.noise_keys(jax.random.key(0)).batch

    def one(step: Array) -> PyTree:
        batch = task.batch(task.data, rows[step], key, step)
        return measure(params, model_state, batch)

    moments = jax.lax.map(one, jnp.arange(rows.shape[0], dtype=jnp.int32))
    return task.pool(jax.tree.map(lambda x: jnp.mean(x, axis=0), moments))


# --- evaluation -----------------------------------------------------------------------


def evaluate(
    task: Task,
    networks: Sequence[Network],
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
      What the task's `evaluate` returns, each `[splits]`; nan where the loss is not
      finite.
    """
    params = combine([n.params for n in networks], weights)
    model_state = combine([n.model_state for n in networks], weights)
    if batch_norm == "recompute" and has_statistics(model_state):
        assert rows is not None
        model_state = recompute(task, params, model_state, rows)
    found = [
        task.evaluate(params, model_state, task.data, jax.random.key(0), split)
        for split in splits
    ]
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


Watcher: TypeAlias = Callable[[int, int], None]
"""Called with (points done, points in all)."""


def evaluate_many(
    task: Task,
    networks: Network,
    which: np.ndarray,
    weights: np.ndarray,
    *,
    batch_norm: BatchNorm | None,
    splits: tuple[str, ...] = SPLITS,
    statistics_batches: int = 16,
    execution: Execution | None = None,
    group: int = 128,
    folder: pathlib.Path | str | None = None,
    checkpoint_seconds: float = 30.0,
    watch: Watcher | None = None,
) -> dict[str, np.ndarray]:
    """Metrics of many points in one compiled program, sharded over the devices.

    A point holds one network's weights at a time, so memory does not grow with their
    number.

    Args:
      task: the task.
      networks: a stack, leading axis `[N]`.
      which: the networks that each point is made of, int `[P, m]`.
      weights: how much of each, float `[P, m]`.
      batch_norm: the policy; required for networks with a model state.
      splits: names of splits.
      statistics_batches: batches of training data for "recompute".
      execution: devices and chunk (points that are evaluated at once on a device; 0 means
        `AT_ONCE` here); None for the platform's default.
      group: points per call; the watcher is called after each.
      folder: where checkpoints go. A folder with one is continued from there.
      checkpoint_seconds: time between checkpoints.
      watch: called as it goes on.

    Returns:
      Float32 arrays `[P, splits]` by metric, `error` and `loss` among them.

    Raises:
      ValueError: no policy for BatchNorm, arrays that do not fit, unknown networks; a
        checkpoint of other points.
    """
    which, weights = np.asarray(which, np.int32), np.asarray(weights, np.float32)
    number = jax.tree.leaves(networks.params)[0].shape[0]
    if which.ndim != 2 or which.shape != weights.shape or not len(which):
        raise ValueError(
            f"which has shape {which.shape} and weights {weights.shape}; both must be "
            "[points, networks of a point], with a point at least"
        )
    if which.min() < 0 or which.max() >= number:
        raise ValueError(f"which names networks outside of [0, {number})")
    check_policy(task, networks.model_state, batch_norm)
    execution = evaluation_execution(execution)
    rows = None
    if batch_norm == "recompute" and has_statistics(networks.model_state):
        rows = statistics_slice(task, statistics_batches)
    program = _program(task.functions, splits, batch_norm, which.shape[1], execution)
    everywhere = shared_placement(execution)
    data, networks, rows = jax.device_put((task.data, networks, rows), everywhere)
    calls = -(-len(which) // padded(group, execution))
    size = padded(-(-len(which) // calls), execution)
    store = None if folder is None else pathlib.Path(folder)
    slice_ = 0 if rows is None else statistics_batches
    points = fingerprint(networks, which, weights, splits, batch_norm or "none", slice_)
    parts = [] if store is None else _restore(store, points)
    done, last = sum(len(next(iter(p.values()))) for p in parts), time.monotonic()
    while done < len(which):
        # Every call has the same shape; the last one repeats its last point.
        at = np.minimum(np.arange(done, done + size), len(which) - 1)
        found = program(
            data, networks, rows, *place((which[at], weights[at]), execution)
        )
        real = min(size, len(which) - done)
        parts.append({name: np.asarray(x)[:real] for name, x in found.items()})
        done += real
        if watch:
            watch(done, len(which))
        if store is not None and (
            time.monotonic() - last > checkpoint_seconds or done == len(which)
        ):
            metadata = {
                "points": points,
                "done": done,
                "splits": len(splits),
                "names": sorted(parts[0]),
            }
            checkpoints.save(store, _joined(parts), metadata)
            last = time.monotonic()
    return _joined(parts)


def _joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def fingerprint(*trees: PyTree) -> str:
    """Tells what a folder holds apart from what it is asked to continue with.

    Args:
      *trees: of arrays, typed keys, numbers and text.
    """
    parts = []
    for leaf in jax.tree.leaves(trees):
        if not hasattr(leaf, "dtype") or leaf.size <= 4096:
            is_key = hasattr(leaf, "dtype") and jnp.issubdtype(
                leaf.dtype, jax.dtypes.prng_key
            )
            values = jax.random.key_data(leaf) if is_key else leaf
            parts.append(np.asarray(values).tolist())
        else:
            # Sums tell weights apart well enough, and gigabytes are summed quickly.
            parts.append(float(jnp.sum(jnp.abs(leaf))))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _restore(store: pathlib.Path, points: str) -> list[dict[str, np.ndarray]]:
    found = checkpoints.metadata(store)
    if found is None:
        return []
    if found["points"] != points:
        raise ValueError(
            f"{store} holds the evaluation of other points; choose another folder"
        )
    like = {
        name: jax.ShapeDtypeStruct((found["done"], found["splits"]), np.float32)
        for name in found["names"]
    }
    restored = checkpoints.restore(store, like)
    assert restored is not None
    return [jax.tree.map(np.asarray, restored[0])]


@functools.lru_cache(maxsize=16)
def _program(
    functions: Task,
    splits: tuple[str, ...],
    batch_norm: BatchNorm | None,
    members: int,
    execution: Execution,
) -> Callable[..., dict[str, Array]]:
    """Compiled once for a task; later calls with the same shapes reuse it."""

    def point(
        data: PyTree,
        networks: Network,
        rows: Array | None,
        which: Array,
        weights: Array,
    ) -> Metrics:
        own = [
            jax.tree.map(lambda x, i=i: x[which[i]], networks) for i in range(members)
        ]
        return evaluate(
            functions._replace(data=data),
            own,
            weights,
            splits=splits,
            batch_norm=batch_norm,
            rows=rows,
        )

    return parallel(point, (None, None, None, 0, 0), execution)
