"""Networks that are found, not trained: what is trained are masks of frozen weights.

Each prunable weight w has a score s; the network that is applied has the weights w m(s).

    bernoulli     m is drawn, 1 with probability sigmoid(s); straight through, the gradient
                  is that of m = sigmoid(s)
    edge_popup    m = 1 for the share of each layer with the highest |s|; straight through,
                  the gradient is that of m = |s|

Both come in two forms. Around any `apply(params, ...)`, for a loop of one's own:

    method = lj.supermask.edge_popup(density=0.5)
    apply = method.wrap(model_apply)
    scores = method.init(key, weights)
    logits = apply(scores, weights, images)  # differentiable in the scores

and as a `Task` whose params are scores, for everything that trains tasks:

    task = lj.supermask.task(task, method, law="signed_kaiming_constant")
    done = lj.train(task, optax.sgd(0.1, momentum=0.9), steps=3000, replicas=3)

The frozen weights, and how many of each layer are kept, are the model state: runs of several
laws and densities train side by side, in one program.

References:
  Zhou, Lan, Liu and Yosinski, Deconstructing Lottery Tickets: Zeros, Signs, and the
    Supermask, 2019, section 5; https://arxiv.org/abs/1905.01067
  Ramanujan, Wortsman, Kembhavi, Farhadi and Rastegari, What's Hidden in a Randomly Weighted
    Neural Network?, 2020, section 3; https://arxiv.org/abs/1911.13299
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import errors, masks, naming, prune, selection, trees
from lottery_jax.keys import settled
from lottery_jax.masks import PrunableLike
from lottery_jax.types import (
    Array,
    Batch,
    Key,
    Mask,
    Metrics,
    ModelState,
    Params,
    Prunable,
    PyTree,
    Scores,
    StreamState,
    Task,
)


class Method(Protocol):
    """A way from scores to the weights of the network that is applied; see `bernoulli`."""

    @property
    def samples(self) -> int:
        """Masks that an evaluation takes the mean over; 0 where nothing is drawn."""
        ...

    def counts(self, weights: Params) -> tuple[int, ...]:
        """How many weights each prunable leaf keeps; empty where scores decide."""
        ...

    def init(self, key: Key, weights: Params) -> Scores:
        """Scores to begin with; structure and shapes of the weights, float32."""
        ...

    def params(
        self, scores: Scores, weights: Params, keep: Array, key: Key | None = None
    ) -> Params:
        """The weights of the network that is applied: differentiable in the scores."""
        ...


# --- Bernoulli ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Bernoulli:
    """Masks that are drawn anew at each step; made by `bernoulli`.

    Attributes:
      rescale: whether kernels are multiplied by size / survivors of the mask drawn.
      samples: masks that an evaluation takes the mean over; 0 for one by threshold.
      prunable: which leaves have masks.
    """

    rescale: bool = False
    samples: int = 10
    prunable: PrunableLike = None

    def counts(self, weights: Params) -> tuple[int, ...]:
        """None: scores decide."""
        return ()

    def init(self, key: Key, weights: Params) -> Scores:
        """Scores of 0: probabilities of one half."""
        return jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights)

    @settled
    def params(
        self, scores: Scores, weights: Params, keep: Any = (), key: Key | None = None
    ) -> Params:
        """The weights under a mask that is drawn, or without a key by threshold.

        Args:
          scores: structure and shapes of the weights.
          weights: frozen.
          keep: unused.
          key: of the draw; None keeps weights whose probability is above one half.
        """
        flags = masks.resolve(weights, self.prunable)
        leaves, structure = jax.tree.flatten(weights)
        out = []
        for i, (w, s, take) in enumerate(zip(leaves, jax.tree.leaves(scores), flags)):
            if take:
                probability = jax.nn.sigmoid(s)
                if key is None:
                    hard = probability > 0.5
                else:
                    own = jax.random.fold_in(key, i)
                    hard = jax.random.uniform(own, s.shape, jnp.float32) < probability
                m = hard.astype(jnp.float32)
                m = jax.lax.stop_gradient(m - probability) + probability
                w = w * m
                if self.rescale:
                    alive = jnp.sum(hard, dtype=jnp.float32)
                    w = w * (w.size / jnp.maximum(alive, 1))
            out.append(w)
        return jax.tree.unflatten(structure, out)

    def mask(self, scores: Scores) -> Mask:
        """The weights whose probability is above one half."""
        flags = masks.resolve(scores, self.prunable)
        leaves, structure = jax.tree.flatten(scores)
        kept = [s > 0 if f else jnp.ones(s.shape, bool) for s, f in zip(leaves, flags)]
        return jax.tree.unflatten(structure, kept)

    def wrap(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        """`apply(params, ...)` as `wrapped(scores, weights, ..., mask_key=None)`."""
        return _wrapped(self, apply)


def bernoulli(
    *,
    rescale: bool = False,
    samples: int = 10,
    prunable: PrunableLike = None,
) -> Bernoulli:
    """Masks that are drawn, each weight with a trained probability (Zhou et al., 5).

    Args:
      rescale: dynamic weight rescaling: kernels are multiplied by size / survivors of the
        mask that was drawn.
      samples: masks that an evaluation takes the mean over; 0 keeps the weights whose
        probability is above one half instead.
      prunable: which leaves have masks; None for those of `masks.prunable`.

    Raises:
      ValueError: samples below 0.
    """
    errors.flag("rescale", rescale)
    return Bernoulli(rescale, errors.whole("samples", samples, 0), prunable)


# --- edge-popup -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class EdgePopup:
    """The weights of highest |score| in each layer; made by `edge_popup`.

    Attributes:
      density: share of each layer that is kept.
      prunable: which leaves have masks.
    """

    density: float
    prunable: PrunableLike = None
    samples = 0

    def counts(self, weights: Params) -> tuple[int, ...]:
        """`round(density * size)` of each prunable leaf, half to even."""
        share = masks.exact(self.density)
        flags = masks.resolve(weights, self.prunable)
        return tuple(
            masks.exact_round(share * math.prod(w.shape))
            for w, take in zip(jax.tree.leaves(weights), flags)
            if take
        )

    @settled
    def init(self, key: Key, weights: Params) -> Scores:
        """U(-1, 1) / sqrt(fan in): Kaiming uniform with a = sqrt(5), of the authors' code."""
        leaves, structure = jax.tree.flatten(weights)
        fans = _fans(weights, self.prunable)
        out = []
        for i, (w, fan) in enumerate(zip(leaves, fans)):
            if fan is None:
                out.append(jnp.zeros(w.shape, jnp.float32))
                continue
            draw = jax.random.uniform(
                jax.random.fold_in(key, i), w.shape, jnp.float32, -1.0, 1.0
            )
            out.append(draw / math.sqrt(fan))
        return jax.tree.unflatten(structure, out)

    def params(
        self, scores: Scores, weights: Params, keep: Any = None, key: Key | None = None
    ) -> Params:
        """The weights of highest |score|.

        Args:
          scores: structure and shapes of the weights.
          weights: frozen.
          keep: how many of each prunable leaf, int32; None for the method's density.
          key: unused.
        """
        keep = self.counts(weights) if keep is None else keep
        flags = masks.resolve(weights, self.prunable)
        leaves, structure = jax.tree.flatten(weights)
        out, position = [], 0
        for w, s, take in zip(leaves, jax.tree.leaves(scores), flags):
            if take:
                w = _popped(s, w, jnp.asarray(keep[position], jnp.int32))
                position += 1
            out.append(w)
        return jax.tree.unflatten(structure, out)

    def mask(self, scores: Scores, keep: Any = None) -> Mask:
        """The weights of highest |score|."""
        keep = self.counts(scores) if keep is None else keep
        size = jax.tree.map(jnp.abs, scores)
        full = masks.ones_like(scores)
        return prune.layerwise_topk(size, full, keep=keep, prunable=self.prunable)

    def wrap(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        """`apply(params, ...)` as `wrapped(scores, weights, ..., mask_key=None)`."""
        return _wrapped(self, apply)


def edge_popup(density: float, *, prunable: PrunableLike = None) -> EdgePopup:
    """The share of each layer with the highest |score| (Ramanujan et al. 2020, section 3).

    Args:
      density: share of each layer that is kept, in (0, 1).
      prunable: which leaves have masks; None for those of `masks.prunable`.

    Raises:
      ValueError: density outside (0, 1).
    """
    errors.share("density", density)
    return EdgePopup(float(density), prunable)


@jax.custom_vjp
def _popped(scores: Array, weights: Array, keep: Array) -> Array:
    """The `keep` weights of highest |score|, the others 0."""
    return jnp.where(_highest(scores, keep), weights, jnp.zeros_like(weights))


def _highest(scores: Array, keep: Array) -> Array:
    return selection.keep_highest(jnp.abs(scores), keep)


def _popped_forward(scores: Array, weights: Array, keep: Array) -> tuple[Array, Any]:
    return _popped(scores, weights, keep), (scores, weights, keep)


def _popped_backward(seen: Any, gradient: Array) -> tuple[Array, Array, None]:
    scores, weights, keep = seen
    kept = _highest(scores, keep)
    through = gradient * weights * jnp.sign(scores)
    return through, jnp.where(kept, gradient, jnp.zeros_like(gradient)), None


_popped.defvjp(_popped_forward, _popped_backward)


def _wrapped(method: Any, apply: Callable[..., Any]) -> Callable[..., Any]:
    """A function of scores and weights instead of params."""

    def wrapped(
        scores: Scores,
        weights: Params,
        *args: Any,
        mask_key: Key | None = None,
        **kwargs: Any,
    ) -> Any:
        trees.same(weights, scores, ("weights", "scores"))
        params = method.params(scores, weights, key=mask_key)
        return apply(params, *args, **kwargs)

    return wrapped


# --- laws of the frozen weights -------------------------------------------------------

Law = Callable[[Key, Array, int, int], Array]
"""`(key, drawn, fan in, fan out) -> weights` of a prunable leaf, from its own draw."""


def _kaiming_normal(key: Key, drawn: Array, fan_in: int, fan_out: int) -> Array:
    draw = jax.random.normal(key, drawn.shape, jnp.float32)
    return draw * math.sqrt(2 / fan_in)


def _signed_kaiming_constant(
    key: Key, drawn: Array, fan_in: int, fan_out: int
) -> Array:
    return jax.random.rademacher(key, drawn.shape, jnp.float32) * math.sqrt(2 / fan_in)


def _xavier_normal(key: Key, drawn: Array, fan_in: int, fan_out: int) -> Array:
    draw = jax.random.normal(key, drawn.shape, jnp.float32)
    return draw * math.sqrt(2 / (fan_in + fan_out))


def _signed_constant(key: Key, drawn: Array, fan_in: int, fan_out: int) -> Array:
    return jnp.sign(drawn) * jnp.std(drawn)


LAWS: Mapping[str, Law] = {
    "kaiming_normal": _kaiming_normal,
    "signed_kaiming_constant": _signed_kaiming_constant,
    "xavier_normal": _xavier_normal,
    "signed_constant": _signed_constant,
}
"""Laws of frozen weights by name.

"signed_constant" is Zhou et al.'s: the sign of the task's own draw, times the standard
deviation of the layer. The others are Ramanujan et al.'s (section 4), of variance
2 / fan in, and 2 / (fan in + fan out) for Xavier.
"""


def _fans(tree: PyTree, prunable: PrunableLike) -> list[int | None]:
    """The fan in of each prunable leaf; None for the others."""
    shapes = {name: leaf.shape for name, leaf in trees.by_path(tree).items()}
    found: list[int | None] = []
    for (name, shape), take in zip(shapes.items(), masks.resolve(tree, prunable)):
        axes = naming.input_axes(name, shapes) if take else None
        if take and axes is None:
            axes = tuple(range(len(shape) - 1))
        found.append(math.prod(shape[a] for a in axes) if axes is not None else None)
    return found


# --- as a task ------------------------------------------------------------------------


class Frozen(NamedTuple):
    """What a network of masked random weights has besides its scores.

    Attributes:
      weights: frozen; those of leaves without a mask included.
      keep: how many weights each prunable leaf keeps, int32 `[leaves]`; `[0]` where scores
        decide.
      inner: the model state of the network's own task.
    """

    weights: Params
    keep: Array
    inner: ModelState


@dataclasses.dataclass(frozen=True)
class _Supermask:
    """The static part of the task; its methods are the Task's functions."""

    inner: Task
    method: Any
    law: str | None
    scaled: bool

    @settled
    def init(self, key: Key) -> tuple[Scores, Frozen, StreamState]:
        # Weights without a law are those that the task itself draws from this key.
        of_law, of_scores = (jax.random.fold_in(key, i) for i in (1, 2))
        weights, state, stream = self.inner.init(key)
        counts = self.method.counts(weights)
        weights = self._drawn(of_law, weights, counts)
        keep = jnp.asarray(np.array(counts, np.int32))
        scores = self.method.init(of_scores, weights)
        return scores, Frozen(weights, keep, state), stream

    def _drawn(self, key: Key, weights: Params, counts: tuple[int, ...]) -> Params:
        leaves, structure = jax.tree.flatten(weights)
        out, position = [], 0
        fans = _fans(weights, self.method.prunable)
        for i, (w, fan) in enumerate(zip(leaves, fans)):
            if fan is not None:
                if self.law is not None:
                    own = jax.random.fold_in(key, i)
                    fan_out = w.size // fan
                    w = LAWS[self.law](own, w, fan, fan_out).astype(w.dtype)
                if self.scaled:
                    w = w * math.sqrt(w.size / counts[position])
                position += 1
            out.append(w)
        return jax.tree.unflatten(structure, out)

    def _params(self, scores: Scores, frozen: Frozen, key: Key | None = None) -> Params:
        return self.method.params(scores, frozen.weights, frozen.keep, key)

    @settled
    def loss(
        self,
        params: Scores,
        model_state: Frozen,
        stream_state: StreamState,
        batch: Batch,
        key: Key,
    ) -> tuple[Array, tuple[Frozen, StreamState, Metrics]]:
        draw, inner_key = jax.random.split(key)
        weights = self._params(params, model_state, draw)
        value, (inner, stream_state, metrics) = self.inner.loss(
            weights, model_state.inner, stream_state, batch, inner_key
        )
        return value, (model_state._replace(inner=inner), stream_state, metrics)

    @settled
    def evaluate(
        self,
        params: Scores,
        model_state: Frozen,
        data: PyTree,
        key: Key,
        split: str,
    ) -> Metrics:
        def one(draw: Key | None) -> Metrics:
            weights = self._params(params, model_state, draw)
            return self.inner.evaluate(weights, model_state.inner, data, key, split)

        if not self.method.samples:
            return one(None)
        found = jax.lax.map(one, jax.random.split(key, self.method.samples))
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), found)

    def outputs(self, params: Scores, model_state: Frozen, batch: Batch) -> Array:
        assert self.inner.outputs is not None
        weights = self._params(params, model_state)
        return self.inner.outputs(weights, model_state.inner, batch)

    def prunable(self, params: Scores) -> Prunable:
        """The scores of what the network's own task prunes."""
        return (self.inner.prunable or masks.prunable)(params)


