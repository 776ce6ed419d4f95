"""Early-Bird tickets: when, in training, the mask no longer changes.

A mask is drawn at every epoch. Once the newest one differs from each of the few before it
by less than a threshold, the ticket is drawn and dense training ends there (You et al.
2020). What is here is pure and knows no tasks: masks of stored networks, their distances,
the stop rule on a matrix and, mask by mask, in a loop of one's own.

With the runner, after the fact:

    done = training.train(task, tx, runs, stop, keep=epochs)     # steps, one per epoch
    tickets = jax.vmap(lambda w: draw(w, 0.2))(done.kept.params)       # [R, E, ...]
    distances = jax.vmap(mask_distances)(tickets)                      # [R, E, E]
    [drawn_epoch(own) for own in distances]                            # rows of `epochs`

That keeps the training states of all E epochs on the host: weights, BatchNorm statistics
and the moments of the optimizer, so with Adam 12 E bytes for each weight of each replica.
To end at the epoch that is found, train in chunks and keep nothing but four masks, at one
bit for each weight:

    state = watch(mask_of_one_network)
    state = jax.tree.map(lambda x: jnp.stack([x] * R), state)
    for epoch in epochs:
        done = training.train(task, tx, runs, epoch)
        runs = runs._replace(state=done.state, joins=np.full(R, epoch, np.int32))
        state = jax.vmap(update)(state, masks_of(done.state.params))
        if state.found.all():
            break

What the paper prunes are channels, by the size of their BatchNorm scale: `unit_scores`,
`draw_units` and, for masks of weights, `whole_units`.

References:
  You, Li, Xu, Fu, Wang, Chen, Baraniuk, Wang and Lin, Drawing Early-Bird Tickets: Towards
    More Efficient Training of Deep Networks, 2020; https://arxiv.org/abs/1909.11957
  Liu, Li, Shen, Huang, Yan and Zhang, Learning Efficient Convolutional Networks through
    Network Slimming, 2017 (BatchNorm scales as the importance of channels);
    https://arxiv.org/abs/1708.06519
"""

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import errors, masks, prune, scores, trees, units
from lottery_jax.granularity import Granularity
from lottery_jax.masks import Patterns, PrunableLike
from lottery_jax.prune import Scope
from lottery_jax.types import Array, Mask, Params, PyTree, Scores

THRESHOLD = 0.1
"""The distance below which masks count as the same ticket (You et al. 2020, section 4)."""

WINDOW = 5
"""How many masks in a row must be alike, the newest among them (You et al. 2020)."""


# --- masks of many networks -----------------------------------------------------------


def draw(
    weights: Params,
    density: float,
    *,
    score: Callable[[Params], Scores] = scores.magnitude,
    scope: Scope = "global",
    granularity: Granularity = None,
    prunable: PrunableLike = None,
    exclude: Patterns = (),
) -> Mask:
    """The masks that pruning at once would give at each of many epochs.

    One network after the other, so that no more than one ranking is in memory.

    Args:
      weights: of one run at E epochs, `[E, ...]` leaves; may be traced. A nan ranks
        lowest, so masks of networks that diverged are all alike and mean nothing.
      density: share of the prunable weights that each mask keeps, in (0, 1); with a
        granularity, of the groups.
      score: from the weights of one network to their importance; higher is kept.
      scope: see `prune.to_density`.
      granularity: what lives and dies together; None for each weight by itself.
      prunable: which leaves count, of one network.
      exclude: patterns of leaves that count and are never cut.

    Returns:
      bool `[E, ...]` leaves; of weights exactly `round(density * total)` survive in each.

    Raises:
      ValueError: no stack of networks, or see `prune.to_density`.

    Warns:
      RuntimeWarning: prunable weights that are not finite; names the epochs. Not where
        weights are traced.
    """
    errors.share("density", density)
    trees.check_arrays(weights, "weights")
    flags = masks.resolve(_one_of("weights", weights), prunable)
    _warn_of_nan(weights, flags)
    how: dict[str, Any] = dict(scope=scope, granularity=granularity)
    how |= dict(prunable=prunable, exclude=exclude)

    def one(own: Params) -> Mask:
        return prune.to_density(score(own), masks.ones_like(own), density, **how)

    return jax.lax.map(one, weights)


