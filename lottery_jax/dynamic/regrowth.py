"""Sparse from the first step to the last: SET and RigL drop weights and grow others.

A network starts with a random mask. At each of its steps a rule drops the smallest weights
of every layer and grows as many where the mask is off: at random (SET), or where the dense
gradient is largest (RigL). Counts by layer stay what they were. What was dropped a moment
ago may be what grows, and then keeps its weight; all else that grows begins at 0 with a new
state of the optimizer, see `transforms.change_mask`.
"""

import functools
import math
from fractions import Fraction
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import errors, masks, prune, scores, selection, trees
from lottery_jax import granularity as granular
from lottery_jax.dynamic.pruning import Cut, random_start
from lottery_jax.dynamic.rules import MaskUpdate, drawn_from, index_of, with_leaves
from lottery_jax.granularity import Granularity, NofM
from lottery_jax.masks import Patterns, PrunableLike
from lottery_jax.types import Array, Key, Mask, Params, PyTree

Decay = Literal["cosine", "constant"]
Growth = Literal["random", "gradient"]


def sparse_evolutionary(
    density: float,
    end: int,
    every: int = 100,
    *,
    begin: int | None = None,
    drop_fraction: float = 0.3,
    decay: Decay = "cosine",
    scope: Literal["uniform", "erk"] = "erk",
    granularity: Granularity = None,
    prunable: PrunableLike = None,
    exclude: Patterns = (),
) -> MaskUpdate:
    """SET: drops the smallest weights of each layer and grows as many at random.

    Args:
      density: in (0, 1), from the first step on.
      end: the last step at which it may act.
      every: steps between updates.
      begin: the first step at which it may act; None for `every`.
      drop_fraction: share of each layer's weights that is dropped, in (0, 1).
      decay: how that share changes: by a cosine to 0 at `end`, as Evci et al. have it for
        all methods, or not at all, as in SET itself.
      scope: how the weights are shared out among layers; "uniform" for n of m.
      granularity: what lives and dies together.
      prunable: which leaves count; None for those of the task, or of `masks.prunable`.
      exclude: patterns of leaves that count and are never cut; () for those of the task.

    Raises:
      ValueError: no such shares; no step at which it acts; an unknown choice.

    References:
      Mocanu et al., Scalable Training of Artificial Neural Networks with Adaptive Sparse
      Connectivity, 2018. What grows begins at zero here, and at random there.
    """
    cut = Cut(scope, granularity, prunable, exclude)
    return _regrowing("random", density, end, every, begin, drop_fraction, decay, cut)


def rigl(
    density: float,
    end: int,
    every: int = 100,
    *,
    begin: int | None = None,
    drop_fraction: float = 0.3,
    decay: Decay = "cosine",
    scope: Literal["uniform", "erk"] = "erk",
    granularity: Granularity = None,
    prunable: PrunableLike = None,
    exclude: Patterns = (),
) -> MaskUpdate:
    """RigL: drops the smallest weights, grows as many where gradients are largest.

    Args:
      density: in (0, 1), from the first step on.
      end: the last step at which it may act; three quarters of training in the paper.
      every: steps between updates.
      begin: the first step at which it may act; None for `every`.
      drop_fraction: share of each layer's weights that is dropped at first, in (0, 1).
      decay: how that share changes: by a cosine to 0 at `end`, or not at all.
      scope: how the weights are shared out among layers; "uniform" for n of m.
      granularity: what lives and dies together.
      prunable: which leaves count; None for those of the task, or of `masks.prunable`.
      exclude: patterns of leaves that count and are never cut; () for those of the task.

    Raises:
      ValueError: no such shares; no step at which it acts; an unknown choice.

    Example:
      >>> rule = rigl(0.2, end=750, every=250)
      >>> rule.steps(), rule.grows
      ([250, 500, 750], True)

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020, algorithm 1. The
      number dropped is rounded down, as in the authors' code.
    """
    cut = Cut(scope, granularity, prunable, exclude)
    return _regrowing("gradient", density, end, every, begin, drop_fraction, decay, cut)


def drop_counts(
    alive: int,
    steps: list[int],
    end: int,
    drop_fraction: float = 0.3,
    decay: Decay = "cosine",
) -> list[int]:
    """How many of a layer's weights are dropped at each step, and as many grow.

    `floor(f * alive)` with `f = drop_fraction / 2 * (1 + cos(pi * step / end))`.

    Args:
      alive: weights of the layer on the mask.
      steps: at which the rule acts, none after `end`.
      end: where the cosine is 0.
      drop_fraction: at step 0, in (0, 1).
      decay: "constant" for that share at all steps.

    Raises:
      ValueError: no such numbers; names the argument.

    Example:
      >>> drop_counts(1000, [0, 100, 150, 200], 200)
      [300, 150, 43, 0]
      >>> drop_counts(100, [0, 100], 200, 0.29)
      [29, 14]

    References:
      Evci et al. 2020, section 3, "Update schedule".
    """
    alive, end = errors.whole("alive", alive, 0), errors.whole("end", end, 1)
    steps = [*errors.wholes("steps", steps, 0, end)]
    errors.share("drop_fraction", drop_fraction)
    errors.one_of("decay", decay, ("cosine", "constant"))
    left = [
        1.0 if decay == "constant" else (1 + math.cos(math.pi * step / end)) / 2
        for step in steps
    ]
    # 0.29 of 100 is 29; as a product of floats it would be 28.999999999999996.
    share = masks.exact(drop_fraction)
    return [math.floor(share * Fraction(x) * alive) for x in left]


