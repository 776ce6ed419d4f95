"""Masks: boolean pytrees with the structure and leaf shapes of the parameters.

A mask is True where a weight survives. Leaves that pruning may not touch (biases, norm
scales) are all True, never `None`, so that one `jax.tree.map` runs over a mask and its
parameters together. Everything here is pure and works under `jit` and `vmap`.

Which leaves count is the business of *prunable*: a pytree of Python bools. It is the
denominator of every density. Functions take it as a pytree, as a function of the tree,
or as None, which means `prunable(tree)`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import errors, naming, permutations, trees
from lottery_jax.trees import (
    Patterns,
    by_path,
    matching,
    paths,
)
from lottery_jax.trees import (
    leaf_path as leaf_path,
)
from lottery_jax.types import Array, Key, Mask, Params, Prunable, PyTree, Task

PrunableLike = Prunable | Callable[[PyTree], Prunable] | None

# Products of a numerator and a remainder below the denominator must fit into int32.
LARGEST_DENOMINATOR = 46_340

# --- which leaves ---------------------------------------------------------------------


def prunable(
    params: Params, include: Patterns | None = None, exclude: Patterns = ()
) -> Prunable:
    """Which leaves pruning may touch, resolved once on unbatched arrays or shapes.

    Without `include` these are the weight matrices and convolution kernels: leaves of at
    least two dimensions whose name says so, the last part of their key path. No leaf of
    two dimensions is left out unless its name says that it is none:

    - `kernel` (Linen, NNX), `w`, `w_i`, `w1` (Haiku, plain dicts), `weight_ih` and
      `in_proj_weight` count. A `weight` (Equinox) counts if it has a bias of fewer
      dimensions beside it, or belongs to a layer called `..._proj`.
    - `bias`, `scale`, `offset` and what a norm holds (a layer called `norm`, `BatchNorm_0`,
      `ln_1`; `beta` and `gamma`) do not, and a `b` does not if it lies beside a weight of
      more dimensions. They have two dimensions where layers are stacked (`nn.scan`).
    - Of any other (embeddings, a `weight` without a bias, leaves without a name) the call
      refuses to decide.

    Args:
      params: arrays, or shapes from `jax.eval_shape`. Without a replica axis.
      include: patterns of the key paths to take instead of the rule above.
      exclude: patterns of key paths to take out again. Such leaves do not count in any
        density; for leaves that count and are never cut, see `lottery_jax.prune`.

    Returns:
      A pytree of Python bools with the structure of params.

    Raises:
      ValueError: no leaf qualifies, a name does not settle what a leaf is (the message
        lists the candidates and what to pass), a weight matrix of integers, a leaf that
        is no array, or two leaves of one name.
    """
    trees.check_arrays(params, "params")
    leaves = by_path(params)
    names = list(leaves)
    dropped = (
        jax.tree.leaves(matching(params, exclude)) if exclude else [False] * len(names)
    )
    if include is not None:
        found = jax.tree.leaves(matching(params, include))
        chosen = [take and not out for take, out in zip(found, dropped)]
    else:
        shapes = {name: np.shape(leaf) for name, leaf in leaves.items()}
        left = [name for name, out in zip(names, dropped) if not out]
        kinds = {name: naming.is_weight(name, shapes) for name in left}
        integers = [
            name
            for name in left
            if kinds[name]
            and jnp.issubdtype(jnp.result_type(leaves[name]), jnp.integer)
        ]
        unclear = [name for name in left if kinds[name] is None or name in integers]
        if unclear:
            weights = [name for name in left if kinds[name] is not False]
            raise ValueError(_unclear(names, weights, unclear, exclude))
        chosen = [bool(kinds.get(name)) for name in names]
    if not any(chosen):
        raise ValueError(
            f"prunable: no prunable leaf among {names}; pass include= patterns of those "
            "that count: prunable=lambda tree: lj.masks.prunable(tree, include=...)"
        )
    return jax.tree.unflatten(jax.tree.structure(params), chosen)


def _unclear(
    names: list[str], weights: list[str], unclear: list[str], exclude: Patterns
) -> str:
    """What to say, and how to go on: code that can be copied as it stands."""

    given = [exclude] if isinstance(exclude, str) else list(exclude)
    ways = [
        ("include", "counts them", [trees.pattern(name, names) for name in weights])
    ]
    if len(unclear) < len(weights):
        out = given + [trees.pattern(name, names) for name in unclear]
        ways.append(("exclude", "leaves them out", out))
    none = "" if len(unclear) < len(weights) else f"no prunable leaf among {names}: "
    return (
        f"prunable: {none}the names do not say whether {unclear} are weights that pruning "
        "should touch (a norm, an embedding and a list of numbers may have such leaves); "
        "pass include= or exclude= patterns: "
        + ", ".join(
            f"prunable=lambda tree: lj.masks.prunable(tree, {way}={patterns}) {does}"
            for way, does, patterns in ways
        )
    )


def of_task(task: Task) -> Prunable:
    """The prunable leaves of a task: those that it names, or those of `prunable`.

    Raises:
      ValueError: there is none, a name does not settle what a leaf is, or all prunable
        leaves are excluded from being cut.
    """
    params = task.shapes[0]
    flags = task.prunable(params) if task.prunable else prunable(params)
    cuttable(params, flags, task.exclude)  # or it raises
    return flags


def resolve(tree: PyTree, prunable_: PrunableLike = None) -> list[bool]:
    """The prunable flags of a tree's leaves, in tree order.

    Raises:
      ValueError: the pytree of flags does not have the structure of `tree`, or
        `prunable(tree)` does not know; says what to pass as `prunable=`.
    """
    if prunable_ is None:
        prunable_ = prunable(tree)
    elif callable(prunable_) and jax.tree_util.all_leaves([prunable_]):
        # A pytree of flags may be callable too: an Equinox module is.
        prunable_ = prunable_(tree)
    trees.fit(prunable_, tree, ("prunable", "the tree"))
    return [bool(flag) for flag in jax.tree.leaves(prunable_)]


def check(mask: Mask, params: PyTree, name_of_params: str = "params") -> None:
    """Raises a ValueError that names the first leaf in which a mask does not fit."""
    trees.check_arrays(params, name_of_params)
    trees.fit(mask, params, ("mask", name_of_params))
    for i, (m, p) in enumerate(zip(jax.tree.leaves(mask), jax.tree.leaves(params))):
        if np.shape(m) != np.shape(p):
            raise ValueError(
                f"mask: leaf {trees.name_of(mask, i)!r} has shape {np.shape(m)}, "
                f"{name_of_params} have {np.shape(p)}"
            )
        dtype = getattr(m, "dtype", type(m).__name__)
        if dtype != jnp.bool_:
            raise ValueError(
                f"mask: leaf {trees.name_of(mask, i)!r} has dtype {dtype}, not bool"
            )


# --- make, apply, count ---------------------------------------------------------------


def ones_like(params: Params) -> Mask:
    """The mask under which every weight survives, placed as the weights are.

    Raises:
      ValueError: a leaf that is no array of numbers; names it.
    """
    trees.check_arrays(params, "params")
    mask = jax.tree.map(lambda p: jnp.ones(jnp.shape(p), jnp.bool_), params)
    return trees.placed(mask, params)


def apply(mask: Mask, params: Params) -> Params:
    """Sets the weights off the mask to exactly 0, nan and infinities included.

    Raises:
      ValueError: the mask does not fit; names the leaf.
    """
    check(mask, params)
    mask = trees.placed(mask, params)
    return jax.tree.map(lambda m, p: jnp.where(m, p, jnp.zeros_like(p)), mask, params)


def total(tree: PyTree, prunable: PrunableLike = None) -> int:
    """How many weights are prunable: the denominator of every density."""
    flags = resolve(tree, prunable)
    return sum(
        math.prod(x.shape) for x, take in zip(jax.tree.leaves(tree), flags) if take
    )


def count(mask: Mask, prunable: PrunableLike = None) -> Array:
    """How many prunable weights survive, int32 `[]`."""
    flags = resolve(mask, prunable)
    counts = trees.gathered(
        *(
            jnp.sum(m, dtype=jnp.int32)
            for m, take in zip(jax.tree.leaves(mask), flags)
            if take
        )
    )
    return sum(counts, start=jnp.zeros((), jnp.int32))


def layers(mask: Mask, prunable: PrunableLike = None) -> dict[str, Array]:
    """The prunable leaves of a mask, or of a tree beside it, by their key path."""
    flags = resolve(mask, prunable)
    return {name: m for (name, m), take in zip(by_path(mask).items(), flags) if take}


def density(mask: Mask, prunable: PrunableLike = None) -> Array:
    """The surviving share of the prunable weights, float32 `[]` in [0, 1]."""
    return count(mask, prunable) / jnp.float32(total(mask, prunable))


def layer_densities(mask: Mask, prunable: PrunableLike = None) -> dict[str, Array]:
    """The density of each prunable leaf by its key path, float32 `[]` each."""
    return {
        name: jnp.sum(m, dtype=jnp.int32) / jnp.float32(m.size)
        for name, m in layers(mask, prunable).items()
    }


# --- compare --------------------------------------------------------------------------


def is_subset(inner: Mask, outer: Mask) -> Array:
    """Whether every weight that survives in `inner` survives in `outer`, bool `[]`."""
    check(inner, outer)
    outer = trees.placed(outer, inner)
    within = jax.tree.map(lambda a, b: jnp.all(~a | b), inner, outer)
    return jnp.stack(jax.tree.leaves(trees.gathered(within))).all()


class Overlap(NamedTuple):
    """How alike two masks are, over the prunable weights.

    Attributes:
      iou: intersection over union of the survivors, float32 `[]`; 1 for two empty masks.
      hamming: share of the prunable weights on which the masks differ, float32 `[]`.
    """

    iou: Array
    hamming: Array


def overlap(a: Mask, b: Mask, prunable: PrunableLike = None) -> Overlap:
    """Intersection over union and normalised Hamming distance of two masks.

    The Hamming distance is that of Early-Bird tickets (You et al. 2020, section 4).
    """
    check(a, b)
    b = trees.placed(b, a)
    both = count(jax.tree.map(jnp.logical_and, a, b), prunable)
    either = count(jax.tree.map(jnp.logical_or, a, b), prunable)
    iou = jnp.where(either > 0, both / jnp.maximum(either, 1), 1.0)
    return Overlap(iou, (either - both) / jnp.float32(total(a, prunable)))


ALL_LAYERS = "all layers"
"""Where `overlaps` says what holds of all prunable weights together."""


class Overlaps(NamedTuple):
    """How alike several masks are, layer by layer; the diagonals are 1.

    Attributes:
      names: of the masks, N of them.
      iou: intersection over union of the survivors by layer, float64 `[N, N]`; the last
        one is `ALL_LAYERS`. 1 for two empty masks.
      chance: likewise, what masks that are independent of each other would have at the
        densities of the same layers: the intersection and the union that are expected,
        one over the other.
    """

    names: tuple[str, ...]
    iou: dict[str, np.ndarray]
    chance: dict[str, np.ndarray]


def overlaps(masks: Mapping[str, Mask], prunable: PrunableLike = None) -> Overlaps:
    """Intersection over union of each of several masks with each, and by chance.

    Two masks that leave most weights of the last layer alive have much in common there,
    whatever they were found by: what counts is how far they lie above chance.

    Args:
      masks: by what they are called; all of one network.
      prunable: what counts.

    Raises:
      ValueError: there is no mask, or one does not fit the first.
    """
    if not masks:
        raise errors.wrong("masks", "{}", "some masks by their names")
    first, *others = masks.values()
    for mask in others:
        check(mask, first, "the first mask")
    each = [layers(trees.host(mask), prunable) for mask in masks.values()]
    flat = {n: np.stack([np.ravel(own[n]) for own in each]) for n in each[0]}
    alive = {n: m.sum(axis=1, dtype=np.float64) for n, m in flat.items()}
    both = {n: _in_common(m) for n, m in flat.items()}
    chance = {n: x[:, None] * x / max(flat[n].shape[1], 1) for n, x in alive.items()}
    for counts in (alive, both, chance):
        counts[ALL_LAYERS] = np.sum(list(counts.values()), axis=0)
    found = Overlaps(
        tuple(masks),
        {name: _over_union(both[name], own) for name, own in alive.items()},
        {name: _over_union(chance[name], own) for name, own in alive.items()},
    )
    for matrix in found.chance.values():
        np.fill_diagonal(matrix, 1.0)
    return found


def _in_common(flat: np.ndarray) -> np.ndarray:
    """How many weights survive in both, of masks `[N, weights]`: float64 `[N, N]`."""
    return np.array([(flat & one).sum(axis=1) for one in flat], np.float64)


def _over_union(both: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Intersection over union, from counts `[N, N]` and `[N]`."""
    either = alive[:, None] + alive - both
    return np.where(either > 0, both / np.where(either > 0, either, 1), 1.0)


