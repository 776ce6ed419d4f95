"""Pruning at initialisation: masks of networks that were never trained.

    method = at_init.METHODS["synflow"]
    keep = at_init.keep_counts(method, params, density=0.05)
    mask = at_init.prune(method, key, inputs, keep).mask

| method | score, higher = kept | rounds |
|---|---|---|
| snip | \\|w g\\| (Lee et al. 2019) | 1 |
| grasp | w (H g), logits / 200 (Wang et al. 2020) | 1 |
| synflow | \\|w dR/d\\|w\\|\\|, no data (Tanaka et al. 2020) | 100 |
| magnitude | \\|w\\| | 1 |
| random | a draw | 1 |

A method is a score of `lottery_jax.scores` and a number of rounds: each scores what the
last one left and prunes on, along an exponential schedule. Everything here is pure, and
works under `jit` and `vmap`. `imp.prune_at_init` makes the masks of many replicas of a task.

A network that loses all weights of a layer is cut through: `collapsed` names the layer.

References:
  Lee, Ajanthan and Torr, SNIP: Single-shot Network Pruning based on Connection Sensitivity,
    2019; https://arxiv.org/abs/1810.02340
  Wang, Zhang and Grosse, Picking Winning Tickets Before Training by Preserving Gradient
    Flow, 2020; https://arxiv.org/abs/2002.07376
  Tanaka, Kunin, Yamins and Ganguli, Pruning neural networks without any data by iteratively
    conserving synaptic flow, 2020; https://arxiv.org/abs/2006.05467
  Frankle, Dziugaite, Roy and Carbin, Pruning Neural Networks at Initialization: Why Are We
    Missing the Mark?, 2021; https://arxiv.org/abs/2009.08576
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import errors, keys, masks, scores, streams, trees
from lottery_jax.keys import ReplicaKeys
from lottery_jax.masks import Patterns, PrunableLike
from lottery_jax.prune import global_topk, layerwise_topk
from lottery_jax.scores import BatchLoss, Inputs, Score
from lottery_jax.types import (
    Array,
    Batch,
    Key,
    Mask,
    ModelState,
    Network,
    Params,
    PyTree,
    Task,
)


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to prune at initialisation.

    Attributes:
      score: a name of `scores.SCORES`, or a function like those there.
      rounds: how often it is scored and pruned, 1 or more.
      scope: "global" ranks over all layers; "layerwise" within each, all to one density.
      inverted: keep the lowest scores instead of the highest: the control of Frankle et
        al. 2021, section 4.
      temperature: what the logits are divided by where the loss is derived; positive.
    """

    score: str | Score
    rounds: int = 1
    scope: Literal["global", "layerwise"] = "global"
    inverted: bool = False
    temperature: float = 1.0


METHODS: Mapping[str, Method] = {
    "snip": Method("snip"),
    "grasp": Method("grasp", temperature=200.0),
    "synflow": Method("synflow", rounds=100),
    "magnitude": Method("magnitude"),
    "random": Method("random"),
}
"""Methods as they were published, and two baselines. `dataclasses.replace` changes one."""


def check(method: Method) -> Method:
    """The method, with Python's own numbers.

    Raises:
      ValueError: names the first field that makes no sense.
    """
    must = "an at_init.Method, such as at_init.METHODS['synflow']"
    errors.is_a("method", method, Method, must)
    if isinstance(method.score, str) or not callable(method.score):
        errors.one_of("score", method.score, sorted(scores.SCORES))
    rounds = errors.whole("rounds", method.rounds, 1)
    errors.one_of("scope", method.scope, ("global", "layerwise"))
    errors.flag("inverted", method.inverted)
    errors.finite("temperature", (method.temperature,))
    if not method.temperature > 0:
        raise errors.wrong("temperature", method.temperature, "positive")
    return dataclasses.replace(method, rounds=rounds)


# --- how many -------------------------------------------------------------------------