def _warn_of_nan(weights: Params, flags: list[bool]) -> None:
    leaves = [w for w, take in zip(jax.tree.leaves(weights), flags) if take]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return
    finite = [
        np.isfinite(x).reshape(len(x), -1).all(axis=1) for x in trees.host(leaves)
    ]
    lost = np.flatnonzero(~np.all(finite, axis=0))
    if lost.size:
        warnings.warn(
            f"weights: those of epochs {lost.tolist()} (from 0) are not finite; their "
            "masks mean nothing",
            RuntimeWarning,
            stacklevel=3,
        )


def _one_of(field: str, stack: PyTree) -> PyTree:
    """The shapes of one tree of a stack; equal leading axes, or it raises."""
    counts = {path: np.shape(leaf)[:1] for path, leaf in trees.by_path(stack).items()}
    first = next(iter(counts.values()), ())
    for path, count in counts.items():
        if not count or count != first:
            shape = np.shape(trees.by_path(stack)[path])
            must = "(epochs, ...) with as many epochs as the other leaves"
            raise ValueError(
                f"{field}: leaf {path!r} has shape {shape}; it must be {must}"
            )
    if not first or not first[0]:
        raise errors.wrong(field, "an empty stack", "the networks of one epoch or more")
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stack)


# --- their distances ------------------------------------------------------------------


def mask_distances(stack: Mask, prunable: PrunableLike = None) -> Array:
    """The normalised Hamming distance of every two masks of a stack.

    Entry (i, j) is `masks.overlap(mask_i, mask_j).hamming`, bit for bit. Masks are compared
    at one bit per weight, one of them with all others at a time and leaf by leaf: memory is
    that of the stack. Counts are exact below 2^31 weights.

    Args:
      stack: E masks, bool `[E, ...]` leaves; may be traced. For masks of units
        (`draw_units`) give `prunable`, which names all their leaves.
      prunable: which leaves count, of one mask.

    Returns:
      float32 `[E, E]`, symmetric, 0 on the diagonal: the share of the prunable weights on
      which two masks differ.

    Raises:
      ValueError: no stack of masks, or leaves that are not bool; names the leaf.

    Example:
      >>> stack = {"kernel": jnp.array([[[True, True, False, False]]] * 2 + [[[False] * 4]])}
      >>> mask_distances(stack)[2].tolist()
      [0.5, 0.5, 0.0]

    References:
      You et al. 2020, section 4 (the mask distance).
    """
    one = _one_of("masks", stack)
    _check_bool("masks", stack)
    flags = masks.resolve(one, prunable)
    (stack,) = trees.gathered(stack)
    differ = jnp.zeros((trees.count(stack),) * 2, jnp.int32)
    for leaf, take in zip(jax.tree.leaves(stack), flags):
        if take:
            bits = _words(jnp.reshape(leaf, (leaf.shape[0], -1)))
            differ += jax.lax.map(functools.partial(_differing, bits), bits)
    return _share_of(differ, masks.total(one, prunable))


def _check_bool(field: str, tree: PyTree) -> None:
    for path, leaf in trees.by_path(tree).items():
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        if dtype != jnp.bool_:
            raise ValueError(f"{field}: leaf {path!r} has dtype {dtype}, not bool")


def _words(flat: Array) -> Array:
    """Bits `[..., n]` in words, uint32 `[..., ceil(n / 32)]`; what is over is 0."""
    over = -flat.shape[-1] % 32
    flat = jnp.pad(flat, [(0, 0)] * (flat.ndim - 1) + [(0, over)])
    octets = jnp.packbits(flat, axis=-1)
    return jax.lax.bitcast_convert_type(
        octets.reshape(*octets.shape[:-1], -1, 4), jnp.uint32
    )


def _differing(bits: Array, own: Array) -> Array:
    """In how many bits each of several rows `[E, words]` differs from one, int32 `[E]`."""
    apart = jax.lax.population_count(bits ^ own[None]).astype(jnp.int32)
    return jnp.sum(apart, axis=-1, dtype=jnp.int32)


def _share_of(number: Array, total: int) -> Array:
    """A quotient rounded as the division of two scalars is, however it is compiled.

    Arrays that are divided by one number are multiplied by its reciprocal, which may differ
    in the last bit: and a distance then lies on the other side of a threshold. No number is
    below 0, so all divisors are the total, but a compiler does not know.
    """
    return number / jnp.where(number < 0, jnp.nan, jnp.float32(total))


