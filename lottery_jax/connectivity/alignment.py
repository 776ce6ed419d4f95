"""Git Re-Basin's weight matching: renumbers one network's units to resemble another's.

Renumbering the units of a group (`lottery_jax.models.units`) changes weights and not the
function, so two networks can be far apart and differ in nothing but the order of their
units. Matching finds an order that brings one close to the other; what is left of a
barrier then is not due to the order.

Weights are matched as they are. Networks of this package are exactly 0 off their masks,
so a mask counts through its weights, and `align` moves it along with them.

References:
  Ainsworth, Hayase and Srinivasa, Git Re-Basin: Merging Models modulo Permutation
  Symmetries, 2023, section 3.2 and algorithm 1; https://arxiv.org/abs/2209.04836
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import masks
from lottery_jax.types import Key, Mask, Network, Params, PyTree

Permutation: TypeAlias = dict[str, np.ndarray]
"""For each group the new order of its units, int `[n]`: out[i] = in[permutation[i]]."""


class UnitAxis(Protocol):
    """One axis of a leaf, such as a `lottery_jax.models.Axis`."""

    @property
    def group(self) -> str | None:
        """Name of the group of units that it indexes, or None."""

    @property
    def repeats(self) -> int:
        """Unit u of n is found at u, n + u, 2n + u ..., so many times."""


AxesLike: TypeAlias = Mapping[str, Sequence[UnitAxis]]
"""The axes of every leaf, by its key path (`masks.leaf_path`)."""


# --- permutations ---------------------------------------------------------------------


def permute(axes: AxesLike, tree: PyTree, permutation: Permutation) -> PyTree:
    """Renumbers the units of parameters, of a mask, or of anything else with their paths.

    Args:
      axes: of every leaf.
      tree: arrays, NumPy's or JAX's; may be traced. Any dtype.
      permutation: of every group that occurs in the tree (of others, too, if you like).
        NumPy arrays: not traced.

    Returns:
      The tree with `out[i] = in[permutation[i]]` along every axis of a group, in each
      repeat. Structure, shapes and dtypes stay; JAX arrays stay JAX arrays.

    Raises:
      ValueError: axes that do not fit the tree, a group without a permutation, a
        permutation of the wrong length or that is none.
    """
    sizes = _sizes(axes, tree)
    for group, n in sizes.items():
        if group not in permutation:
            raise ValueError(
                f"permutation: group {group!r} is missing; there are "
                f"{sorted(permutation)}"
            )
        _check_order(group, permutation[group], n)

    def leaf(path: tuple, x: Any) -> Any:
        xp: Any = jnp if isinstance(x, jax.Array) else np
        for i, axis in enumerate(axes[masks.leaf_path(path)]):
            if axis.group is not None:
                x = xp.take(x, _index(permutation[axis.group], axis.repeats), axis=i)
        return x

    return jax.tree_util.tree_map_with_path(leaf, tree)


def identity(axes: AxesLike, tree: PyTree) -> Permutation:
    """The permutation that leaves every unit of a tree where it is.

    Args:
      axes: of every leaf.
      tree: arrays or shapes.

    Raises:
      ValueError: axes that do not fit the tree; names the leaf.
    """
    return {group: np.arange(n) for group, n in _sizes(axes, tree).items()}


def inverse(permutation: Permutation) -> Permutation:
    """The permutation that undoes another.

    Raises:
      ValueError: an array that is no permutation; names the group.
    """
    for group, order in permutation.items():
        _check_order(group, order, np.size(order))
    return {group: np.argsort(order) for group, order in permutation.items()}


def compose(first: Permutation, second: Permutation) -> Permutation:
    """The permutation that does what `first` and, after it, `second` do.

    Raises:
      ValueError: permutations of other groups or lengths, or that are none.
    """
    if first.keys() != second.keys():
        raise ValueError(
            f"compose: first has groups {sorted(first)}, second {sorted(second)}; they "
            "must be the same"
        )
    for group, order in first.items():
        _check_order(group, order, np.size(order))
        _check_order(group, second[group], np.size(order))
    return {group: order[second[group]] for group, order in first.items()}


def random(axes: AxesLike, tree: PyTree, key: Key) -> Permutation:
    """A uniformly random permutation of the units of every group.

    Args:
      axes: of every leaf.
      tree: arrays or shapes.
      key: draws the permutation; not traced.

    Raises:
      ValueError: axes that do not fit the tree; names the leaf.
    """
    sizes = _sizes(axes, tree)
    return {
        group: np.asarray(
            jax.random.permutation(jax.random.fold_in(key, i), sizes[group])
        )
        for i, group in enumerate(sorted(sizes))
    }


# --- matching -------------------------------------------------------------------------


def match(
    axes: AxesLike, a: Params, b: Params, *, seed: int = 0, max_sweeps: int = 100
) -> Permutation:
    """The permutation that brings b close to a: Git Re-Basin's weight matching.

    Maximises the inner product of a and the permuted b, summed over all leaves, by
    coordinate descent: a step solves for one group, all others held, and is an exact
    linear assignment. A sweep is a step for every group, in random order; the end is a
    sweep without improvement.

    Two things differ from the paper's algorithm. A leaf with one group on two axes (the
    second layer of a `ResidualMLP`, stream to stream) makes the step a quadratic
    assignment. It is linearised: each of the two axes moves while the other is held at
    the current permutation, and the step is taken only if the inner product rises. And
    the descent also starts from where the groups have been matched one after another on
    what is already matched (see `_match_in_turn`), because from the identity, where
    the paper starts, it misses many exact copies (of Conv-4, for one). The better of the
    two ends is returned.

    Guarantees: the inner product is never below that of b as it is, nor below that of
    the paper's algorithm at this seed. A permuted copy is recovered if in turn, from
    groups next to inputs or classes on, the units of each group differ in the leaves that
    have no unmatched groups. That holds for trained or fresh dense weights; units that a
    sparse mask cut off from what is matched can break it. For other pairs the end is a
    local optimum: how high depends on the seed.

    Args:
      axes: of every leaf.
      a: weights of the network to resemble; arrays, not traced.
      b: weights of the network to renumber, of the same structure and shapes.
      seed: of the order of the groups, at least 0.
      max_sweeps: of each descent, at least 1; the permutation at that point is returned
        as it is.

    Returns:
      `permute(axes, b, match(axes, a, b))` is close to a.

    Raises:
      ValueError: trees that do not match or weights that are not finite (says at which
        leaf), axes that do not fit, max_sweeps < 1.

    References:
      Ainsworth et al. 2023, section 3.2, algorithm 1. The linearised step is that of FAQ
      (Vogelstein et al., Fast Approximate Quadratic Programming, 2015), undamped.
    """
    if max_sweeps < 1:
        raise ValueError(f"max_sweeps={max_sweeps}; it must be at least 1")
    _check_same(a, b, "b")
    start = identity(axes, b)
    pair = _pair(axes, _weights(a, "a"), _weights(b, "b"))
    rng = np.random.default_rng(seed)
    ends = [
        _descend(pair, begin, rng, max_sweeps)
        for begin in (start, _match_in_turn(pair, start))
    ]
    return max(ends, key=lambda end: pair.inner(end))  # of equals the first


class Aligned(NamedTuple):
    """A network in another's order of units.

    Attributes:
      network: the same function as before, the units renumbered.
      mask: its mask, renumbered with the weights; None if there was none.
      permutation: what was done, by group.
    """

    network: Network
    mask: Mask | None
    permutation: Permutation


def align(
    axes: AxesLike,
    a: Network,
    b: Network,
    *,
    state_axes: AxesLike | None = None,
    mask: Mask | None = None,
    seed: int = 0,
) -> Aligned:
    """Renumbers the units of b to resemble a: weights, model state and mask.

    Only weights are matched; the model state and the mask follow.

    Args:
      axes: of every parameter (`models.units`).
      a: the network to resemble.
      b: the network to renumber, of the same structure and shapes; 0 off its mask.
      state_axes: of every leaf of the model state (`models.state_units`); needed if that
        has leaves with axes.
      mask: of b. The mask of a takes no part.
      seed: see `match`.

    Raises:
      ValueError: a model state without `state_axes`, a mask that does not fit b, and what
        `match` raises.
    """
    state = b.model_state
    _check_same(a.model_state, state, "b.model_state")
    if state_axes is None:
        with_axes = [
            name
            for name, x in zip(masks.paths(state), jax.tree.leaves(state))
            if np.ndim(x)
        ]
        if with_axes:
            raise ValueError(
                f"state_axes=None, but b.model_state has leaves with axes, {with_axes}; "
                "pass their axes (models.state_units), so that they move with the weights"
            )
        state_axes = {name: () for name in masks.paths(state)}
    if mask is not None:
        masks.check(mask, b.params, "b.params")
    sizes, state_sizes = _sizes(axes, b.params), _sizes(state_axes, state)
    for group, n in state_sizes.items():
        if sizes.get(group) != n:
            raise ValueError(
                f"state_axes: group {group!r} has {n} units in b.model_state and "
                f"{sizes.get(group, 'none')} in b.params; they must be the same"
            )
    permutation = match(axes, a.params, b.params, seed=seed)
    return Aligned(
        Network(
            permute(axes, b.params, permutation),
            permute(state_axes, state, permutation),
        ),
        None if mask is None else permute(axes, mask, permutation),
        permutation,
    )


# --- the assignment -------------------------------------------------------------------


class _Pair(NamedTuple):
    """Two networks' weights, and where each group is found in them.

    Attributes:
      axes: of every leaf.
      a: leaves of the network to resemble by key path, float64.
      b: leaves of the other, likewise.
      places: for each group the leaves and dimensions that it indexes.
      meets: for each group those that index other dimensions of the same leaves; itself,
        if it indexes two.
      rounding: differences of inner products that are no larger are rounding.
    """

    axes: AxesLike
    a: dict[str, np.ndarray]
    b: dict[str, np.ndarray]
    places: dict[str, list[tuple[str, int]]]
    meets: dict[str, set[str]]
    rounding: float

    def inner(self, permutation: Permutation, paths: Iterable[str] = ()) -> float:
        """The inner product of a and the permuted b, over some leaves or all."""
        return math.fsum(
            float(np.vdot(self.a[path], self.moved(path, permutation)))
            for path in paths or self.a
        )

    def moved(
        self, path: str, permutation: Permutation, hold: int | None = None
    ) -> np.ndarray:
        """A leaf of b, permuted along every axis but one."""
        x = self.b[path]
        for i, axis in enumerate(self.axes[path]):
            if axis.group is not None and i != hold:
                x = x.take(_index(permutation[axis.group], axis.repeats), axis=i)
        return x

    def assign(
        self,
        group: str,
        places: Iterable[tuple[str, int]],
        permutation: Permutation,
    ) -> tuple[np.ndarray, float]:
        """The best order of a group's units, judged by these leaves and axes.

        Entry (i, j) of the gains is what b's unit j adds in the place of a's unit i, all
        other axes permuted as they are now.

        Returns:
          The order, and by how much the sum of its gains exceeds that of the present one.
        """
        from scipy.optimize import linear_sum_assignment

        now = permutation[group]
        gains = np.zeros((len(now), len(now)))
        for path, i in places:
            repeats = self.axes[path][i].repeats
            moved = self.moved(path, permutation, hold=i)
            gains += _by_unit(self.a[path], i, repeats) @ _by_unit(moved, i, repeats).T
        units, order = linear_sum_assignment(gains, maximize=True)
        return order, float(gains[units, order].sum() - gains[units, now].sum())


def _pair(axes: AxesLike, a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> _Pair:
    places: dict[str, list[tuple[str, int]]] = {}
    meets: dict[str, set[str]] = {}
    for path in a:
        found = [(i, x.group) for i, x in enumerate(axes[path]) if x.group is not None]
        for i, group in found:
            places.setdefault(group, []).append((path, i))
            others = {other for k, other in found if k != i}
            meets.setdefault(group, set()).update(others)
    squares = [sum(float(np.vdot(x, x)) for x in tree.values()) for tree in (a, b)]
    norms = [math.sqrt(square) for square in squares]
    return _Pair(axes, a, b, places, meets, 1e-12 * norms[0] * norms[1])


def _descend(
    pair: _Pair, permutation: Permutation, rng: np.random.Generator, max_sweeps: int
) -> Permutation:
    """Coordinate descent from a permutation to one that no step improves."""
    groups = sorted(pair.places)
    # A step's outcome is known while the groups that it depends on stay as they were.
    open_ = set(groups)
    for _ in range(max_sweeps):
        for i in rng.permutation(len(groups)):
            group = groups[i]
            if group not in open_:
                continue
            open_.discard(group)
            places = pair.places[group]
            order, gain = pair.assign(group, places, permutation)
            moved = {**permutation, group: order}
            if group in pair.meets[group]:
                # The gains are an approximation: they held one axis, and both move.
                paths = dict.fromkeys(path for path, _ in places)
                gain = pair.inner(moved, paths) - pair.inner(permutation, paths)
            # Of equally good orders (units that are all 0) the present one stays.
            if gain > pair.rounding:
                permutation = moved
                open_ |= pair.meets[group]
        if not open_:
            break
    return permutation


def _match_in_turn(pair: _Pair, permutation: Permutation) -> Permutation:
    """Matches each group once, on the leaves whose other groups are already matched.

    First come the groups that read inputs or make classes, whose order is no unknown.
    The next one is always that of which most is known: the share of its units' variation
    that lies in such leaves. Leaves in which all units are alike, norm scales of 1 for
    example, tell nothing and count for nothing.
    """
    variation = {
        group: {
            (path, i): _variation(pair.a[path], i, pair.axes[path][i].repeats)
            for path, i in places
        }
        for group, places in pair.places.items()
    }

    def known(group: str) -> list[tuple[str, int]]:
        return [
            (path, i)
            for path, i in pair.places[group]
            if all(
                axis.group is None or axis.group not in left
                for k, axis in enumerate(pair.axes[path])
                if k != i
            )
        ]

    def share(group: str) -> float:
        total = sum(variation[group].values())
        return sum(variation[group][p] for p in known(group)) / total if total else 0.0

    left = sorted(pair.places)
    while left:
        group = max(left, key=share)
        order, _ = pair.assign(group, known(group), permutation)
        permutation = {**permutation, group: order}
        left.remove(group)
    return permutation


def _by_unit(x: np.ndarray, axis: int, repeats: int) -> np.ndarray:
    """A leaf as one row for each unit, `[n, size / n]`."""
    n = x.shape[axis] // repeats
    rows = np.moveaxis(x, axis, 0).reshape(repeats, n, -1)
    return np.moveaxis(rows, 1, 0).reshape(n, -1)


def _variation(x: np.ndarray, axis: int, repeats: int) -> float:
    rows = _by_unit(x, axis, repeats)
    return float(np.square(rows - rows.mean(axis=0)).sum())


def _index(order: np.ndarray, repeats: int) -> np.ndarray:
    """The order of an axis along which the units repeat."""
    order = np.asarray(order)
    return (np.arange(repeats)[:, None] * len(order) + order).ravel()


# --- checks ---------------------------------------------------------------------------


def _sizes(axes: AxesLike, tree: PyTree) -> dict[str, int]:
    """The number of units of every group in a tree; raises where axes do not fit."""
    sizes: dict[str, int] = {}
    for path, leaf in zip(masks.paths(tree), jax.tree.leaves(tree)):
        shape = np.shape(leaf)
        if path not in axes:
            raise ValueError(f"axes: leaf {path!r} is missing; there are {list(axes)}")
        if len(axes[path]) != len(shape):
            raise ValueError(
                f"axes: leaf {path!r} has shape {shape} and {len(axes[path])} axes; there "
                "must be one for each dimension (networks are not stacked)"
            )
        for i, (axis, size) in enumerate(zip(axes[path], shape)):
            if axis.group is None:
                continue
            n, rest = divmod(size, axis.repeats)
            if rest:
                raise ValueError(
                    f"axes: axis {i} of leaf {path!r}, of size {size}, does not hold "
                    f"group {axis.group!r} {axis.repeats} times; repeats must divide it"
                )
            if sizes.setdefault(axis.group, n) != n:
                raise ValueError(
                    f"axes: group {axis.group!r} has {n} units in leaf {path!r} and "
                    f"{sizes[axis.group]} before it; they must be the same"
                )
    return sizes


def _check_order(group: str, order: np.ndarray, n: int) -> None:
    values = np.asarray(order)
    if values.shape != (n,):
        raise ValueError(
            f"permutation: group {group!r} has shape {values.shape}; it must be ({n},), "
            "one entry for each unit"
        )
    if values.dtype.kind not in "iu" or not np.array_equal(
        np.sort(values), np.arange(n)
    ):
        raise ValueError(
            f"permutation: group {group!r} is {values.tolist()}, of dtype "
            f"{values.dtype}; it must hold each integer of [0, {n}) once"
        )


def _check_same(a: PyTree, b: PyTree, name: str) -> None:
    """Raises a ValueError that says where b differs from a in structure or shape."""
    first, second = (
        dict(zip(masks.paths(tree), jax.tree.leaves(tree))) for tree in (a, b)
    )
    for path in [*first, *second]:
        if path not in first or path not in second:
            where = "only in" if path in second else "missing in"
            raise ValueError(
                f"leaf {path!r} is {where} {name}; both must have the same"
            )
        if np.shape(first[path]) != np.shape(second[path]):
            raise ValueError(
                f"leaf {path!r} has shape {np.shape(second[path])} in {name} and "
                f"{np.shape(first[path])} in the network to resemble; they must be the "
                "same"
            )
    if not masks.same_structure(a, b):
        raise ValueError(
            f"{name}: its containers, {jax.tree.structure(b)}, are not those of the "
            f"network to resemble, {jax.tree.structure(a)}"
        )


def _weights(tree: Params, name: str) -> dict[str, np.ndarray]:
    """The leaves by key path, as float64: sums of millions of products stay exact enough."""
    out = {}
    for path, leaf in zip(masks.paths(tree), jax.tree.leaves(tree)):
        out[path] = np.asarray(leaf).astype(np.float64)
        if not np.isfinite(out[path]).all():
            raise ValueError(
                f"{name}: leaf {path!r} has weights that are not finite; a diverged "
                "network cannot be matched"
            )
    return out
