"""Curves and planes: connectivity beyond the straight line.

Two modes that no line connects are often connected by a curve. Its bends are found by
training: at each step a point of the curve is drawn, and the gradient of the loss there
moves the bends. That is a Task like any other, so `training.train` and all that is built
on it train curves, masked ones too:

    task_ = lj.connectivity.curve_task(task, a, b, kind="bezier")
    ...                                                   # train it; params are the bends
    error = lj.connectivity.error_along_curve(task, a, b, bends, kind="bezier", ...)

A plane through three networks shows where they lie, for pictures.

References:
  Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018,
    section 3 (curves), appendix A.1 (planes).
"""

import dataclasses
import math
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from lottery_jax.connectivity import linear, points
from lottery_jax.connectivity.points import SPLITS, BatchNorm, Watcher
from lottery_jax.replicas import Execution
from lottery_jax.types import (
    Array,
    Batch,
    Key,
    Metrics,
    ModelState,
    Network,
    Params,
    PyTree,
    StreamState,
    Task,
)

Kind: TypeAlias = Literal["bezier", "chain"]


def coefficients(kind: Kind, t: ArrayLike, bends: int = 1) -> Array:
    """How much of each control point a point of a curve is made of.

    Args:
      kind: "bezier", of degree bends + 1 (quadratic with one bend), or "chain", straight
        pieces of equal length in t.
      t: position in [0, 1], `[]`, may be traced.
      bends: control points between the two ends.

    Returns:
      Float `[bends + 2]`, not negative, of sum 1; exactly an end at t = 0 and 1.

    Raises:
      ValueError: an unknown kind, or fewer than one bend.
    """
    _check(kind, bends)
    t = jnp.asarray(t, jnp.float32)
    index = np.arange(bends + 2)
    if kind == "chain":
        return jnp.maximum(0, 1 - jnp.abs(t * (bends + 1) - index))
    choose = np.array([math.comb(bends + 1, i) for i in index], np.float32)
    # Powers by an integer exponent: 0 to the 0 is 1.
    rising = jnp.stack([t**i for i in index.tolist()])
    falling = jnp.stack([(1 - t) ** (bends + 1 - i) for i in index.tolist()])
    return jnp.asarray(choose) * rising * falling


def _check(kind: str, bends: int) -> None:
    if kind not in ("bezier", "chain"):
        raise ValueError(f"kind={kind!r}; it must be 'bezier' or 'chain'")
    if bends < 1:
        raise ValueError(f"bends={bends}; a curve has one bend at least")


# --- training a curve -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Curve:
    """The static part of a curve's task; its methods are the Task's functions."""

    inner: Task
    kind: Kind
    bends: int

    def init(self, key: Key) -> tuple[Params, ModelState, StreamState]:
        raise NotImplementedError("a curve starts from its ends: see `straight`")

    def batch(self, data: PyTree, indices: Array, noise_key: Key, step: Array) -> Batch:
        inner, a, b = data
        return self.inner.batch(inner, indices, noise_key, step), a, b

    def loss(
        self,
        params: Params,
        model_state: ModelState,
        stream_state: StreamState,
        batch: Batch,
        key: Key,
    ) -> tuple[Array, tuple[ModelState, StreamState, Metrics]]:
        inner, a, b = batch
        draw, inner_key = jax.random.split(key)
        at = coefficients(self.kind, jax.random.uniform(draw), self.bends)
        point = points.combine([a, *params, b], at)
        return self.inner.loss(point, model_state, stream_state, inner, inner_key)

    def evaluate(
        self,
        params: Params,
        model_state: ModelState,
        data: PyTree,
        key: Key,
        split: str,
    ) -> Metrics:
        """In the middle of the curve, with the statistics as they are."""
        inner, a, b = data
        middle = points.combine(
            [a, *params, b], coefficients(self.kind, 0.5, self.bends)
        )
        return self.inner.evaluate(middle, model_state, inner, key, split)


def curve_task(
    task: Task, a: Params, b: Params, *, kind: Kind = "bezier", bends: int = 1
) -> Task:
    """The task of finding a curve of low loss between two networks.

    Its params are a tuple of bends, each like the networks' weights; its loss is the
    task's at a uniformly drawn point of the curve, so that its minimum is that of the
    mean loss over t (Garipov et al. 2018, equation 2). Start from `straight`, with
    `training.start(tx, Network(straight(...), model_state), stream_state, mask)`; masks
    are tuples like the bends.

    Args:
      task: what the networks were trained on.
      a: weights at t = 0; they stay.
      b: weights at t = 1; they stay.
      kind: see `coefficients`.
      bends: control points that are trained.

    Raises:
      ValueError: weights that do not match, an unknown kind, fewer than one bend.
    """
    points.same_trees(a, b)
    _check(kind, bends)
    curve = _Curve(task.functions, kind, bends)
    return Task(
        data=(task.data, a, b),
        init=curve.init,
        order=task.order,
        batch=curve.batch,
        loss=curve.loss,
        evaluate=curve.evaluate,
        steps_per_epoch=task.steps_per_epoch,
        validates=task.validates,
    )


def straight(a: Params, b: Params, bends: int = 1) -> tuple[Params, ...]:
    """Bends on the line between two networks, evenly spaced: where training starts."""
    at = [(i + 1) / (bends + 1) for i in range(bends)]
    return tuple(points.interpolate(a, b, alpha) for alpha in at)


