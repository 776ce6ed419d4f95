"""Networks whose pruned weights are frozen at values of their own instead of 0.

What should a pruned weight be? Zhou et al. (2019), section 4, set it to 0, freeze it at its
initial value, or ask where training moved it: their "mask-0 actions". Here the params are
as ever, exactly 0 off the mask; an *anchor*, which is exactly 0 on the mask, is added where
the network is applied. So off the mask the weights of the network are the anchor to the
bit, 0 + a, after any step of any optimizer, and survivors are what they are, p + 0.

    task = lj.tasks.anchored(task)
    network = lj.tasks.anchor(initial, mask, "freeze")  # params and model state to start from

Anchors differ from run to run and are not trained, so they belong to the model state: runs
with several of them train side by side, and are stored, evaluated and compared as any.

| action | pruned weights are | surviving ones start at |
|---|---|---|
| zero | 0 | w_i, their initial value |
| freeze | w_i | w_i |
| freeze_grown | 0 if training moved them towards 0, else w_i | w_i |
| freeze_grown_all | as in freeze_grown | 0 if it moved them towards 0, else w_i |

The last two are variants 1 and 2 of the paper. A weight moved towards 0 if its magnitude
is smaller at the end of training than it was at the start.

References:
  Zhou, Lan, Liu and Yosinski, Deconstructing Lottery Tickets: Zeros, Signs, and the
    Supermask, 2019, section 4; https://arxiv.org/abs/1905.01067
"""

import dataclasses
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp

from lottery_jax import masks, trees
from lottery_jax.errors import is_a, one_of
from lottery_jax.types import (
    Array,
    Batch,
    Key,
    Mask,
    Metrics,
    ModelState,
    Network,
    Params,
    PyTree,
    StreamState,
    Task,
)

Action: TypeAlias = Literal["zero", "freeze", "freeze_grown", "freeze_grown_all"]
"""What becomes of pruned weights; see the module."""

ACTIONS: tuple[Action, ...] = get_args(Action)
"""All of them."""


class Anchored(NamedTuple):
    """What a network has besides its weights; the model state of an anchored task.

    Attributes:
      anchor: what is added to the weights: exactly 0 on the mask, frozen values off it.
      inner: the model state of the network's own task.
    """

    anchor: Params
    inner: ModelState


def anchor(
    network: Network, mask: Mask, action: Action, trained: Params | None = None
) -> Network:
    """What a sub-network starts from as a network of an anchored task.

    Args:
      network: at initialisation, of the network's own task.
      mask: which weights survive; leaves as those of the weights. All of it may be stacks.
      action: what becomes of the others.
      trained: the weights at the end of training, for the actions that ask where they went.

    Returns:
      The weights that survive, 0 off the mask, and an `Anchored` model state.

    Raises:
      ValueError: an unknown action, one that needs `trained`, trees that do not fit.
    """
    is_a("network", network, Network, "a lottery_jax.Network(params, model_state)")
    one_of("action", action, ACTIONS)
    initial, state = network
    masks.check(mask, initial)
    start = frozen = initial
    if action == "zero":
        frozen = jax.tree.map(jnp.zeros_like, initial)
    elif action != "freeze":
        if trained is None:
            raise ValueError(
                f"trained=None; it must be the weights at the end of training: "
                f"action={action!r} asks whether they moved towards 0"
            )
        frozen = masks.apply(grown(trained, initial), initial)
        start = frozen if action == "freeze_grown_all" else initial
    off = jax.tree.map(jnp.logical_not, mask)
    anchored_ = Anchored(masks.apply(off, frozen), state)
    return Network(masks.apply(mask, start), anchored_)


def grown(trained: Params, initial: Params) -> Mask:
    """Which weights training did not move towards 0: |w_final| >= |w_init|.

    Args:
      trained: the weights at the end of training.
      initial: those at the start, of the same shapes.

    Raises:
      ValueError: trees that do not fit.
    """
    trees.same(trained, initial, ("trained", "initial"))
    return jax.tree.map(lambda f, i: jnp.abs(f) >= jnp.abs(i), trained, initial)


def effective(params: Params, model_state: Anchored) -> Params:
    """The weights that the network is applied with: params + anchor.

    Raises:
      ValueError: an anchor that does not fit; names the leaf.
    """
    is_a("model_state", model_state, Anchored, "a tasks.Anchored(anchor, inner)")
    trees.same(model_state.anchor, params, ("anchor", "params"))
    return jax.tree.map(jnp.add, params, model_state.anchor)


@dataclasses.dataclass(frozen=True)
class _Anchoring:
    """The static part of the task; its methods are the Task's functions."""

    inner: Task

    def init(self, key: Key) -> tuple[Params, Anchored, StreamState]:
        params, state, stream = self.inner.init(key)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return params, Anchored(zeros, state), stream

    def loss(
        self,
        params: Params,
        model_state: Anchored,
        stream_state: StreamState,
        batch: Batch,
        key: Key,
    ) -> tuple[Array, tuple[Anchored, StreamState, Metrics]]:
        value, (inner, stream_state, metrics) = self.inner.loss(
            effective(params, model_state), model_state.inner, stream_state, batch, key
        )
        return value, (model_state._replace(inner=inner), stream_state, metrics)

    def evaluate(
        self,
        params: Params,
        model_state: Anchored,
        data: PyTree,
        key: Key,
        split: str,
    ) -> Metrics:
        weights = effective(params, model_state)
        return self.inner.evaluate(weights, model_state.inner, data, key, split)

    def statistics(self, params: Params, model_state: Anchored, batch: Batch) -> PyTree:
        assert self.inner.statistics is not None
        weights = effective(params, model_state)
        moments = self.inner.statistics(weights, model_state.inner, batch)
        # They are all that `pool` knows of the network, whose anchor must come back.
        return Anchored(model_state.anchor, moments)

    def pool(self, moments: Anchored) -> Anchored:
        assert self.inner.pool is not None
        first = jax.tree.map(lambda x: x[0], moments.anchor)
        return Anchored(first, self.inner.pool(moments.inner))

    def predict(
        self,
        params: Params,
        model_state: Anchored,
        data: PyTree,
        key: Key,
        split: str,
    ) -> Array:
        assert self.inner.predict is not None
        weights = effective(params, model_state)
        return self.inner.predict(weights, model_state.inner, data, key, split)

    def outputs(self, params: Params, model_state: Anchored, batch: Batch) -> Array:
        assert self.inner.outputs is not None
        weights = effective(params, model_state)
        return self.inner.outputs(weights, model_state.inner, batch)

    def narrow(self, key: Key, count: int) -> tuple[Network, Mask]:
        assert self.inner.narrow is not None
        network, mask = self.inner.narrow(key, count)
        return anchor(network, mask, "zero"), mask


def anchored(task: Task) -> Task:
    """The same task for networks whose pruned weights are frozen at an anchor.

    Its model state is `Anchored`; `init` draws an anchor of 0, under which it is the task
    itself. For another anchor start from `anchor`.

    Args:
      task: what the networks are trained for.

    Raises:
      ValueError: no task.
    """
    is_a("task", task, Task, "a lottery_jax.Task, as tasks.classification(...) makes")
    static = _Anchoring(task.functions)
    return task._replace(
        init=static.init,
        loss=static.loss,
        evaluate=static.evaluate,
        statistics=static.statistics if task.statistics else None,
        pool=static.pool if task.pool else None,
        predict=static.predict if task.predict else None,
        outputs=static.outputs if task.outputs else None,
        narrow=static.narrow if task.narrow else None,
    )