def task(
    task: Task,
    method: Bernoulli | EdgePopup,
    *,
    law: Literal[
        "kaiming_normal", "signed_kaiming_constant", "xavier_normal", "signed_constant"
    ]
    | None = None,
    scaled: bool = False,
) -> Task:
    """The task of finding a mask under which frozen random weights do another task.

    Its params are scores, its model state is `Frozen`. Leaves without a mask are frozen at
    what the task draws: biases at 0, scales of norms at 1, as if they had none.

    Args:
      task: what the network is for.
      method: from `bernoulli` or `edge_popup`.
      law: of the frozen weights, of `LAWS`; None for the task's own.
      scaled: divide the frozen weights by the root of the density of their layer, so that
        activations keep their size at every density; `edge_popup` only.

    Raises:
      ValueError: no task, an unknown method or law, scaled without a density.
    """
    must = "a lottery_jax.Task, as tasks.classification(...) makes"
    errors.is_a("task", task, Task, must)
    must = "what supermask.bernoulli(...) or supermask.edge_popup(...) makes"
    errors.is_a("method", method, (Bernoulli, EdgePopup), must)
    if law is not None:
        errors.one_of("law", law, LAWS)
    errors.flag("scaled", scaled)
    if method.prunable is None and task.prunable is not None:
        method = dataclasses.replace(method, prunable=task.prunable)
    static = _Supermask(task.functions, method, law, scaled)
    return Task(
        data=task.data,
        init=static.init,
        order=task.order,
        batch=task.batch,
        loss=static.loss,
        evaluate=static.evaluate,
        steps_per_epoch=task.steps_per_epoch,
        outputs=static.outputs if task.outputs else None,
        prunable=static.prunable,
        validates=task.validates,
    )
