"""Git Re-Basin's weight matching: renumbers one network's units to resemble another's.

Renumbering the units of a group (`lottery_jax.units`) changes weights and not the
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
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import jax
import numpy as np

from lottery_jax import errors, masks, trees, units
from lottery_jax.keys import check_seed, settled
from lottery_jax.types import Key, Mask, Network, Params, PyTree
from lottery_jax.units import Axes

Permutation: TypeAlias = dict[str, np.ndarray]
"""For each group the new order of its units, int `[n]`: out[i] = in[permutation[i]]."""


# --- permutations ---------------------------------------------------------------------


def permute(axes: Axes, tree: PyTree, permutation: Permutation) -> PyTree:
    """Renumbers the units of parameters, of a mask, or of anything else with their paths.

    Args:
      axes: of every leaf.
      tree: arrays, NumPy's or JAX's; may be traced. Any dtype.
      permutation: of every group that occurs in the tree (of others, too, if you like).
        NumPy arrays: not traced.

    Returns:
      The tree with `out[i] = in[permutation[i]]` along every axis of a group, in each
      repeat: `units.take` of all units.

    Raises:
      ValueError: axes that do not fit the tree, a group without a permutation, a
        permutation of the wrong length or that is none.
    """
    for group, n in units.sizes(axes, tree).items():
        if group not in permutation:
            raise ValueError(
                f"permutation={list(permutation)}; there must be that of group {group!r}, "
                "too"
            )
        _check_order(group, permutation[group], n)
    return units.take(axes, tree, permutation)


def identity(axes: Axes, tree: PyTree) -> Permutation:
    """The permutation that leaves every unit of a tree where it is.

    Args:
      axes: of every leaf.
      tree: arrays or shapes.

    Raises:
      ValueError: axes that do not fit the tree; names the leaf.
    """
    return {group: np.arange(n) for group, n in units.sizes(axes, tree).items()}


@settled
def random(axes: Axes, tree: PyTree, key: Key) -> Permutation:
    """A uniformly random permutation of the units of every group.

    Args:
      axes: of every leaf.
      tree: arrays or shapes.
      key: draws the permutation; not traced.

    Raises:
      ValueError: axes that do not fit the tree; names the leaf.
    """
    sizes = units.sizes(axes, tree)
    return {
        group: np.asarray(
            jax.random.permutation(jax.random.fold_in(key, i), sizes[group])
        )
        for i, group in enumerate(sorted(sizes))
    }


# --- matching -------------------------------------------------------------------------


def match(
    axes: Axes, a: Params, b: Params, *, seed: int = 0, max_sweeps: int = 100
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
      seed: of the order of the groups, in [0, 2**32).
      max_sweeps: of each descent, at least 1; the permutation at that point is returned
        as it is.

    Returns:
      `permute(axes, b, match(axes, a, b))` is close to a.

    Raises:
      ValueError: trees that do not match or weights that are not finite (says at which
        leaf), axes that do not fit, max_sweeps < 1, no such seed.

    References:
      Ainsworth et al. 2023, section 3.2, algorithm 1. The linearised step is that of FAQ
      (Vogelstein et al., Fast Approximate Quadratic Programming, 2015), undamped.
    """
    errors.at_least("max_sweeps", max_sweeps, 1)
    trees.same(a, b)
    start = identity(axes, b)
    pair = _pair(axes, _weights(a, "a"), _weights(b, "b"))
    rng = np.random.default_rng(check_seed(seed))
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
    axes: Axes,
    a: Network,
    b: Network,
    *,
    state_axes: Axes | None = None,
    mask: Mask | None = None,
    seed: int = 0,
) -> Aligned:
    """Renumbers the units of b to resemble a: weights, model state and mask.

    Only weights are matched; the model state and the mask follow.

    Args:
      axes: of every parameter (`units.of_params`).
      a: the network to resemble.
      b: the network to renumber, of the same structure and shapes; 0 off its mask.
      state_axes: of every leaf of the model state (`units.of_state`); needed if that
        has leaves with axes.
      mask: of b. The mask of a takes no part.
      seed: see `match`.

    Raises:
      ValueError: a model state without `state_axes`, a mask that does not fit b, and what
        `match` raises.
    """
    state = b.model_state
    trees.same(a.model_state, state, ("a.model_state", "b.model_state"))
    if state_axes is None:
        with_axes = [name for name, x in trees.by_path(state).items() if np.ndim(x)]
        if with_axes:
            raise ValueError(
                f"state_axes=None; it must be those of b.model_state (units.of_state), so "
                f"that {with_axes} move with the weights"
            )
        state_axes = {name: () for name in trees.paths(state)}
    if mask is not None:
        masks.check(mask, b.params, "b.params")
    sizes = units.sizes(axes, b.params)
    for group, n in units.sizes(state_axes, state).items():
        if sizes.get(group) != n:
            raise ValueError(
                f"state_axes: group {group!r} has {n} units in b.model_state; it must "
                f"have {sizes.get(group, 'none')}, as in b.params"
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

    axes: Axes
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
                x = x.take(axis.places(permutation[axis.group], x.shape[i]), axis=i)
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
        rows, order = linear_sum_assignment(gains, maximize=True)
        return order, float(gains[rows, order].sum() - gains[rows, now].sum())


def _pair(axes: Axes, a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> _Pair:
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


# --- checks ---------------------------------------------------------------------------


def _check_order(group: str, order: np.ndarray, n: int) -> None:
    values = np.asarray(order)
    whole = values.shape == (n,) and values.dtype.kind in "iu"
    if not whole or not np.array_equal(np.sort(values), np.arange(n)):
        raise ValueError(
            f"permutation[{group!r}]={values.tolist()}; it must hold each integer of "
            f"[0, {n}) once"
        )


def _weights(tree: Params, name: str) -> dict[str, np.ndarray]:
    """The leaves by key path, as float64: sums of millions of products stay exact enough."""
    out = {}
    for path, leaf in trees.by_path(tree).items():
        out[path] = np.asarray(leaf).astype(np.float64)
        if not np.isfinite(out[path]).all():
            raise ValueError(
                f"{name}: leaf {path!r} has weights that are not finite; all must be (a "
                "diverged network cannot be matched)"
            )
    return out