def _regrowing(
    growth: Growth,
    density: float,
    end: int,
    every: int,
    begin: int | None,
    drop_fraction: float,
    decay: Decay,
    cut: Cut,
) -> MaskUpdate:
    name = "rigl" if growth == "gradient" else "sparse_evolutionary"
    errors.share("drop_fraction", drop_fraction)
    errors.one_of("decay", decay, ("cosine", "constant"))
    errors.one_of("scope", cut.scope, ("uniform", "erk"))
    every, end = errors.whole("every", every, 1), errors.whole("end", end, 1)
    begin = every if begin is None else errors.whole("begin", begin, 0)
    start = random_start(name, density, cut)

    def update(
        key: Key, step: Array, params: Params, gradients: Params, mask: Mask
    ) -> Mask:
        table = [
            drop_counts(number, steps, end, drop_fraction, decay)
            for number in _kept(mask, density, cut)
        ]
        drops = jnp.asarray(np.array(table, np.int32).T)[index_of(step, every, begin)]
        if growth == "gradient":
            wanted = scores.gradient(gradients)
        else:
            wanted = scores.random(drawn_from(key, name), params)
        return replace_lowest(scores.magnitude(params), wanted, mask, drops, cut)

    def on(*, prunable: PrunableLike, exclude: Patterns) -> MaskUpdate:
        own = cut.on(prunable, exclude)
        return _regrowing(growth, density, end, every, begin, drop_fraction, decay, own)

    rule = MaskUpdate(update, every, begin, end, start, grows=True)
    if not (steps := rule.steps()):
        raise ValueError(
            f"every={every}, begin={begin}, end={end}; there must be a multiple of every "
            "from begin to end: it would never act"
        )
    return with_leaves(rule, on) if cut.is_open else rule


def _kept(tree: PyTree, density: float, cut: Cut) -> list[int]:
    """How many weights, or groups, each leaf that is cut keeps."""
    flags = masks.cuttable(tree, cut.prunable, cut.exclude)
    counts = prune.keep_counts(tree, density, **cut._asdict())
    if isinstance(cut.granularity, NofM):
        n, m = cut.granularity.n, cut.granularity.m
        sizes = [math.prod(x.shape) for x in jax.tree.leaves(tree)]
        return [size // m * n for size, take in zip(sizes, flags) if take]
    if cut.granularity is not None:
        return list(counts)
    counted = masks.resolve(tree, cut.prunable)
    own = iter(counts)
    each = [next(own) if take else 0 for take in counted]
    return [number for number, take in zip(each, flags) if take]


def replace_lowest(
    worth: PyTree, wanted: PyTree, mask: Mask, drops: Array, cut: Cut
) -> Mask:
    """Drops the lowest weights of each leaf and grows as many that are wanted most.

    Args:
      worth: scores of the weights on the mask: the lowest are dropped.
      wanted: scores of those off it, and of what was dropped: the highest grow.
      mask: the mask so far.
      drops: how many are dropped, int32 `[leaves that are cut]`; of groups, where weights
        live and die by these.
      cut: which leaves, and what lives and dies together.

    Returns:
      A mask with as many survivors in each leaf.
    """
    like = (mask, worth)
    worth, wanted, mask = trees.gathered(worth, wanted, mask)
    flags = masks.cuttable(mask, cut.prunable, cut.exclude)
    groups = cut.granularity
    if isinstance(groups, NofM):
        new = _n_of_m(worth, wanted, mask, drops, flags, groups)
        return trees.placed(new, *like)
    living = mask
    if groups is not None:
        worth, wanted = (granular.reduced(groups, x, flags) for x in (worth, wanted))
        living = granular.alive(groups, mask, flags)
    leaves, structure = jax.tree.flatten(living)
    number = iter(range(sum(flags)))
    out = [
        _replaced(w, g, m, drops[next(number)]) if take else m
        for w, g, m, take in zip(
            jax.tree.leaves(worth), jax.tree.leaves(wanted), leaves, flags
        )
    ]
    new = jax.tree.unflatten(structure, out)
    if groups is not None:
        whole = [
            jnp.ones_like(m) if take else m
            for m, take in zip(jax.tree.leaves(mask), flags)
        ]
        whole = jax.tree.unflatten(structure, whole)
        new = granular.expanded(groups, new, whole, flags)
    return trees.placed(new, *like)


def _replaced(worth: Array, wanted: Array, alive: Array, drop: Array) -> Array:
    """One leaf without its lowest, and with as many others."""
    kept = selection.drop_lowest(worth, alive, drop)
    gone = jnp.sum(alive & ~kept, dtype=jnp.int32)
    free = ~kept
    spare = jnp.sum(free, dtype=jnp.int32) - gone
    return kept | selection.drop_lowest(wanted, free, spare)


def _n_of_m(
    worth: PyTree,
    wanted: PyTree,
    mask: Mask,
    drops: Array,
    flags: list[bool],
    granularity: NofM,
) -> Mask:
    """As many grow in each group of m as were dropped there."""
    m = granularity.m

    def regrown(drop: Array, w: Array, g: Array, alive: Array) -> Array:
        kept = selection.drop_lowest(w, alive, drop)
        free = ~kept
        gone = jnp.sum(alive & free, axis=-1, dtype=jnp.int32)
        spare = jnp.sum(free, axis=-1, dtype=jnp.int32) - gone
        return kept | jax.vmap(selection.drop_lowest)(g, free, spare)

    leaves, structure = jax.tree.flatten(mask)
    along = prune.group_axes(mask, m, granularity.axis, flags)
    out, number = [], iter(range(sum(flags)))
    for w, g, alive, axes in zip(
        jax.tree.leaves(worth), jax.tree.leaves(wanted), leaves, along
    ):
        if axes is not None:
            own = functools.partial(regrown, drops[next(number)])
            alive = prune.in_groups(own, m, axes, w, g, alive)
        out.append(alive)
    return jax.tree.unflatten(structure, out)
