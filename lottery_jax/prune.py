"""From scores to masks, with exact counts.

Every rule returns a subset of the mask it is given: what is dead stays dead. Ties go by
position: of equal scores the one that comes first in tree order (and in row-major order
within a leaf) is removed first. A nan score counts as the lowest. The selection itself,
without a sort, is that of `selection`.

Three different fractions appear in the literature, under three names here: `fraction` is
the share of the *surviving* weights to remove, `density` the share of *all prunable*
weights to keep, and `keep` a number of weights.

`prunable` says which leaves count, `exclude` which of those are never cut (open_lth counts
the output layer of LeNet and VGG and spares it).

All of it is pure and may be traced, so nothing warns of a layer that loses its last weight;
a study does (`imp.run`), and `masks.layer_densities` tells.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import errors, masks, naming, selection, trees
from lottery_jax import granularity as granular
from lottery_jax.granularity import Granularity, NofM
from lottery_jax.masks import Patterns, PrunableLike
from lottery_jax.types import Array, Mask, PyTree, Scores

Rule = Literal["exact", "open_lth"]
Scope = Literal["global", "uniform", "erk"]
T = TypeVar("T")


def global_topk(
    scores: Scores,
    mask: Mask,
    *,
    fraction: float | None = None,
    keep: Array | int | None = None,
    rule: Rule = "exact",
    prunable: PrunableLike = None,
    exclude: Patterns = (),
) -> Mask:
    """Removes the lowest-scoring surviving weights, ranked over all layers at once.

    With `scores.magnitude` this is the pruning step of iterative magnitude pruning.

    Args:
      scores: importance of each weight, any real scale; higher is kept. Structure and
        shapes of the mask. Not normalised by layer.
      mask: the current mask.
      fraction: share of the surviving prunable weights to remove, in (0, 1). The number
        is exact for any count up to 2^31, traced or not.
      keep: instead of `fraction`, how many prunable weights shall survive, an integer
        `[]`, at least as many as live in excluded leaves. No effect where no more than
        that are alive. It may be traced, and is not checked then: below 0 it is 0.
      rule: "exact" removes `round(fraction * alive)`, half to even. "open_lth" removes
        what open_lth does: all scores up to and including the one of rank
        `ceil(fraction * alive)` (from 0, in float64 arithmetic), so one more, and ties
        together.
      prunable: which leaves count.
      exclude: patterns of leaves that count and are never cut.

    Returns:
      A subset of `mask`.

    Raises:
      ValueError: fraction no number in (0, 1), or with too many digits to be counted in
        `jit`; keep no number of weights; both or neither of the two; an unknown rule;
        scores that do not fit the mask.

    Example:
      >>> scores = {"kernel": jnp.array([[0.1, 0.9], [0.2, 0.5]])}
      >>> global_topk(scores, masks.ones_like(scores), fraction=0.5)["kernel"].tolist()
      [[False, True], [False, True]]

    References:
      Frankle and Carbin, The Lottery Ticket Hypothesis, 2019, section 1 and appendix
      (global pruning); https://arxiv.org/abs/1803.03635
    """
    _check_amount(fraction=fraction, keep=keep)
    _check(scores, mask)
    like = (mask, scores)
    scores, mask = trees.gathered(scores, mask)
    flags = masks.cuttable(mask, prunable, exclude)
    flat_scores, alive = _flatten(scores, mask, flags)
    counted = masks.count(mask, prunable)
    if rule == "open_lth":
        if fraction is None:
            raise ValueError("rule='open_lth' needs fraction=, not keep=")
        number = _share_of(fraction, counted, "ceil")
        survivors = selection.above_rank(flat_scores, alive, number)
    elif rule == "exact":
        if fraction is not None:
            number = _share_of(fraction, counted, "round")
        else:
            keep = _number("keep", keep, masks.total(mask, prunable))
            _check_excluded(keep, mask, prunable, flags)
            number = jnp.maximum(counted - keep, 0)
        survivors = selection.drop_lowest(flat_scores, alive, number)
    else:
        raise ValueError(f"rule={rule!r}; it must be 'exact' or 'open_lth'")
    leaves, structure = jax.tree.flatten(mask)
    leaves = masks.scatter(leaves, flags, survivors)
    return trees.placed(jax.tree.unflatten(structure, leaves), *like)


def layerwise_topk(
    scores: Scores,
    mask: Mask,
    *,
    fraction: float | Mapping[str, float] | None = None,
    keep: Sequence[Array | int] | Array | None = None,
    prunable: PrunableLike = None,
    exclude: Patterns = (),
) -> Mask:
    """Removes the lowest-scoring surviving weights of each layer.

    Args:
      scores: importance of each weight; higher is kept.
      mask: the current mask.
      fraction: share of each layer's surviving weights to remove, in (0, 1): one for all
        layers, or one per pattern of the key path, of which the first that is found
        counts. `{"head": 0.1, "dense": 0.2}` are the rates of LeNet in the paper.
      keep: instead, how many weights each prunable leaf keeps, in tree order; integers,
        each may be traced. Those of excluded leaves are not looked at.
      prunable: which leaves count.
      exclude: patterns of leaves that are never cut.

    Returns:
      A subset of `mask`, with `round(fraction * alive)` weights removed from each layer.

    Raises:
      ValueError: fraction no number in (0, 1), a layer without a pattern, a pattern that
        matches nothing, `keep` of another length or no numbers of weights (names the
        position), scores that do not fit the mask.

    References:
      Frankle and Carbin 2019, figure 2 (rates per layer).
    """
    _check_amount(fraction=fraction, keep=keep)
    _check(scores, mask)
    like = (mask, scores)
    scores, mask = trees.gathered(scores, mask)
    counts = masks.resolve(mask, prunable)
    flags = masks.cuttable(mask, prunable, exclude)
    names = trees.paths(mask)
    leaves, structure = jax.tree.flatten(mask)
    score_leaves = jax.tree.leaves(scores)
    if keep is not None and len(keep) != sum(counts):
        raise ValueError(
            f"keep has {len(keep)} entries for {sum(counts)} prunable leaves"
        )
    rates = _rates(mask, fraction, [n for n, cut in zip(names, flags) if cut])
    out, position = [], 0
    for name, m, s, counted, cut in zip(names, leaves, score_leaves, counts, flags):
        if cut:
            alive = jnp.sum(m, dtype=jnp.int32)
            if keep is not None:
                own = _number(f"keep[{position}]", keep[position], m.size)
                number = jnp.maximum(alive - own, 0)
            else:
                number = _share_of(rates[name], alive, "round")
            m = selection.drop_lowest(s, m, number)
        position += counted
        out.append(m)
    return trees.placed(jax.tree.unflatten(structure, out), *like)


def to_density(
    scores: Scores,
    mask: Mask,
    density: float,
    *,
    scope: Scope = "global",
    granularity: Granularity = None,
    prunable: PrunableLike = None,
    exclude: Patterns = (),
) -> Mask:
    """Keeps exactly `round(density * total)` weights, or what is alive if that is less.

    Args:
      scores: importance of each weight; higher is kept.
      mask: the current mask. With a scope by layer, each layer keeps what it has if that
        is less than its share.
      density: share of all prunable weights to keep, in (0, 1).
      scope: "global" ranks over all layers; "uniform" and "erk" share the survivors out
        among the layers first (`masks.layer_counts`) and rank within each.
      granularity: what lives and dies together; None for each weight by itself. Else
        the density is the share of the groups of the leaves that are cut.
      prunable: which leaves count.
      exclude: patterns of leaves that count and are never cut.

    Raises:
      ValueError: density outside (0, 1), too small for the excluded leaves or for one
        group, or none that n of m has; unknown scope; scores that do not fit; leaves that
        cannot be cut into groups.

    Example:
      >>> scores = {"a": {"kernel": jnp.ones((4, 4))}, "b": {"kernel": jnp.zeros((4, 4))}}
      >>> full = masks.ones_like(scores)
      >>> for scope in ("global", "uniform"):
      ...     mask = to_density(scores, full, 0.5, scope=scope)
      ...     print({k: float(v) for k, v in masks.layer_densities(mask).items()})
      {'a/kernel': 1.0, 'b/kernel': 0.0}
      {'a/kernel': 0.5, 'b/kernel': 0.5}
    """
    errors.share("density", density)
    _check(scores, mask)
    options: Any = {
        "scope": scope,
        "granularity": granularity,
        "prunable": prunable,
        "exclude": exclude,
    }
    counts = keep_counts(mask, density, **options)
    return to_counts(scores, mask, counts, **options)


def keep_counts(
    tree: PyTree,
    density: float | Fraction,
    *,
    scope: Scope = "global",
    granularity: Granularity = None,
    prunable: PrunableLike = None,
    exclude: Patterns = (),
) -> tuple[int, ...]:
    """How many weights or groups a density is, for `to_counts`.

    Args:
      tree: weights, a mask or shapes.
      density: share to keep, in (0, 1].
      scope: see `to_density`.
      granularity: what lives and dies together.
      prunable: which leaves count.
      exclude: patterns of leaves that count and are never cut.

    Returns:
      One number for the scope "global"; else one for each prunable leaf, in tree order, or,
      with a granularity, for each that is cut. n alone, for n of m.

    Raises:
      ValueError: as `to_density`.
    """
    _check_how(scope, granularity)
    counted = masks.resolve(tree, prunable)
    cut = masks.cuttable(tree, prunable, exclude)
    if isinstance(granularity, NofM):
        return (_survivors(density, granularity, scope),)
    if granularity is not None:
        counted = cut
    shapes = {
        name: tuple(leaf.shape)
        for (name, leaf), take in zip(trees.by_path(tree).items(), counted)
        if take
    }
    groups = None
    if granularity is not None:
        found = granular.numbers(granularity, tree, cut)
        groups = [math.prod(found[name]) for name in shapes]
    # Shared out by layer or not, what is excluded must fit: layer_counts checks it.
    counts = masks.layer_counts(
        [*shapes.values()],
        density,
        "erk" if scope == "erk" else "uniform",
        dense=[not c for c, take in zip(cut, counted) if take],
        groups=groups,
    )
    most = groups or [math.prod(shape) for shape in shapes.values()]
    asked = [*zip(shapes, counts, most)]
    if scope == "global" or groups is None:
        # Small layers may lose their last single weight, as they do by any other rule.
        asked = [("the network", sum(counts), sum(most))]
    for name, number, whole in asked:
        if not number:
            what = "weights" if groups is None else f"groups of {granularity}"
            must = f"so large that of {name!r}, which has {whole} {what}, one is kept"
            raise errors.wrong("density", float(density), must)
    return (sum(counts),) if scope == "global" else tuple(counts)


def _check_how(scope: Scope, granularity: Granularity) -> None:
    if scope not in ("global", "uniform", "erk"):
        raise ValueError(f"scope={scope!r}; it must be 'global', 'uniform' or 'erk'")
    granular.check(granularity)


def _survivors(density: float | Fraction, granularity: NofM, scope: Scope) -> int:
    """How many of m a density is."""
    if not 0 < density <= 1:
        raise errors.wrong("density", float(density), "in (0, 1]")
    if scope == "erk":
        must = "'global' or 'uniform': n of m is the same density in every layer"
        raise errors.wrong("scope", repr(scope), must)
    n = masks.exact(density) * granularity.m
    if n != granularity.n and n < granularity.m:
        must = f"{granularity.n / granularity.m:g}, that of {granularity}"
        raise errors.wrong("density", float(density), must)
    return int(n)


def to_counts(
    scores: Scores,
    mask: Mask,
    counts: Sequence[int] | Array,
    *,
    scope: Scope = "global",
    granularity: Granularity = None,
    prunable: PrunableLike = None,
    exclude: Patterns = (),
) -> Mask:
    """Keeps so many weights or groups, or what is alive if that is less.

    Args:
      scores: importance of each weight; higher is kept.
      mask: the current mask.
      counts: as `keep_counts` makes them; integers, may be traced.
      scope: see `to_density`.
      granularity: what lives and dies together.
      prunable: which leaves count.
      exclude: patterns of leaves that count and are never cut.

    Raises:
      ValueError: counts of another length, an unknown scope, scores that do not fit,
        leaves that cannot be cut into groups.
    """
    _check_how(scope, granularity)
    _check(scores, mask)
    if (isinstance(granularity, NofM) or scope == "global") and len(counts) != 1:
        must = f"1, as keep_counts(..., scope={scope!r}) makes them"
        raise errors.wrong("len(counts)", len(counts), must)
    if isinstance(granularity, NofM):
        m, axis = granularity.m, granularity.axis
        return _n_of_m(scores, mask, counts[0], m, axis, prunable, exclude)
    if granularity is None:
        cut: Any = {"prunable": prunable, "exclude": exclude}
        if scope == "global":
            return global_topk(scores, mask, keep=counts[0], **cut)
        return layerwise_topk(scores, mask, keep=counts, **cut)
    like = (mask, scores)
    scores, mask = trees.gathered(scores, mask)
    flags = masks.cuttable(mask, prunable, exclude)
    of_groups = granular.reduced(granularity, scores, flags, mask)
    living = granular.alive(granularity, mask, flags)
    counted = jax.tree.unflatten(jax.tree.structure(mask), flags)
    kept = to_counts(of_groups, living, counts, scope=scope, prunable=counted)
    return trees.placed(granular.expanded(granularity, kept, mask, flags), *like)


def n_of_m(
    scores: Scores,
    mask: Mask,
    n: int,
    m: int,
    *,
    axis: int | Mapping[str, int] | None = None,
    prunable: PrunableLike = None,
    exclude: Patterns = (),
) -> Mask:
    """Keeps the n highest of every m consecutive weights along the inputs.

    Args:
      scores: importance of each weight; higher is kept.
      mask: the current mask; groups with fewer than n survivors keep what they have.
      n: survivors per group, 0 < n < m.
      m: group size; must divide the axis.
      axis: along which the groups lie. Default: the inputs of each layer, along which
        sparse tensor cores want their groups, where its name and its shape say which
        axes these are (`naming.input_axes`). Else one axis for all leaves, or one per
        pattern of the key path, of which the first that is found counts; leaves without
        a pattern keep the default.
      prunable: which leaves count.
      exclude: patterns of leaves that are never cut.

    Raises:
      ValueError: n or m out of range, inputs that are not known, an axis that m does not
        divide, a pattern that matches nothing; names the leaf.

    References:
      Mishra et al., Accelerating Sparse Deep Neural Networks, 2021, section 3.
    """
    n, m = errors.whole("n", n, 1), errors.whole("m", m, 2)
    if not 0 < n < m:
        raise ValueError(f"n={n}, m={m}; 0 < n < m must hold")
    _check(scores, mask)
    return _n_of_m(scores, mask, n, m, axis, prunable, exclude)


def _n_of_m(
    scores: Scores,
    mask: Mask,
    n: int | Array,
    m: int,
    axis: int | Mapping[str, int] | None,
    prunable: PrunableLike,
    exclude: Patterns,
) -> Mask:
    """`n_of_m` for any n up to m, which may be traced."""
    like = (mask, scores)
    scores, mask = trees.gathered(scores, mask)
    flags = masks.cuttable(mask, prunable, exclude)
    along = group_axes(mask, m, axis, flags)
    leaves, structure = jax.tree.flatten(mask)
    out = []

    def highest(s: Array, alive: Array) -> Array:
        dead = jnp.sum(~alive, axis=-1, dtype=jnp.int32)
        return jax.vmap(selection.drop_lowest)(s, alive, m - n - dead)

    for leaf, s, axes in zip(leaves, jax.tree.leaves(scores), along):
        out.append(leaf if axes is None else in_groups(highest, m, axes, s, leaf))
    return trees.placed(jax.tree.unflatten(structure, out), *like)


def in_groups(
    function: Callable[..., Array], m: int, axes: tuple[int, ...], *leaves: Array
) -> Array:
    """What a function makes of groups of m, in the shape of the leaves.

    Args:
      function: of the leaves as `[groups, m]`, to an array of that shape.
      m: size of a group.
      axes: along which the groups lie, from `group_axes`.
      *leaves: arrays of one shape.
    """
    last = tuple(range(-len(axes), 0))
    moved = [jnp.moveaxis(x, axes, last) for x in leaves]
    made = function(*(x.reshape(-1, m) for x in moved))
    return jnp.moveaxis(made.reshape(moved[0].shape), last, axes)


def group_axes(
    mask: Mask, m: int, axis: int | Mapping[str, int] | None, flags: list[bool]
) -> list[tuple[int, ...] | None]:
    """The axes along which the groups of each leaf lie; None for what is not cut.

    Args:
      mask: a mask, or its shapes.
      m: size of a group.
      axis: see `n_of_m`.
      flags: of the leaves that are cut, in tree order.

    Returns:
      Axes that are to be read as one.

    Raises:
      ValueError: as `n_of_m`.
    """
    shapes = {name: leaf.shape for name, leaf in trees.by_path(mask).items()}
    given = _by_pattern(mask, axis) if isinstance(axis, Mapping) else {}
    found: list[tuple[int, ...] | None] = []
    for (name, shape), cut in zip(shapes.items(), flags):
        if not cut:
            found.append(None)
            continue
        if axis is not None and not isinstance(axis, Mapping):
            axes: tuple[int, ...] | None = (axis,)
        elif name in given:
            axes = (given[name],)
        else:
            axes = naming.input_axes(name, shapes) if len(shape) > 1 else (-2,)
        if axes is None:
            own = trees.pattern(name, list(shapes))
            raise ValueError(
                f"n_of_m: neither the name {name!r} nor its shape {shape} says which axis "
                f"holds the inputs; pass it as axis={{{own!r}: ...}}"
            )
        inside = all(-len(shape) <= a < len(shape) for a in axes)
        if not inside or math.prod(shape[a] for a in axes) % m:
            which = axes[0] if len(axes) == 1 else axes
            raise ValueError(
                f"n_of_m: {name!r}, shape {shape}, has no axis {which} that is divisible "
                f"by m={m}; name the leaf in exclude="
            )
        found.append(axes)
    return found


def _check(scores: Scores, mask: Mask) -> None:
    masks.check(mask, scores, "scores")
    for i, s in enumerate(jax.tree.leaves(scores)):
        if jnp.issubdtype(jnp.result_type(s), jnp.complexfloating):
            raise ValueError(
                f"scores: leaf {trees.name_of(scores, i)!r} has dtype {s.dtype}; it must "
                "be real, so that there is a lowest one"
            )


def _check_amount(**amounts: object) -> None:
    given = [name for name, value in amounts.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {sorted(amounts)}; got {given}")


def _number(field: str, keep: Any, total: int) -> Array:
    """How many weights shall survive, int32 `[]`; checked where it is known."""
    if isinstance(keep, jax.core.Tracer):
        if keep.shape or not jnp.issubdtype(keep.dtype, jnp.integer):
            must = "an integer [] where it is traced"
            raise errors.wrong(field, f"{keep.dtype}{list(keep.shape)}", must)
        return jnp.clip(keep, 0, total).astype(jnp.int32)
    if getattr(keep, "shape", None) == ():
        keep = keep.item()
    return jnp.int32(min(errors.whole(field, keep, 0), total))


def _check_excluded(
    keep: Array, mask: Mask, prunable: PrunableLike, flags: list[bool]
) -> None:
    """Refuses to keep fewer weights than live in leaves that are never cut."""
    spared = [
        jnp.sum(m, dtype=jnp.int32)
        for m, counted, cut in zip(
            jax.tree.leaves(mask), masks.resolve(mask, prunable), flags
        )
        if counted and not cut
    ]
    if any(isinstance(x, jax.core.Tracer) for x in (keep, *spared)):
        return
    if int(keep) < (alive := sum(map(int, spared))):
        must = f"{alive} or more: so many live in leaves that are excluded from the cut"
        raise errors.wrong("keep", int(keep), must)


def _rates(
    mask: Mask, fraction: float | Mapping[str, float] | None, names: list[str]
) -> dict[str, float]:
    """The fraction of each leaf that is cut, by name."""
    if fraction is None:
        return {}
    if not isinstance(fraction, Mapping):
        return dict.fromkeys(names, fraction)
    found = _by_pattern(mask, fraction)
    for name in names:
        if name not in found:
            raise ValueError(
                f"fraction: no pattern of {sorted(fraction)} matches layer {name!r}; add "
                "one, or name the layer in exclude="
            )
    return {name: found[name] for name in names}


def _by_pattern(mask: Mask, given: Mapping[str, T]) -> dict[str, T]:
    """Of each leaf that a pattern matches the value of the first, by its name."""
    names = trees.paths(mask)
    found: dict[str, T] = {}
    for pattern, value in given.items():
        for name, hit in zip(names, jax.tree.leaves(trees.matching(mask, pattern))):
            if hit:
                found.setdefault(name, value)
    return found


def _flatten(scores: Scores, mask: Mask, flags: list[bool]) -> tuple[Array, Array]:
    """The flagged leaves as two flat vectors: scores and what is alive."""
    pick = [
        (s.reshape(-1), m.reshape(-1))
        for s, m, take in zip(jax.tree.leaves(scores), jax.tree.leaves(mask), flags)
        if take
    ]
    flat, alive = (selection.joined(parts) for parts in zip(*pick))
    return flat, alive


def _share_of(fraction: Any, alive: Array, how: Literal["round", "ceil"]) -> Array:
    """The number of weights that a fraction is, int32 `[]`.

    "round" is `fraction * alive` for the ratio that was meant, half to even. "ceil" is
    what float64 makes of it, as in open_lth: 0.55 of 100 is 56, because 0.55 * 100 is
    55.00000000000001 there.

    float32 is off from about 10^7 weights on. With fraction = p / q and
    alive = q * a + b the product is p * a + p * b / q, all in small integers.
    """
    if isinstance(fraction, jax.core.Tracer):
        must = "known when the function is traced; pass keep= instead"
        raise errors.wrong("fraction", "traced", must)
    errors.share("fraction", fraction)
    share = masks.exact(fraction)
    if not isinstance(alive, jax.core.Tracer):
        if how == "ceil":
            return jnp.int32(math.ceil(_double(fraction) * int(alive)))
        return jnp.int32(masks.exact_round(share * int(alive)))
    if share.denominator > masks.LARGEST_DENOMINATOR:
        raise ValueError(
            f"fraction={fraction} has too many digits to be counted exactly inside "
            "jit; round it to four digits, or pass keep="
        )
    p, q = share.numerator, share.denominator
    whole, rest = p * (alive // q), p * (alive % q)
    below, over = rest // q, rest % q
    value = whole + below
    if how == "ceil":
        return value + ((over > 0) | _rounds_up(fraction, share, value))
    up = (2 * over > q) | ((2 * over == q) & (value % 2 == 1))
    return value + up


def _double(fraction: Any) -> float:
    """A fraction as float64: the decimal that narrower floats stand for."""
    return float(str(np.asarray(fraction)[()]))


def _rounds_up(fraction: Any, share: Fraction, value: Array) -> Array:
    """Whether float64 makes more of `fraction * alive` than `value`, its exact product.

    The float64 of p / q is (p / q) (1 + e) for some tiny e, so the product is
    value * (1 + e) before it is rounded. For e > 0 it stays above `value` if
    value * e exceeds half the distance to the next float64, 2^(floor(log2 value) - 53):
    for each power of two that is a bound on `value`, computed here on the host.
    """
    error = Fraction(_double(fraction)) / share - 1
    if error <= 0:
        return jnp.zeros(jnp.shape(value), jnp.bool_)
    powers = [Fraction(2) ** (power - 53) / error for power in range(31)]
    bounds = np.array([min(math.floor(x), 2**31 - 1) for x in powers], np.int32)
    power = 31 - jax.lax.clz(jnp.maximum(value, 1))
    return (value > 0) & (value > jnp.asarray(bounds)[power])