# --- when to stop ---------------------------------------------------------------------


def drawn_epoch(
    distances: Any, *, threshold: float = THRESHOLD, window: int = WINDOW
) -> int | None:
    """The first epoch whose mask is like those of the epochs just before it.

    Args:
      distances: `[E, E]`, from `mask_distances`; not traced.
      threshold: in (0, 1); all distances must lie below it.
      window: how many masks in a row are compared, 2 or more: the newest with the
        `window - 1` before it.

    Returns:
      The row of the matrix, `window - 1` or more; None if there is none.

    Raises:
      ValueError: no such matrix (not square, not symmetric, nan, other than 0 on the
        diagonal or outside of [0, 1]), fewer epochs than a window, or an argument out of
        range.

    References:
      You et al. 2020, section 4 and algorithm 1 (a queue of five masks).
    """
    errors.share("threshold", threshold)
    window = errors.whole("window", window, 2)
    found = np.asarray(distances)
    if found.ndim != 2 or found.shape[0] != found.shape[1]:
        must = "a matrix [epochs, epochs], as mask_distances(...) makes"
        raise errors.wrong("distances", f"shape {found.shape}", must)
    if len(found) < window:
        must = f"those of window={window} epochs or more"
        raise errors.wrong("distances", f"those of {len(found)} epochs", must)
    proper = np.isfinite(found).all() and (found == found.T).all()
    if not proper or np.diag(found).any() or found.min() < 0 or found.max() > 1:
        must = (
            "symmetric, in [0, 1], and 0 on the diagonal, as mask_distances(...) makes"
        )
        raise errors.wrong("distances", "this matrix", must)
    limit = np.float32(threshold)
    for epoch in range(window - 1, len(found)):
        if (found[epoch, epoch - window + 1 : epoch].astype(np.float32) < limit).all():
            return epoch
    return None


class EarlyBird(NamedTuple):
    """The last masks of a run, and whether they were alike; for `vmap`, one of each run.

    Attributes:
      recent: the masks before the next one, oldest first, bit-packed: uint32
        `[window - 1, ceil(prunable weights / 32)]`.
      seen: how many masks there have been, int32 `[]`.
      epoch: that of the mask that was drawn, counted from 0 as `drawn_epoch` does, int32
        `[]`; -1 as long as there is none.
    """

    recent: Array
    seen: Array
    epoch: Array

    @property
    def found(self) -> Array:
        """Whether the ticket is there, bool `[]`."""
        return self.epoch >= 0