# --- controls -------------------------------------------------------------------------


def shuffle(
    key: Key,
    mask: Mask,
    scope: Literal["layerwise", "global"] = "layerwise",
    prunable: PrunableLike = None,
    exclude: Patterns = (),
) -> Mask:
    """Permutes a mask, keeping the number of survivors.

    The permutation depends on the key and the shapes alone: nested masks shuffled with
    one key stay nested.

    Args:
      key: draws the permutation.
      mask: the mask to permute.
      scope: "layerwise" keeps the count of each leaf, "global" only the count in all.
      prunable: what takes part; other leaves are returned as they are.
      exclude: patterns of leaves that do not take part although they are prunable.

    Raises:
      ValueError: unknown scope, or a pattern that matches nothing.
    """
    flags = cuttable(mask, prunable, exclude)
    leaves, structure = jax.tree.flatten(trees.gathered(mask)[0])
    if scope == "layerwise":
        leaves = [
            _permuted(jax.random.fold_in(key, i), m.reshape(-1)).reshape(m.shape)
            if take
            else m
            for i, (m, take) in enumerate(zip(leaves, flags))
        ]
    elif scope == "global":
        flat = jnp.concatenate(
            [m.reshape(-1) for m, take in zip(leaves, flags) if take]
        )
        leaves = scatter(leaves, flags, _permuted(key, flat))
    else:
        raise ValueError(f"scope={scope!r}; it must be 'layerwise' or 'global'")
    return trees.placed(jax.tree.unflatten(structure, leaves), mask)