def error_along_curve(
    task: Task,
    a: Network,
    b: Network,
    bends: tuple[Params, ...],
    positions: int | ArrayLike = linear.ALPHAS,
    *,
    kind: Kind,
    batch_norm: BatchNorm | None,
    splits: tuple[str, ...] = SPLITS,
    statistics_batches: int = 16,
    execution: Execution | None = None,
) -> linear.Path:
    """Error and loss on a curve, in one pass over all its points.

    Args:
      task: the task of the networks, not that of the curve.
      a: the network at t = 0.
      b: the network at t = 1.
      bends: weights of the bends.
      positions: how many evenly spaced t, or the t, ends included.
      kind: see `coefficients`.
      batch_norm: the policy; "interpolate" is refused where there are statistics, since
        the bends have none of their own.
      splits: names of splits.
      statistics_batches: batches of training data for "recompute".
      execution: devices and chunk; None for the platform's default.

    Returns:
      A `linear.Path` of one pair; its alphas are the positions t.

    Raises:
      ValueError: networks that do not match, no fitting policy.
    """
    if batch_norm == "interpolate" and points.has_statistics(a.model_state):
        raise ValueError(
            "batch_norm='interpolate': the bends of a curve have no statistics of their "
            "own; use 'recompute'"
        )
    for bend in (*bends, b.params):
        points.same_trees(a.params, bend)
    members = [a, *(Network(bend, a.model_state) for bend in bends), b]
    at = linear.positions(positions)
    weights = np.stack([np.asarray(coefficients(kind, t, len(bends))) for t in at])
    found = points.evaluate_many(
        task,
        jax.tree.map(lambda *x: jnp.stack(x), *members),
        np.tile(np.arange(len(members)), (len(at), 1)),
        weights,
        batch_norm=batch_norm,
        splits=splits,
        statistics_batches=statistics_batches,
        execution=execution,
    )
    return linear.Path(at, found["error"].T[None], found["loss"].T[None], splits)


# --- planes ---------------------------------------------------------------------------


class Plane(NamedTuple):
    """Error and loss on a grid of the plane through three networks.

    Attributes:
      x: coordinates along the first axis, from `a` towards `b`, in units of L2 distance
        between weights, float `[X]`.
      y: along the second axis, at a right angle to it, towards `c`, `[Y]`.
      networks: where a, b and c lie, `[3, 2]`.
      error: fractions, `[splits, Y, X]`.
      loss: likewise.
      splits: names along the first axis.
    """

    x: np.ndarray
    y: np.ndarray
    networks: np.ndarray
    error: np.ndarray
    loss: np.ndarray
    splits: tuple[str, ...]


def _flat(params: Params) -> np.ndarray:
    """All weights in one float64 vector."""
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(params)]
    return np.concatenate(leaves)


def plane(
    task: Task,
    a: Network,
    b: Network,
    c: Network,
    *,
    batch_norm: BatchNorm | None,
    size: int = 15,
    margin: float = 0.25,
    splits: tuple[str, ...] = ("test",),
    statistics_batches: int = 16,
    execution: Execution | None = None,
    watch: Watcher | None = None,
) -> Plane:
    """Error on the plane through three networks (Garipov et al. 2018, appendix A.1).

    Args:
      task: the task.
      a: the network at the origin.
      b: a network on the first axis.
      c: a network above it.
      batch_norm: the policy; "interpolate" is refused where there are statistics:
        beyond the triangle a variance may become negative.
      size: points along each axis, at least 2.
      margin: how far the grid goes beyond the three, as a share of their extent.
      splits: names of splits.
      statistics_batches: batches of training data for "recompute".
      execution: devices and chunk; None for the platform's default.
      watch: called with (points done, points in all).

    Raises:
      ValueError: networks that do not match or lie on one line, no fitting policy.
    """
    if batch_norm == "interpolate" and points.has_statistics(a.model_state):
        raise ValueError(
            "batch_norm='interpolate': beyond the triangle of the networks a variance "
            "may become negative; use 'recompute'"
        )
    for other in (b, c):
        points.same_trees(a, other)
    # Where c lies. In double precision: the height of a flat triangle is a small
    # difference of large numbers.
    origin, first, third = (_flat(n.params) for n in (a, b, c))
    along, towards = first - origin, third - origin
    ab = float(np.linalg.norm(along))
    foot = float(towards @ along) / ab if ab else 0.0
    height = float(np.linalg.norm(towards - foot / ab * along)) if ab else 0.0
    # What rounding to float32 may make of a point on the line is none.
    scale = max(float(np.linalg.norm(x)) for x in (origin, first, third, towards))
    if height <= 1e-6 * scale:
        raise ValueError("the three networks lie on one line; they span no plane")
    where = np.array([[0, 0], [ab, 0], [foot, height]])

    def axis(values: np.ndarray) -> np.ndarray:
        low, high = values.min(), values.max()
        edge = margin * (high - low)
        return np.linspace(low - edge, high + edge, size)

    x, y = axis(where[:, 0]), axis(where[:, 1])
    grid_x, grid_y = np.meshgrid(x, y)
    of_c = grid_y / height
    of_b = (grid_x - of_c * foot) / ab
    weights = np.stack([1 - of_b - of_c, of_b, of_c], axis=-1).reshape(-1, 3)
    found = points.evaluate_many(
        task,
        jax.tree.map(lambda *leaves: jnp.stack(leaves), a, b, c),
        np.tile(np.arange(3), (len(weights), 1)),
        weights,
        batch_norm=batch_norm,
        splits=splits,
        statistics_batches=statistics_batches,
        execution=execution,
        watch=watch,
    )
    shaped = {
        name: np.moveaxis(v.reshape(size, size, -1), -1, 0) for name, v in found.items()
    }
    return Plane(x, y, where, shaped["error"], shaped["loss"], splits)