def watch(
    mask: Mask, *, window: int = WINDOW, prunable: PrunableLike = None
) -> EarlyBird:
    """A queue without masks, before the first epoch.

    Args:
      mask: of one network, or its shapes: says how many weights there are.
      window: how many masks in a row must be alike, 2 or more.
      prunable: which leaves count.

    Raises:
      ValueError: a window below 2, or no leaf that counts.
    """
    window = errors.whole("window", window, 2)
    words = -(-masks.total(mask, prunable) // 32)
    return EarlyBird(
        jnp.zeros((window - 1, words), jnp.uint32), jnp.int32(0), jnp.int32(-1)
    )


def update(
    state: EarlyBird,
    mask: Mask,
    *,
    threshold: float = THRESHOLD,
    prunable: PrunableLike = None,
) -> EarlyBird:
    """The queue after the next epoch; pure, for `jit` and `vmap`.

    Args:
      state: from `watch` or the last call.
      mask: of this epoch, bool.
      threshold: see `drawn_epoch`.
      prunable: which leaves count, as for `watch`.

    Returns:
      The state whose `found` says whether the ticket was drawn by now, at `epoch`. That
      stays the first one, whatever masks follow.

    Raises:
      ValueError: a threshold out of range, leaves that are not bool, or a mask of another
        size than the state's.
    """
    errors.share("threshold", threshold)
    _check_bool("mask", mask)
    flags = masks.resolve(mask, prunable)
    (mask,) = trees.gathered(mask)
    parts = [
        jnp.reshape(m, -1) for m, take in zip(jax.tree.leaves(mask), flags) if take
    ]
    total = sum(part.size for part in parts)
    own = _words(jnp.concatenate(parts))
    if state.recent.ndim != 2 or own.shape != state.recent.shape[1:]:
        must = f"that of {total} prunable weights, from watch(mask)"
        raise errors.wrong("state.recent.shape", state.recent.shape, must)
    apart = _share_of(_differing(state.recent, own), total)
    alike = jnp.all(apart < jnp.float32(threshold))
    first = alike & (state.seen >= state.recent.shape[0]) & ~state.found
    return EarlyBird(
        jnp.concatenate([state.recent[1:], own[None]]),
        state.seen + 1,
        jnp.where(first, state.seen, state.epoch),
    )


# --- whole units, by the size of their BatchNorm scale --------------------------------


def unit_scores(model: Any, params: Params) -> dict[str, Array]:
    """The importance of every unit: the size of its BatchNorm scale.

    A residual stream has the norms of all layers that add to it; of these it is the mean,
    so that groups with many norms and with one are ranked on one scale.

    Args:
      model: a model that declares its units (`units.of_params`), with a norm behind every
        layer but the last.
      params: of one network; may be traced.

    Returns:
      For each group of units float32 `[units]`; higher is kept.

    Raises:
      ValueError: a layer without a norm, or a norm without a scale; names it.

    References:
      Liu et al. 2017, section 3; You et al. 2020, section 3.
    """
    units.of_params(model, params)  # or it raises
    leaves = trees.by_path(params)
    found: dict[str, list[Array]] = {}
    for layer in model.unit_plan():
        if layer.makes is None:
            continue
        scale = leaves.get(f"{layer.norm}/scale")
        if scale is None:
            raise ValueError(
                f"model: layer {layer.name!r} has no norm with a scale; it must have one, "
                "by which its units are ranked"
            )
        found.setdefault(layer.makes, []).append(jnp.abs(scale).astype(jnp.float32))
    return {group: sum(own[1:], own[0]) / len(own) for group, own in found.items()}


def draw_units(importance: Mapping[str, Array], density: float) -> dict[str, Array]:
    """Which units survive, ranked over all groups at once.

    The best unit of every group stays, so that no layer is cut through.

    Args:
      importance: for each group real `[units]`, of one network; may be traced. Equal ones
        go by position, as everywhere: scales that were never trained say nothing.
      density: share of all *units* that survive, in (0, 1). That of the weights is lower:
        about its square.

    Returns:
      For each group bool `[units]`; `round(density * units)` survive.

    Raises:
      ValueError: density out of range, or too low for a unit of each group.
    """
    errors.share("density", density)
    tree = dict(importance)
    total = sum(math.prod(own.shape) for own in tree.values())
    keep = masks.exact_round(masks.exact(density) * total)
    if keep < len(tree):
        must = (
            f"enough for a unit in each of {len(tree)} groups of {total} units in all"
        )
        raise errors.wrong("density", density, must)
    tree = {g: own.at[jnp.argmax(own)].set(jnp.inf) for g, own in tree.items()}
    return prune.global_topk(
        tree,
        masks.ones_like(tree),
        keep=keep,
        prunable=dict.fromkeys(tree, True),
    )


def whole_units(
    axes: units.Axes,
    params: Params,
    alive: Mapping[str, Array],
    prunable: PrunableLike = None,
) -> Mask:
    """The mask of weights under which some units have no weights in or out.

    Args:
      axes: of every leaf, from `units.of_params`.
      params: of one network, arrays or shapes.
      alive: for each group which units survive, bool `[units]`; may be traced.
      prunable: which leaves are cut; the others are all True.

    Returns:
      bool, in the shapes of params.

    Raises:
      ValueError: axes that do not fit, or a group without units or with another number of
        them; names it.
    """
    for group, size in units.sizes(axes, params).items():
        if group not in alive or np.shape(alive[group]) != (size,):
            must = f"a mapping with {size} units of group {group!r}"
            got = {g: np.shape(own) for g, own in alive.items()}
            raise errors.wrong("alive", f"one of shapes {got}", must)
    flags = masks.resolve(params, prunable)
    leaves = []
    for (path, leaf), take in zip(trees.by_path(params).items(), flags):
        kept = jnp.ones(leaf.shape, jnp.bool_)
        for i, axis in enumerate(axes[path]):
            if take and axis.group is not None:
                along = jnp.tile(
                    jnp.asarray(alive[axis.group], jnp.bool_), axis.repeats
                )
                shape = [1] * leaf.ndim
                shape[i] = leaf.shape[i]
                kept &= along.reshape(shape)
        leaves.append(kept)
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