def _permuted(key: Key, flat: Array) -> Array:
    places = jnp.arange(flat.size, dtype=jnp.int32)
    return flat[permutations.at(key, places, flat.size)]


def random(
    key: Key,
    params: Params,
    density: float,
    distribution: Literal["uniform", "erk"] = "uniform",
    prunable: PrunableLike = None,
    exclude: Patterns = (),
) -> Mask:
    """A random mask with exactly `round(density * total)` survivors.

    Args:
      key: draws the survivors.
      params: arrays or shapes.
      density: the surviving share of the prunable weights, in (0, 1].
      distribution: how the survivors are shared out among layers: "uniform" gives each
        the same density, "erk" the Erdos-Renyi-Kernel densities, proportional to the sum
        of a kernel's dimensions over their product (Evci et al. 2020, section 3).
      prunable: what counts.
      exclude: patterns of leaves that count and stay dense.

    Raises:
      ValueError: density outside (0, 1], or too small for the excluded leaves.
    """
    flags = resolve(params, prunable)
    cut = cuttable(params, prunable, exclude)
    leaves, structure = jax.tree.flatten(params)
    kept = iter(
        layer_counts(
            [p.shape for p, take in zip(leaves, flags) if take],
            density,
            distribution,
            dense=[not c for c, take in zip(cut, flags) if take],
        )
    )
    out = []
    for i, (p, take) in enumerate(zip(leaves, flags)):
        keep = next(kept) if take else math.prod(p.shape)
        places = jnp.arange(math.prod(p.shape), dtype=jnp.int32)
        if take and keep < places.size:
            places = permutations.at(jax.random.fold_in(key, i), places, places.size)
        out.append((places < keep).reshape(p.shape))
    return trees.placed(jax.tree.unflatten(structure, out), params)


