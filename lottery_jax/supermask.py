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

Scores have the structure of the weights. Those of leaves without a mask (biases, norms)
are there, get no gradient and mean nothing.

The frozen weights, and how many of each layer are kept, are the model state, which differs
from run to run. So several densities and laws are one batch of runs and one program:

    tasks = [
        lj.supermask.task(task, lj.supermask.edge_popup(density), law=law)
        for density in (0.3, 0.5, 0.7) for law in ("kaiming_normal", "xavier_normal")
    ]
    runs = [training.fresh(own, tx, keys.init, keys.noise) for own in tasks]
    done = training.train(tasks[0], tx, training.concatenate(runs), 3000)

References:
  Zhou, Lan, Liu and Yosinski, Deconstructing Lottery Tickets: Zeros, Signs, and the
    Supermask, 2019, section 5; https://arxiv.org/abs/1905.01067
  Ramanujan, Wortsman, Kembhavi, Farhadi and Rastegari, What's Hidden in a Randomly Weighted
    Neural Network?, 2020, section 3; https://arxiv.org/abs/1911.13299
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32

from lottery_jax import errors, masks, naming, selection, trees
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

Inputs: TypeAlias = Mapping[str, int | Sequence[int]]
"""By patterns of key paths: the axes of a weight matrix over which one output sums."""

_Axes = tuple[tuple[str, tuple[int, ...]], ...]
_Fans = tuple[int, int] | None
_Flags = tuple[bool, ...]