def keep_counts(
    method: Method,
    params: Params,
    density: float,
    prunable: PrunableLike = None,
    exclude: Patterns = (),
) -> np.ndarray:
    """How many weights each round keeps: in all, and in each prunable leaf.

    Of N weights round k of n keeps N (K / N)^(k / n), rounded, and the last one exactly
    K = `round(density * N)`: the exponential schedule of Tanaka et al. 2020, algorithm 1.

    Args:
      method: whose rounds and scope count.
      params: arrays or shapes.
      density: share of all prunable weights that is kept, in (0, 1).
      prunable: which leaves count.
      exclude: patterns of leaves that count and are never cut.

    Returns:
      int32 `[rounds, 1 + prunable leaves]`; the scope decides which entries are used.

    Raises:
      ValueError: a method that makes no sense, a density outside (0, 1), or one that
        leaves no weight or not those that are excluded.
    """
    method = check(method)
    errors.share("density", density)
    flags = masks.resolve(params, prunable)
    cut = masks.cuttable(params, prunable, exclude)
    shapes = [p.shape for p, take in zip(jax.tree.leaves(params), flags) if take]
    dense = [not c for c, take in zip(cut, flags) if take]
    kept = masks.layer_counts(shapes, density, dense=dense)
    if not sum(kept):
        total = masks.total(params, prunable)
        raise errors.wrong("density", density, f"such that one of {total} is left")
    sizes = [int(np.prod(shape)) for shape in shapes]
    pairs = [(sum(sizes), sum(kept)), *zip(sizes, kept)]
    return np.array(
        [
            [_left(size, last, k, method.rounds) for size, last in pairs]
            for k in range(1, method.rounds + 1)
        ],
        np.int32,
    )


def _left(size: int, last: int, k: int, rounds: int) -> int:
    if k == rounds:
        return last
    return max(last, round(size * (max(last, 1) / size) ** (k / rounds)))


# --- the loop -------------------------------------------------------------------------


class Pruned(NamedTuple):
    """What pruning at initialisation came to.

    Attributes:
      mask: a subset of the one that was given, with exactly as many weights as asked for.
      finite: for each prunable leaf, whether its scores were finite in all rounds, bool
        `[leaves]`. Where they were not the mask says nothing: `check_finite`.
    """

    mask: Mask
    finite: Array


def prune(
    method: Method,
    key: Key,
    inputs: Inputs,
    keep: Array | np.ndarray,
    *,
    prunable: PrunableLike = None,
    exclude: Patterns = (),
) -> Pruned:
    """Scores and prunes, round after round; each mask is a subset of the one before.

    Args:
      method: the score, and how often.
      key: for scores that draw; round i has its own.
      inputs: what scores may look at: `initial` and `trained` both the weights at
        initialisation, `mask` the one to begin with.
      keep: from `keep_counts`, int32 `[rounds, 1 + prunable leaves]`, may be traced.
      prunable: which leaves count.
      exclude: patterns of leaves that count and are never cut.

    Returns:
      The mask, and whether scores were finite.

    Raises:
      ValueError: a method that makes no sense, or inputs that its score lacks.

    Example:
      >>> params = {"kernel": jnp.array([[0.1, -0.9], [0.2, 0.5]])}
      >>> inputs = Inputs(params, masks.ones_like(params), initial=params)
      >>> keep = keep_counts(METHODS["magnitude"], params, 0.5)
      >>> found = prune(METHODS["magnitude"], keys.of_seed(0), inputs, keep)
      >>> found.mask["kernel"].tolist()
      [[False, True], [False, True]]
    """
    method = check(method)
    score = (
        scores.by_name(method.score) if isinstance(method.score, str) else method.score
    )
    flags = masks.resolve(inputs.mask, prunable)
    where: dict[str, Any] = dict(prunable=prunable, exclude=exclude)

    def one(before: Pruned, item: tuple[Array, Array]) -> tuple[Pruned, None]:
        number, counts = item
        mask = before.mask
        given = inputs._replace(mask=mask)
        ranking = score(jax.random.fold_in(key, number), given)
        pairs = zip(flags, jax.tree.leaves(ranking), jax.tree.leaves(mask))
        finite = [jnp.all(jnp.isfinite(s) | ~m) for take, s, m in pairs if take]
        if method.inverted:
            ranking = jax.tree.map(jnp.negative, ranking)
        if method.scope == "global":
            mask = global_topk(ranking, mask, keep=counts[0], **where)
        else:
            mask = layerwise_topk(ranking, mask, keep=counts[1:], **where)
        return Pruned(mask, before.finite & jnp.stack(finite)), None

    keep = jnp.asarray(keep, jnp.int32)
    first = Pruned(inputs.mask, jnp.ones(sum(flags), jnp.bool_))
    rounds = jnp.arange(keep.shape[0], dtype=jnp.int32)
    return jax.lax.scan(one, first, (rounds, keep))[0]


