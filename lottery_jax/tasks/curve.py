"""The bends of a curve between two networks, trained like any other network.

Two modes that no line connects are often connected by a curve. Its bends are found by
training: at each step a point of the curve is drawn, and the gradient of the loss there
moves the bends. The bends are the params; the two ends stay what they are and differ from
run to run, so they are the model state. So a curve is an ordinary `Task`: initialised,
trained over many pairs at once, checkpointed, masked and pruned by what does so for any.

    curve = lj.tasks.curve(task, kind="bezier")
    network = lj.tasks.between(a, b)                    # straight; params are the bends
    ...                                                 # train it

References:
  Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018,
    section 3.
"""

import dataclasses
import math
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from lottery_jax import masks, trees
from lottery_jax.errors import is_a, one_of, whole, within
from lottery_jax.keys import settled
from lottery_jax.types import (
    Array,
    Batch,
    Key,
    Metrics,
    ModelState,
    Network,
    Params,
    Prunable,
    PyTree,
    StreamState,
    Task,
)

Kind: TypeAlias = Literal["bezier", "polygon"]


def coefficients(kind: Kind, t: ArrayLike, bends: int = 1) -> Array:
    """How much of each control point a point of a curve is made of.

    Args:
      kind: "bezier", of degree bends + 1 (quadratic with one bend), or "polygon", straight
        pieces of equal length in t.
      t: position in [0, 1], `[]`, may be traced.
      bends: control points between the two ends.

    Returns:
      Float `[bends + 2]`, not negative, of sum 1; exactly an end at t = 0 and 1.

    Raises:
      ValueError: an unknown kind, fewer than one bend, or a position that is known to lie
        outside.
    """
    _check(kind, bends)
    if not isinstance(t, jax.core.Tracer):
        within("t", t, 0, 1)  # type: ignore[arg-type]
    t = jnp.asarray(t, jnp.float32)
    index = np.arange(bends + 2)
    if kind == "polygon":
        return jnp.maximum(0, 1 - jnp.abs(t * (bends + 1) - index))
    choose = np.array([math.comb(bends + 1, i) for i in index], np.float32)
    # Powers by an integer exponent: 0 to the 0 is 1.
    rising = jnp.stack([t**i for i in index.tolist()])
    falling = jnp.stack([(1 - t) ** (bends + 1 - i) for i in index.tolist()])
    return jnp.asarray(choose) * rising * falling


def _check(kind: str, bends: int) -> None:
    one_of("kind", kind, ("bezier", "polygon"))
    whole("bends", bends, 1)


class Ends(NamedTuple):
    """What a curve has besides its bends; the model state of its task.

    Attributes:
      a: weights at t = 0; they stay.
      b: weights at t = 1; they stay.
      inner: the model state of the networks' own task.
    """

    a: Params
    b: Params
    inner: ModelState


def straight(a: Params, b: Params, bends: int = 1) -> tuple[Params, ...]:
    """Bends on the line between two networks, evenly spaced: where training starts."""
    at = [(i + 1) / (bends + 1) for i in range(bends)]
    weights = [jnp.array([1 - t, t], jnp.float32) for t in at]
    return tuple(trees.combine([a, b], weight) for weight in weights)


def between(a: Network, b: Network, bends: int = 1) -> Network:
    """The straight curve between two networks, as a network of a curve's task.

    Args:
      a: at t = 0; its model state is what the curve starts with.
      b: at t = 1.
      bends: control points that are trained.

    Raises:
      ValueError: networks that do not match; says at which leaf.
    """
    trees.same(a.params, b.params)
    ends = Ends(a.params, b.params, a.model_state)
    return Network(straight(a.params, b.params, bends), ends)


@dataclasses.dataclass(frozen=True)
class _Curve:
    """The static part of a curve's task; its methods are the Task's functions."""

    inner: Task
    kind: Kind
    bends: int

    @settled
    def init(self, key: Key) -> tuple[Params, ModelState, StreamState]:
        """A straight line between two draws of the inner initialisation."""
        (a, state, stream), (b, _, _) = (
            self.inner.init(k) for k in jax.random.split(key)
        )
        network = between(Network(a, state), Network(b, state), self.bends)
        return network.params, network.model_state, stream

    def _point(self, params: Params, ends: Ends, t: ArrayLike) -> Params:
        at = coefficients(self.kind, t, self.bends)
        return trees.combine([ends.a, *params, ends.b], at)

    @settled
    def loss(
        self,
        params: Params,
        model_state: ModelState,
        stream_state: StreamState,
        batch: Batch,
        key: Key,
    ) -> tuple[Array, tuple[ModelState, StreamState, Metrics]]:
        draw, inner_key = jax.random.split(key)
        point = self._point(
            params, model_state, jax.random.uniform(draw, (), jnp.float32)
        )
        value, (inner, stream_state, metrics) = self.inner.loss(
            point, model_state.inner, stream_state, batch, inner_key
        )
        return value, (model_state._replace(inner=inner), stream_state, metrics)

    def evaluate(
        self,
        params: Params,
        model_state: ModelState,
        data: PyTree,
        key: Key,
        split: str,
    ) -> Metrics:
        """In the middle of the curve, with the statistics as they are."""
        middle = self._point(params, model_state, 0.5)
        return self.inner.evaluate(middle, model_state.inner, data, key, split)

    def prunable(self, params: Params) -> Prunable:
        """Of each bend what the networks' own task prunes."""
        inner = self.inner.prunable or masks.prunable
        return tuple(inner(bend) for bend in params)


def curve(task: Task, *, kind: Kind = "bezier", bends: int = 1) -> Task:
    """The task of finding a curve of low loss between two networks.

    Its params are a tuple of bends, each like the networks' weights, its model state is
    `Ends`. The loss is the task's at a uniformly drawn point of the curve, so that its
    minimum is that of the mean loss over t (Garipov et al. 2018, equation 2). `init`
    draws two ends; for two networks of one's own start from `between`. Masks are tuples
    like the bends.

    Args:
      task: what the networks were trained on.
      kind: see `coefficients`.
      bends: control points that are trained.

    Raises:
      ValueError: no task, an unknown kind, fewer than one bend.
    """
    must = "a lottery_jax.Task, as tasks.classification(...) makes"
    is_a("task", task, Task, must)
    _check(kind, bends)
    static = _Curve(task.functions, kind, bends)
    return Task(
        data=task.data,
        init=static.init,
        order=task.order,
        batch=task.batch,
        loss=static.loss,
        evaluate=static.evaluate,
        steps_per_epoch=task.steps_per_epoch,
        prunable=static.prunable,
        exclude=task.exclude,
        validates=task.validates,
    )