def exact_round(value: Fraction) -> int:
    """Rounds an exact rational, half to even. Floats would be off near 10^7 weights."""
    return round(value)


def exact(number: float | Fraction) -> Fraction:
    """The rational that a person meant by a float: 0.2 is 1/5, not 0.2000000000000000111.

    Args:
      number: a rational, or any finite float of Python's, NumPy's or JAX's, of any
        precision. A ratio of small integers within its rounding error is taken (1/3, or
        3/10 for 1 - 0.7), else its shortest decimal form.
    """
    if isinstance(number, Fraction):
        return number
    value = np.asarray(number)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return Fraction(int(value))
    decimal = Fraction(str(value[()]))
    ratio = decimal.limit_denominator(LARGEST_DENOMINATOR)
    rounding = 4.5 * float(jnp.finfo(value.dtype).eps)
    return ratio if abs(ratio - decimal) <= abs(decimal) * rounding else decimal


def layer_counts(
    shapes: Sequence[tuple[int, ...]],
    density: float | Fraction,
    distribution: Literal["uniform", "erk"] = "uniform",
    dense: Sequence[bool] | None = None,
    groups: Sequence[int] | None = None,
) -> list[int]:
    """How many weights each layer keeps, adding up to exactly `round(density * total)`.

    Args:
      shapes: the shapes of the prunable leaves.
      density: over all of them, in (0, 1].
      distribution: "uniform" or "erk"; see `random`.
      dense: layers that keep every weight.
      groups: into how many groups of equal size the weights of each layer fall, which
        live or die as one: groups are counted instead of weights.

    Returns:
      Counts; fractional shares are rounded by the largest remainder, first layer first.

    Raises:
      ValueError: unknown distribution, density outside (0, 1], or a density that the
        dense layers alone exceed.
    """
    if not isinstance(density, Fraction):
        errors.at_least("density", density, 0)
    if not 0 < density <= 1:
        raise errors.wrong("density", density, "in (0, 1]")
    if distribution not in ("uniform", "erk"):
        raise ValueError(
            f"distribution={distribution!r}; it must be 'uniform' or 'erk'"
        )
    sizes = [math.prod(shape) for shape in shapes] if groups is None else [*groups]
    full = list(dense) if dense is not None else [False] * len(sizes)
    budget = exact_round(exact(density) * sum(sizes))
    while True:
        left = budget - sum(n for n, f in zip(sizes, full) if f)
        weights = [
            0
            if f
            else n
            if distribution == "uniform"
            else Fraction(sum(shape) * n, math.prod(shape) or 1)
            for shape, n, f in zip(shapes, sizes, full)
        ]
        if left < 0:
            raise ValueError(
                f"density={float(density)} leaves {budget} weights, fewer than the layers "
                f"that stay dense hold ({budget - left})"
            )
        if not sum(weights):
            return sizes
        shares = [left * Fraction(w) / sum(weights) for w in weights]
        # A layer that would get more than it has becomes dense; the rest share anew.
        overfull = [s > n for s, n in zip(shares, sizes)]
        if not any(overfull):
            break
        full = [f or o for f, o in zip(full, overfull)]
    kept = [n if f else int(s) for s, n, f in zip(shares, sizes, full)]
    by_remainder = sorted(
        range(len(sizes)), key=lambda i: (full[i], int(shares[i]) - shares[i])
    )
    for i in by_remainder[: budget - sum(kept)]:
        kept[i] += 1
    return kept