# --- Bernoulli ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Bernoulli:
    """Masks that are drawn anew at each step; made by `bernoulli`.

    Attributes:
      rescale: whether kernels are multiplied by size / survivors of the mask drawn.
      samples: masks that an evaluation takes the mean over; 0 for one by threshold.
      prunable: which leaves have masks.
      inputs: axes of inputs, by pattern.
    """

    rescale: bool = False
    samples: int = 10
    prunable: PrunableLike = None
    inputs: _Axes = ()

    def init(self, key: Key, weights: Params) -> Scores:
        """Scores of 0: probabilities of one half.

        Args:
          key: unused; nothing is drawn.
          weights: arrays or shapes.

        Returns:
          Structure and shapes of the weights, float32.
        """
        _flags(weights, self.prunable)
        return _zeros(weights)

    def params(
        self, scores: Scores, weights: Params, keep: Any = None, key: Key | None = None
    ) -> Params:
        """The weights under a mask that is drawn, or without a key by threshold.

        Args:
          scores: structure and shapes of the weights, real.
          weights: frozen; where there is a mask, floating-point of any precision.
          keep: unused: scores decide how many weights are kept.
          key: of the draw; None keeps the weights whose probability is above one half.

        Returns:
          Weights: differentiable in the scores and, on the mask, in the weights.

        Raises:
          ValueError: scores that do not fit, integers with a mask; names the leaf.
        """
        flags = _flags(weights, self.prunable)
        _check_scores(scores, weights)
        return _Drawn(self.rescale)(scores, weights, flags, keep, key)

    def probabilities(self, scores: Scores) -> PyTree:
        """With which probability each weight is kept, float32; 1 without a mask."""
        flags = _flags(scores, self.prunable, "scores")
        return _by_leaf(flags, jax.nn.sigmoid, jnp.ones_like, scores)

    def mask(self, scores: Scores, keep: Any = None) -> Mask:
        """The weights whose probability is above one half.

        Nothing keeps such a mask from missing a whole layer, as it does for scores of 0:
        `masks.layer_densities(method.mask(scores))` tells.

        Args:
          scores: of one network.
          keep: unused: scores decide how many weights are kept.
        """
        flags = _flags(scores, self.prunable, "scores")
        return _by_leaf(flags, _likely, _all, scores)

    def wrap(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        """An `apply(params, ...)` as a function of scores and weights.

        Args:
          apply: of any library; its first argument is a pytree of weights.

        Returns:
          `wrapped(scores, weights, ..., mask_key=None)`, which draws a mask by `mask_key`,
          a key of its own for each step. Without one the mask is that of `mask`.

        Example:
          >>> import optax
          >>> from lottery_jax import supermask
          >>> method = supermask.bernoulli(rescale=True)
          >>> apply = method.wrap(lambda params, x: x @ params["kernel"])
          >>> weights = {"kernel": jax.random.normal(jax.random.key(0), (4, 1))}
          >>> x, y = jnp.eye(4), jnp.ones((4, 1))
          >>> def loss(scores, key):
          ...     return jnp.mean((apply(scores, weights, x, mask_key=key) - y) ** 2)
          >>> scores, tx = method.init(jax.random.key(1), weights), optax.adam(0.1)
          >>> state = tx.init(scores)
          >>> for step in range(3):
          ...     gradients = jax.grad(loss)(scores, jax.random.key(step))
          ...     updates, state = tx.update(gradients, state)
          ...     scores = optax.apply_updates(scores, updates)
          >>> apply(scores, weights, x).shape
          (4, 1)
        """
        return _wrapped(self, apply)


def bernoulli(
    *,
    rescale: bool = False,
    samples: int = 10,
    prunable: PrunableLike = None,
    inputs: Inputs | None = None,
) -> Bernoulli:
    """Masks that are drawn, each weight with a trained probability (Zhou et al., 5.1).

    A weight is kept with probability sigmoid(s), rounded up to a multiple of 2^-24: from
    one half on every float32 is one, 0 stays impossible, 1 certain. It is compared with
    24 bits, of which eight are its own and sixteen are drawn for 256 weights together.
    So each probability is what it says, and weights of one layer are as good as
    independent: the covariance of two is 2^-18 at most, and 0 but for those 256.

    Args:
      rescale: dynamic weight rescaling: kernels are multiplied by size / survivors of the
        mask that was drawn (of which one at least is counted). The factor belongs to the
        weights and is a constant in the gradient: the paper (section 5.2) multiplies "the
        underlying weights" and speaks of no derivative.
      samples: masks that an evaluation takes the mean over, the same draws in each; 0
        keeps the weights whose probability is above one half instead.
      prunable: which leaves have masks; None for those of `masks.prunable`.
      inputs: for laws of weights, where names do not say what a layer's inputs are.

    Raises:
      ValueError: samples below 0; a flag that is none; inputs that are no axes.
    """
    errors.flag("rescale", rescale)
    samples = errors.whole("samples", samples, 0)
    return Bernoulli(bool(rescale), samples, prunable, _axes(inputs))


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """From scores to weights by a draw, or by threshold."""

    rescale: bool

    @settled
    def __call__(
        self, scores: Scores, weights: Params, flags: _Flags, keep: Any, key: Key | None
    ) -> Params:
        leaves, structure = jax.tree.flatten(weights)
        out = []
        for i, (w, s, take) in enumerate(zip(leaves, jax.tree.leaves(scores), flags)):
            if take:
                probability = jax.nn.sigmoid(s.astype(jnp.float32))
                if key is None:
                    kept = _likely(s)
                else:
                    kept = _coins(jax.random.fold_in(key, i), probability)
                if self.rescale:
                    w = w * (w.size / jnp.maximum(_number(kept), 1)).astype(w.dtype)
                w = _through(kept, probability, w)
            out.append(w)
        return jax.tree.unflatten(structure, out)


def _likely(scores: Array) -> Array:
    return scores > 0


def _number(kept: Array) -> Array:
    """How many are True, float32 `[]`; exact, but rounded above 2^24."""
    # As products with ones, exact in rows: XLA counts slowly on CPU.
    rows = kept.reshape(-1, kept.shape[-1]).astype(jnp.float32)
    ones = jnp.ones(rows.shape[-1], jnp.float32)
    counts = jnp.dot(rows, ones, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(counts.astype(jnp.int32)).astype(jnp.float32)


_TOGETHER = 256
"""Weights whose probabilities are compared with the same sixteen of their 24 bits."""


def _coins(key: Key, probability: Array) -> Array:
    """True with the probabilities given: a draw of 24 bits each is below them."""
    size = probability.size
    groups = -(-size // _TOGETHER)
    # Words by the hash itself, two from each call; `jax.random.bits` throws half away.
    pair = jax.random.bits(key, (2,), jnp.uint32)
    number = groups * (_TOGETHER // 4 + 1)
    words = threefry_2x32(pair, jax.lax.iota(jnp.uint32, number))
    shared = (words[:groups, None] >> 16).astype(jnp.float32) / 2**16
    own = jax.lax.bitcast_convert_type(words[groups:], jnp.uint8)
    drawn = own.reshape(groups, _TOGETHER).astype(jnp.float32) + shared
    drawn = drawn.reshape(-1)[:size].reshape(probability.shape)
    return drawn < probability * 256


# --- edge-popup -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class EdgePopup:
    """The weights of highest |score| in each layer; made by `edge_popup`.

    Attributes:
      density: share of each layer that is kept.
      prunable: which leaves have masks.
      inputs: axes of inputs, by pattern.
    """

    density: float
    prunable: PrunableLike = None
    inputs: _Axes = ()
    samples = 0

    def counts(self, weights: Params) -> tuple[int, ...]:
        """How many weights each leaf with a mask keeps, in tree order.

        Args:
          weights: arrays or shapes.

        Raises:
          ValueError: a layer would keep none.
        """
        return _counts(weights, self.density, _flags(weights, self.prunable))

    def init(self, key: Key, weights: Params) -> Scores:
        """U(-1, 1) / sqrt(fan in): Kaiming uniform with a = sqrt(5), as published.

        Args:
          key: draws the scores.
          weights: arrays or shapes.

        Returns:
          Structure and shapes of the weights, float32; 0 without a mask.

        Raises:
          ValueError: a layer whose fan is not known, or that would keep no weight.
        """
        flags = _flags(weights, self.prunable)
        _counts(weights, self.density, flags)
        return _uniform(key, weights, flags, _fans(weights, flags, self.inputs))

    def params(
        self, scores: Scores, weights: Params, keep: Any = None, key: Key | None = None
    ) -> Params:
        """The weights of highest |score|, the others 0.

        Args:
          scores: structure and shapes of the weights, real.
          weights: frozen; where there is a mask, floating-point of any precision.
          keep: how many each leaf with a mask keeps, int32 `[leaves]`, may be traced; None
            for the method's density.
          key: unused; nothing is drawn.

        Returns:
          Weights: differentiable in the scores and, on the mask, in the weights.

        Raises:
          ValueError: scores that do not fit, integers with a mask; names the leaf. Not as
            many numbers as leaves.
        """
        flags = _flags(weights, self.prunable)
        _check_scores(scores, weights)
        keep = self._keep(weights, flags, keep)
        return _Highest()(scores, weights, flags, keep, key)

    def mask(self, scores: Scores, keep: Any = None) -> Mask:
        """The weights of highest |score|.

        Args:
          scores: of one network.
          keep: as in `Frozen`, of another density; None for the method's own.
        """
        flags = _flags(scores, self.prunable, "scores")
        numbers = iter(self._keep(scores, flags, keep))
        return _by_leaf(
            flags,
            lambda s: selection.keep_highest(jnp.abs(s), next(numbers)),
            _all,
            scores,
        )

    def _keep(self, tree: PyTree, flags: _Flags, keep: Any) -> Any:
        if keep is None:
            return _counts(tree, self.density, flags)
        if len(keep) != sum(flags):
            must = f"numbers of weights for {sum(flags)} leaves with a mask"
            raise errors.wrong("keep", errors.shown(keep), must)
        return keep

    def wrap(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        """An `apply(params, ...)` as a function of scores and weights.

        Args:
          apply: of any library; its first argument is a pytree of weights.

        Returns:
          `wrapped(scores, weights, ..., mask_key=None)`; there is nothing to draw.

        Example:
          >>> from lottery_jax import supermask
          >>> method = supermask.edge_popup(0.5)
          >>> apply = method.wrap(lambda params, x: x @ params["kernel"])
          >>> weights = {"kernel": jnp.array([[1.0], [2.0], [3.0], [4.0]])}
          >>> scores = {"kernel": jnp.array([[0.1], [-0.9], [0.5], [-0.2]])}
          >>> apply(scores, weights, jnp.eye(4)).ravel().tolist()
          [0.0, 2.0, 3.0, 0.0]
          >>> total = lambda scores: apply(scores, weights, jnp.eye(4)).sum()
          >>> jax.grad(total)(scores)["kernel"].ravel().tolist()
          [1.0, -2.0, 3.0, -4.0]
        """
        return _wrapped(self, apply)


def edge_popup(
    density: float, *, prunable: PrunableLike = None, inputs: Inputs | None = None
) -> EdgePopup:
    """The share of each layer with the highest |score| (Ramanujan et al. 2020, section 3).

    Each layer keeps `round(density * size)` weights, half to even. Of equal |scores| the
    one that comes first is left out first, as everywhere in `prune`.

    Args:
      density: share of each layer that is kept, in (0, 1).
      prunable: which leaves have masks; None for those of `masks.prunable`.
      inputs: where names do not say what a layer's inputs are, by which scores and weights
        are scaled: `{"hidden$": 0}` or `{"conv": (0, 1, 2)}`, windows included.

    Raises:
      ValueError: density outside (0, 1); inputs that are no axes.
    """
    errors.share("density", density)
    return EdgePopup(float(density), prunable, _axes(inputs))


@dataclasses.dataclass(frozen=True)
class _Highest:
    """From scores to the weights of highest |score|."""

    def __call__(
        self, scores: Scores, weights: Params, flags: _Flags, keep: Any, key: Key | None
    ) -> Params:
        leaves, structure = jax.tree.flatten(weights)
        out, position = [], 0
        for w, s, take in zip(leaves, jax.tree.leaves(scores), flags):
            if take:
                size = jnp.abs(s)
                kept = selection.keep_highest(size, keep[position])
                w = _through(kept, size, w)
                position += 1
            out.append(w)
        return jax.tree.unflatten(structure, out)


def _counts(tree: PyTree, density: float, flags: _Flags) -> tuple[int, ...]:
    """`round(density * size)` of each leaf with a mask, half to even."""
    share = masks.exact(density)
    sizes = [math.prod(x.shape) for x in jax.tree.leaves(tree)]
    found = [masks.exact_round(share * n) for n, take in zip(sizes, flags) if take]
    if not all(found):
        names = [name for name, take in zip(trees.paths(tree), flags) if take]
        least, name = min(zip((n for n, f in zip(sizes, flags) if f), names))
        raise errors.wrong(
            "density",
            density,
            f"above {0.5 / least:.4g}, for layer {name!r} of {least} weights to keep one",
        )
    return tuple(found)


def _uniform(
    key: Key, weights: Params, flags: _Flags, fans: tuple[_Fans, ...]
) -> Scores:
    chosen = [fan for fan, take in zip(fans, flags) if take]
    bounds = [1 / math.sqrt(fan[0]) for fan in chosen if fan is not None]
    leaves, structure = jax.tree.flatten(_zeros(weights))
    sizes = [x.size for x, take in zip(leaves, flags) if take]
    with jax.threefry_partitionable(True):
        draw = jax.random.uniform(key, (sum(sizes),), jnp.float32, -1.0, 1.0)
    made = masks.scatter(leaves, list(flags), draw)
    scaled = iter(bounds)
    made = [x * next(scaled) if take else x for x, take in zip(made, flags)]
    return jax.tree.unflatten(structure, made)


# --- both -----------------------------------------------------------------------------


@jax.custom_jvp
def _through(kept: Array, measure: Array, weights: Array) -> Array:
    """The weights under a mask; straight through it, the mask's derivatives are `measure`'s.

    Exact, also for weights that are infinite off the mask. With a rule for tangents, not
    cotangents, it can be differentiated both ways, and again.
    """
    return jnp.where(kept, weights, jnp.zeros_like(weights))


@_through.defjvp
def _through_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    kept, measure, weights = primals
    _, moved, changed = tangents
    of_mask = weights.astype(moved.dtype) * moved
    of_weights = jnp.where(kept, changed, jnp.zeros_like(changed))
    return _through(kept, measure, weights), of_mask.astype(weights.dtype) + of_weights


def _wrapped(method: "Method", apply: Callable[..., Any]) -> Callable[..., Any]:
    must = "a function of params and whatever else"
    errors.is_a("apply", apply, Callable, must)  # type: ignore[arg-type]

    def wrapped(
        scores: Scores,
        weights: Params,
        *args: Any,
        mask_key: Key | None = None,
        **kwargs: Any,
    ) -> Any:
        params = method.params(scores, weights, key=mask_key)
        return apply(params, *args, **kwargs)

    return wrapped


def _zeros(tree: PyTree) -> Scores:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), tree)


def _all(scores: Array) -> Array:
    return jnp.ones(scores.shape, jnp.bool_)


def _by_leaf(
    flags: _Flags,
    of_masked: Callable[[Array], Array],
    of_others: Callable[[Array], Array],
    tree: PyTree,
) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    made = [of_masked(x) if f else of_others(x) for x, f in zip(leaves, flags)]
    return jax.tree.unflatten(structure, made)


def _flags(
    tree: PyTree,
    prunable: PrunableLike,
    field: str = "weights",
    exclude: Sequence[str] = (),
) -> _Flags:
    """Which leaves have masks, in tree order."""
    trees.check_arrays(tree, field)
    flags = masks.cuttable(tree, prunable, exclude)
    if not any(flags):
        raise ValueError(f"prunable: none of the leaves {trees.paths(tree)} has a mask")
    for i, (x, take) in enumerate(zip(jax.tree.leaves(tree), flags)):
        if take and not jnp.issubdtype(x.dtype, jnp.floating):
            name = f"{field}: dtype of leaf {trees.name_of(tree, i)!r}"
            raise errors.wrong(name, x.dtype, "floating-point where there is a mask")
    return tuple(flags)


def _check_scores(scores: Scores, weights: Params) -> None:
    trees.check_arrays(scores, "scores")
    trees.same(weights, scores, ("weights", "scores"))
    for i, s in enumerate(jax.tree.leaves(scores)):
        if not jnp.issubdtype(s.dtype, jnp.floating):
            name = f"scores: dtype of leaf {trees.name_of(scores, i)!r}"
            raise errors.wrong(name, s.dtype, "floating-point")


# --- fans -----------------------------------------------------------------------------


def _axes(inputs: Inputs | None) -> _Axes:
    """The axes of inputs by pattern, hashable."""
    if inputs is None:
        return ()
    errors.is_a("inputs", inputs, Mapping, "a mapping of patterns to axes")
    return tuple(
        (
            pattern,
            (errors.whole(f"inputs[{pattern!r}]", axes),)
            if np.ndim(axes) == 0
            else errors.wholes(f"inputs[{pattern!r}]", axes),
        )
        for pattern, axes in inputs.items()
    )


def _fans(tree: PyTree, flags: _Flags, inputs: _Axes) -> tuple[_Fans, ...]:
    """Fan in and fan out of the flagged leaves; None of the others.

    Raises:
      ValueError: neither a name nor `inputs` tells; says what to pass.
    """
    shapes = {name: tuple(x.shape) for name, x in trees.by_path(tree).items()}
    given: dict[str, tuple[int, ...]] = {}
    for pattern, axes in inputs:
        for name, hit in trees.by_path(trees.matching(tree, pattern)).items():
            if hit:
                given.setdefault(name, axes)
    found: list[_Fans] = []
    for (name, shape), take in zip(shapes.items(), flags):
        fan = None
        if take and name in given:
            axes = given[name]
            if not all(-len(shape) <= a < len(shape) for a in axes):
                must = f"axes of {name!r}, whose shape is {shape}"
                raise errors.wrong("inputs", axes, must)
            fan_in = math.prod(shape[a] for a in axes)
            fan = fan_in, math.prod(shape) // fan_in
        elif take:
            fan = naming.fans(name, shapes)
            if fan is None:
                own = trees.pattern(name, list(shapes))
                raise ValueError(
                    f"neither the name {name!r} nor its shape {shape} says over which axes "
                    "an output sums, by which weights and scores are scaled; pass them to "
                    f"the method: inputs={{{own!r}: ...}}"
                )
        found.append(fan)
    return tuple(found)


# --- laws of the frozen weights -------------------------------------------------------

Law: TypeAlias = Callable[[Key, list[Array], list[_Fans]], list[Array]]
"""`(key, drawn, fans) -> weights` of the layers, float32, from the task's own draws."""

Draw: TypeAlias = Callable[[Key, int], Array]
Variance: TypeAlias = Callable[[int, int], float]


def _by_fan(
    draw: Draw,
    variance: Variance,
    key: Key,
    drawn: list[Array],
    fans: list[_Fans],
) -> list[Array]:
    """One draw of unit variance for all layers, each scaled by its fans.

    One for each layer would take as many times as long to compile.
    """
    flat = draw(key, sum(w.size for w in drawn))
    made = masks.scatter(drawn, [True] * len(drawn), flat)
    return [w * math.sqrt(variance(*fan)) for w, fan in zip(made, fans) if fan]


def _signed_constant(key: Key, drawn: list[Array], fans: list[_Fans]) -> list[Array]:
    wide = [w.astype(jnp.float32) for w in drawn]
    return [jnp.sign(w) * jnp.std(w) for w in wide]


def _normal(key: Key, number: int) -> Array:
    return jax.random.normal(key, (number,), jnp.float32)


def _signs(key: Key, number: int) -> Array:
    return jax.random.rademacher(key, (number,), jnp.float32)


def _kaiming(fan_in: int, fan_out: int) -> float:
    return 2 / fan_in


def _xavier(fan_in: int, fan_out: int) -> float:
    return 2 / (fan_in + fan_out)


LAWS: Mapping[str, Law] = {
    "kaiming_normal": functools.partial(_by_fan, _normal, _kaiming),
    "signed_kaiming_constant": functools.partial(_by_fan, _signs, _kaiming),
    "xavier_normal": functools.partial(_by_fan, _normal, _xavier),
    "signed_constant": _signed_constant,
}
"""Laws of frozen weights by name.

"signed_constant" is Zhou et al.'s (section 5.2): the sign of the task's own draw, times the
standard deviation of that draw over the layer. The others are Ramanujan et al.'s (section
3): of variance 2 / fan in, and of 2 / (fan in + fan out) for Xavier. What a task draws as
zeros stays zero under "signed_constant", and without a law.
"""

_NEED_NO_FAN = ("signed_constant",)


# --- as a task ------------------------------------------------------------------------


class Frozen(NamedTuple):
    """What a network of masked random weights has besides its scores.

    The mask of a network is `method.mask(params, model_state.keep)`, with `bernoulli` also
    without the numbers.

    Attributes:
      weights: frozen; those of leaves without a mask included.
      keep: how many weights each leaf with a mask keeps, int32 `[leaves]`; `[0]` where
        scores decide.
      inner: the model state of the network's own task.
    """

    weights: Params
    keep: Array
    inner: ModelState


# Far from what the inner task may fold into the same key.
_ROLES = 0x5EED


@dataclasses.dataclass(frozen=True)
class _Draw:
    """What is drawn: all that laws and densities are for.

    Attributes:
      inner: the network's own task.
      law: of `LAWS`, or None.
      of_law: leaves that are drawn by it.
      fans: of these, where the law needs them, and of those with scores that are drawn.
      masked: leaves with a mask.
      keep: how many each of them keeps; empty where scores decide.
      scaled: whether weights make up for those that are not kept.
      uniform: whether scores are drawn.
    """

    inner: Task
    law: str | None
    of_law: _Flags
    fans: tuple[_Fans, ...]
    masked: _Flags
    keep: tuple[int, ...]
    scaled: bool
    uniform: bool

    @settled
    def init(self, key: Key) -> tuple[Scores, Frozen, StreamState]:
        # Weights without a law are those that the task itself draws from this key.
        weights, state, stream = self.inner.init(key)
        roles = jax.random.fold_in(key, _ROLES)
        of_law, of_scores = (jax.random.fold_in(roles, i) for i in range(2))
        weights = self._weights(of_law, weights)
        if self.uniform:
            scores = _uniform(of_scores, weights, self.masked, self.fans)
        else:
            scores = _zeros(weights)
        keep = jnp.asarray(np.array(self.keep, np.int32))
        return scores, Frozen(weights, keep, state), stream

    def _weights(self, key: Key, weights: Params) -> Params:
        leaves, structure = jax.tree.flatten(weights)
        if self.law is not None:
            drawn = [w for w, take in zip(leaves, self.of_law) if take]
            fans = [fan for fan, take in zip(self.fans, self.of_law) if take]
            made = iter(LAWS[self.law](key, drawn, fans))
            leaves = [
                next(made).astype(w.dtype) if take else w
                for w, take in zip(leaves, self.of_law)
            ]
        if self.scaled:
            keep = iter(self.keep)
            leaves = [
                w * math.sqrt(w.size / next(keep)) if take else w
                for w, take in zip(leaves, self.masked)
            ]
        return jax.tree.unflatten(structure, leaves)


@dataclasses.dataclass(frozen=True)
class _Supermask:
    """What is made of scores: the same for every law and density.

    Attributes:
      inner: the network's own task.
      rule: from scores to the weights that are applied.
      masked: leaves with a mask.
      counted: prunable leaves, those included that are never cut.
      samples: masks that an evaluation takes the mean over.
    """

    inner: Task
    rule: _Drawn | _Highest
    masked: _Flags
    counted: _Flags
    samples: int

    def _params(self, scores: Scores, frozen: Frozen, key: Key | None = None) -> Params:
        return self.rule(scores, frozen.weights, self.masked, frozen.keep, key)

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

        if not self.samples:
            return one(None)
        # Apart from what the inner evaluation draws; the same for all networks and steps.
        draws = jax.random.split(jax.random.fold_in(key, _ROLES), self.samples)
        found = jax.lax.map(one, draws)
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), found)

    def statistics(self, params: Scores, model_state: Frozen, batch: Batch) -> Frozen:
        assert self.inner.statistics is not None
        weights = self._params(params, model_state)
        moments = self.inner.statistics(weights, model_state.inner, batch)
        return model_state._replace(inner=moments)

    def pool(self, moments: Frozen) -> Frozen:
        assert self.inner.pool is not None
        # What is frozen is that of every batch.
        weights, keep = jax.tree.map(lambda x: x[0], (moments.weights, moments.keep))
        return Frozen(weights, keep, self.inner.pool(moments.inner))

    def predict(
        self,
        params: Scores,
        model_state: Frozen,
        data: PyTree,
        key: Key,
        split: str,
    ) -> Array:
        assert self.inner.predict is not None
        weights = self._params(params, model_state)
        return self.inner.predict(weights, model_state.inner, data, key, split)

    def outputs(self, params: Scores, model_state: Frozen, batch: Batch) -> Array:
        assert self.inner.outputs is not None
        weights = self._params(params, model_state)
        return self.inner.outputs(weights, model_state.inner, batch)

    def prunable(self, params: Scores) -> Prunable:
        return jax.tree.unflatten(jax.tree.structure(params), self.counted)


Method: TypeAlias = Bernoulli | EdgePopup


def task(
    task: Task,
    method: Method,
    *,
    law: Literal[
        "kaiming_normal", "signed_kaiming_constant", "xavier_normal", "signed_constant"
    ]
    | None = None,
    scaled: bool = False,
) -> Task:
    """The task of finding a mask under which frozen random weights do another task.

    Its params are scores, its model state is `Frozen`. Leaves without a mask are frozen at
    what the task draws: by default biases at 0 and scales of norms at 1, as if there were
    none, which is what was published; with `norm_scale="uniform"` or `bias="torch"` they
    are frozen at their draws. Leaves that the task excludes from pruning are frozen and
    whole, and follow the law.

    A training step draws its mask anew (Bernoulli). `evaluate` is the mean over the
    method's samples; `predict`, `outputs` and `statistics`, which are of one network, are
    those of the mask by threshold. Recomputing statistics keeps the frozen weights once
    for each batch.

    What weight decay there is acts on scores, as published.

    Args:
      task: what the network is for.
      method: from `bernoulli` or `edge_popup`; its `prunable` counts, if it has one, else
        the task's.
      law: of the frozen weights, of `LAWS`; None for the task's own. Without one they are
        those that the task draws from the same key: of the network that would be trained.
      scaled: divide the frozen weights by the root of the density of their layer, exactly
        (kept / size), so that activations keep their size at every density; `edge_popup`
        only. (The authors' code divides by that of what is left out: the same at 0.5.)

    Raises:
      ValueError: no task, an unknown method or law, scaled without a density, a density at
        which a layer would keep no weight, a layer whose fan is not known, integers that
        would have a mask. All of it before anything is compiled.

    References:
      Zhou et al. 2019, section 5; Ramanujan et al. 2020, sections 3 and 4.
    """
    must = "a lottery_jax.Task, as tasks.classification(...) makes"
    errors.is_a("task", task, Task, must)
    must = "what supermask.bernoulli(...) or supermask.edge_popup(...) makes"
    errors.is_a("method", method, (Bernoulli, EdgePopup), must)
    if law is not None:
        errors.one_of("law", law, LAWS)
    errors.flag("scaled", scaled)
    if scaled and not isinstance(method, EdgePopup):
        must = "False with bernoulli, whose density is found; it has rescale=True"
        raise errors.wrong("scaled", scaled, must)
    shapes = task.shapes[0]
    chosen = task.prunable if method.prunable is None else method.prunable
    counted = _flags(shapes, chosen)
    masked = _flags(shapes, chosen, exclude=task.exclude)
    popup = isinstance(method, EdgePopup)
    by_fan = counted if law not in (None, *_NEED_NO_FAN) else (False,) * len(counted)
    need = tuple(a or (b and popup) for a, b in zip(by_fan, masked))
    draw = _Draw(
        inner=task.functions,
        law=law,
        of_law=counted,
        fans=_fans(shapes, need, method.inputs),
        masked=masked,
        keep=_counts(shapes, method.density, masked)
        if isinstance(method, EdgePopup)
        else (),
        scaled=bool(scaled),
        uniform=popup,
    )
    rule = _Highest() if isinstance(method, EdgePopup) else _Drawn(method.rescale)
    static = _Supermask(task.functions, rule, masked, counted, method.samples)
    return Task(
        data=task.data,
        init=draw.init,
        order=task.order,
        batch=task.batch,
        loss=static.loss,
        evaluate=static.evaluate,
        steps_per_epoch=task.steps_per_epoch,
        statistics=static.statistics if task.statistics else None,
        pool=static.pool if task.pool else None,
        predict=static.predict if task.predict else None,
        outputs=static.outputs if task.outputs else None,
        prunable=static.prunable,
        exclude=task.exclude,
        head=task.head,
        validates=task.validates,
    )