def of_task(
    task: Task,
    method: Method,
    own: ReplicaKeys,
    keep: Array | np.ndarray,
    batches: int = 8,
) -> tuple[Network, Pruned]:
    """Draws a network of a task and prunes it: pure, of one replica.

    Args:
      task: with its data; its own `prunable` and `exclude` count.
      method: how.
      own: keys of the replica; of these the init, the noise and the score are used, so the
        network is the one that a study with these keys trains.
      keep: from `keep_counts`, may be traced.
      batches: how many of the replica's first batches a loss is derived on.

    Raises:
      ValueError: as `prune`; a temperature without an output layer that the task names.
    """
    params, model_state, stream = task.init(own.init)

    def plain(params: Params, model_state: ModelState, batch: Batch, key: Key) -> Array:
        return task.loss(params, model_state, stream, batch, key)[0]

    loss: BatchLoss = plain
    # Only where it matters: other tasks need not say what their output layer is.
    if check(method).temperature != 1:
        loss = tempered(plain, task.head, method.temperature)
    inputs = Inputs(
        trained=params,
        mask=masks.ones_like(params),
        initial=params,
        model_state=model_state,
        loss=loss,
        batches=first_batches(task, own.noise, batches),
        outputs=task.outputs,
    )
    flags = masks.of_task(task)
    found = prune(method, own.score, inputs, keep, prunable=flags, exclude=task.exclude)
    return Network(params, model_state), found


def first_batches(task: Task, noise: Key, number: int) -> PyTree:
    """The first batches of a run's data order, stacked, for scores that need gradients.

    Args:
      task: with its data.
      noise: the noise key of the run.
      number: how many; no more than an epoch has.
    """
    instead = "imp.prune_at_init reads them"
    streams.check_whole(task.data, "first batches", instead, split="train")
    own = keys.noise_keys(noise)

    def one(step: Array) -> PyTree:
        return task.batch(task.data, task.order(own.order, step), own.batch, step)

    most = min(number, task.steps_per_epoch)
    return jax.lax.map(one, jnp.arange(most, dtype=jnp.int32))


def tempered(loss: BatchLoss, head: Patterns, temperature: float) -> BatchLoss:
    """A loss of logits / temperature: that of an output layer so much smaller.

    Where logits are linear in the leaves of the output layer, kernel and bias, the two are
    the same; derivatives are by the weights themselves, not by the smaller ones.

    Args:
      loss: of params, model state, batch and key.
      head: key-path patterns of the output layer, such as `Task.head`.
      temperature: positive.

    Raises:
      ValueError: no patterns; when it is called, patterns that match nothing.
    """
    if not head:
        must = "1 for a task that names no output layer: its head is empty"
        raise errors.wrong("temperature", temperature, must)

    def colder(
        params: Params, model_state: ModelState, batch: Batch, key: Key
    ) -> Array:
        is_head = trees.matching(params, head)
        params = jax.tree.map(
            lambda p, inside: p / temperature if inside else p, params, is_head
        )
        return loss(params, model_state, batch, key)

    return colder


# --- what may have gone wrong ---------------------------------------------------------


def check_finite(pruned: Pruned, prunable: PrunableLike = None, what: str = "") -> None:
    """Refuses a mask whose scores were infinite or nan.

    Args:
      pruned: of one network, known values.
      prunable: which leaves count.
      what: the method and the replica, for the message.

    Raises:
      ValueError: names the first such leaf.
    """
    flags = masks.resolve(pruned.mask, prunable)
    names = [name for name, take in zip(trees.paths(pruned.mask), flags) if take]
    for name, finite in zip(names, np.asarray(pruned.finite)):
        if not finite:
            must = "finite, or the mask means nothing"
            field = f"{f'{what}: ' if what else ''}scores of {name!r}"
            raise errors.wrong(field, "nan or infinite", must)


def collapsed(mask: Mask, prunable: PrunableLike = None) -> list[str]:
    """The key paths of the prunable leaves that have lost all their weights.

    Args:
      mask: of one network, known values.
      prunable: which leaves count.

    References:
      Tanaka et al. 2020, section 3 ("layer-collapse").
    """
    flags = masks.resolve(mask, prunable)
    leaves = zip(trees.paths(mask), jax.tree.leaves(mask), flags)
    return [name for name, m, take in leaves if take and not np.asarray(m).any()]