# --- one flat vector of what may be cut -----------------------------------------------


def cuttable(tree: PyTree, prunable: PrunableLike, exclude: Patterns) -> list[bool]:
    """Flags of the leaves that are prunable and not excluded, in tree order.

    Raises:
      ValueError: a pattern matches nothing, or nothing is left.
    """
    flags = resolve(tree, prunable)
    if not exclude:
        return flags
    out = jax.tree.leaves(matching(tree, exclude))
    flags = [take and not dropped for take, dropped in zip(flags, out)]
    if not any(flags):
        raise ValueError(
            f"exclude={exclude!r} leaves no prunable leaf of {paths(tree)}"
        )
    return flags


def scatter(leaves: list[Array], flags: list[bool], flat: Array) -> list[Array]:
    """Puts a flat vector back into the flagged leaves; the others stay."""
    out, start = [], 0
    for leaf, take in zip(leaves, flags):
        if take:
            size = math.prod(leaf.shape)
            leaf, start = flat[start : start + size].reshape(leaf.shape), start + size
        out.append(leaf)
    return out


# --- bits -----------------------------------------------------------------------------


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["bits"],
    meta_fields=["shapes", "places"],
)
@dataclasses.dataclass(frozen=True)
class Packed:
    """A mask at one bit per weight.

    Attributes:
      bits: structure of the mask, uint8 `[ceil(size / 8)]` leaves, first weight highest.
      shapes: the leaf shapes, in tree order (static).
      places: how each leaf was spread over devices, or None (static).
    """

    bits: PyTree
    shapes: tuple[tuple[int, ...], ...]
    places: tuple[jax.sharding.Sharding | None, ...]


def pack(mask: Mask) -> Packed:
    """Packs a mask to one bit per weight."""
    leaves, structure = jax.tree.flatten(mask)
    bits = [jnp.packbits(trees.gathered(m)[0].reshape(-1)) for m in leaves]
    return Packed(
        jax.tree.unflatten(structure, bits),
        tuple(tuple(m.shape) for m in leaves),
        tuple(trees.spread(m) for m in leaves),
    )


def unpack(packed: Packed) -> Mask:
    """The mask that was packed, where it lay."""
    leaves, structure = jax.tree.flatten(packed.bits)
    return jax.tree.unflatten(
        structure,
        [
            trees.put(
                jnp.unpackbits(bits, count=math.prod(shape))
                .astype(jnp.bool_)
                .reshape(shape),
                place,
            )
            for bits, shape, place in zip(leaves, packed.shapes, packed.places)
        ],
    )
