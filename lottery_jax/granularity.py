"""What lives and dies together: single weights, blocks, channels, or n of every m.

    mask = lj.prune.to_density(scores, mask, 0.25, granularity=lj.granularity.Block((4, 4)))

Where weights go by blocks or channels, a *group* has one score, the mean or the maximum of
those of its weights, and lives or dies as one; densities are then shares of the groups of
the leaves that are cut. `reduced` makes of a tree one of groups, which is pruned as single
weights are, and `expanded` makes a mask of all weights again.

Which axes of a leaf are its inputs, its outputs and its window follows from its name and
shape, or is named.

Mao et al., Exploring the Granularity of Sparsity in Convolutional Neural Networks, 2017.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from lottery_jax import errors, naming, trees
from lottery_jax.types import Array, Mask, PyTree, Scores

Pool = Literal["mean", "max"]


@dataclasses.dataclass(frozen=True)
class Block:
    """Blocks of weights that lie side by side, for each place of a window.

    Attributes:
      shape: how many inputs and outputs a block has; they must divide those of each leaf.
      axes: which axes are the inputs and the outputs; None where names say it.
      pool: the score of a block: the mean of those of its weights, or the largest.

    Raises:
      ValueError: no two numbers of 1 or more; an unknown pool.

    Example:
      >>> from lottery_jax import masks, prune
      >>> scores = {"kernel": jnp.arange(16.0).reshape(4, 4)}
      >>> full = masks.ones_like(scores)
      >>> mask = prune.to_density(scores, full, 0.5, granularity=Block((2, 2)))
      >>> mask["kernel"].astype(int).tolist()
      [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    """

    shape: tuple[int, int]
    axes: tuple[int, int] | None = None
    pool: Pool = "mean"

    def __post_init__(self) -> None:
        for field, given, low in (("shape", self.shape, 1), ("axes", self.axes, None)):
            if given is not None and len(errors.wholes(field, given, low)) != 2:
                raise errors.wrong(field, given, "two numbers: of inputs and outputs")
        errors.one_of("pool", self.pool, ("mean", "max"))


@dataclasses.dataclass(frozen=True)
class Channel:
    """All weights that lead into one output: a neuron, or a filter of a convolution.

    The outputs of a classifier's last layer are its classes: name that layer in `exclude=`.

    Attributes:
      axis: which axis is the outputs; None where names say it.
      pool: the score of a channel: the mean of those of its weights (its L1 norm over its
        size, where scores are magnitudes), or the largest.

    Raises:
      ValueError: an axis that is no number; an unknown pool.

    Example:
      >>> from lottery_jax import masks, prune
      >>> scores = {"kernel": jnp.array([[1.0, 9.0, 2.0], [3.0, 0.0, 1.0]])}
      >>> full = masks.ones_like(scores)
      >>> mask = prune.to_density(scores, full, 1 / 3, granularity=Channel())
      >>> mask["kernel"].astype(int).tolist()
      [[0, 1, 0], [0, 1, 0]]

    References:
      Li et al., Pruning Filters for Efficient ConvNets, 2017, section 3.1.
    """

    axis: int | None = None
    pool: Pool = "mean"

    def __post_init__(self) -> None:
        if self.axis is not None:
            errors.whole("axis", self.axis)
        errors.one_of("pool", self.pool, ("mean", "max"))


@dataclasses.dataclass(frozen=True)
class NofM:
    """n of every m consecutive weights along the inputs live; see `prune.n_of_m`.

    Its density is n / m in every leaf that is cut.

    Attributes:
      n: survivors per group, 0 < n < m.
      m: size of a group; it must divide the inputs of each leaf.
      axis: along which the groups lie; None where names say it.

    Raises:
      ValueError: n or m out of range.

    Example:
      >>> from lottery_jax import masks, prune
      >>> scores = {"kernel": jnp.array([[1.0, 9.0], [3.0, 0.0], [2.0, 1.0], [4.0, 2.0]])}
      >>> full = masks.ones_like(scores)
      >>> mask = prune.to_density(scores, full, 0.5, granularity=NofM(2, 4))
      >>> mask["kernel"].astype(int).tolist()
      [[0, 1], [1, 0], [0, 0], [1, 1]]

    References:
      Mishra et al., Accelerating Sparse Deep Neural Networks, 2021, section 3.
    """

    n: int
    m: int
    axis: int | None = None

    def __post_init__(self) -> None:
        errors.whole("n", self.n, 1)
        errors.whole("m", self.m, 2)
        if self.n >= self.m:
            raise ValueError(f"n={self.n}, m={self.m}; 0 < n < m must hold")
        if self.axis is not None:
            errors.whole("axis", self.axis)


Groups: TypeAlias = Block | Channel
"""Groups that live or die as one."""

Granularity: TypeAlias = Block | Channel | NofM | None
"""What lives and dies together; None for each weight by itself."""


def check(granularity: Granularity) -> None:
    """Raises a ValueError if something is no granularity."""
    if granularity is not None:
        must = "None, or a granularity.Block, Channel or NofM"
        errors.is_a("granularity", granularity, (Block, Channel, NofM), must)


def reduced(
    granularity: Groups, scores: Scores, flags: list[bool], mask: Mask | None = None
) -> Scores:
    """The score of each group of the flagged leaves; the others stay.

    Args:
      granularity: blocks or channels.
      scores: of weights, real.
      flags: of the leaves that are cut, in tree order.
      mask: of weights: what is dead has no part in the score of its group; None where all
        have. The score of a group that is dead says nothing.

    Raises:
      ValueError: a leaf that cannot be cut into such groups; names it.
    """
    own = iter([None] * len(flags) if mask is None else jax.tree.leaves(mask))

    def pooled(x: Array, cut: "_Cut") -> Array:
        alive = next(own)
        x, members = cut.split(x)
        if alive is not None:
            alive, _ = cut.split(alive)
        if granularity.pool == "max":
            x = x if alive is None else jnp.where(alive, x, _lowest(x.dtype))
            return jnp.max(x, axis=members)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.mean(x, axis=members, dtype=wide, where=alive)

    return _each(granularity, scores, flags, pooled, lambda x: (x, next(own))[0])


def _lowest(dtype: jnp.dtype) -> Array:
    """A score below all others."""
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.array(-jnp.inf, dtype)
    return jnp.array(0 if dtype == jnp.bool_ else jnp.iinfo(dtype).min, dtype)


def alive(granularity: Groups, mask: Mask, flags: list[bool]) -> Mask:
    """Which groups have a weight that is alive; a mask of groups.

    Args:
      granularity: blocks or channels.
      mask: of weights.
      flags: of the leaves that are cut, in tree order.
    """

    def any_of(x: Array, cut: "_Cut") -> Array:
        x, members = cut.split(x)
        return jnp.any(x, axis=members)

    return _each(granularity, mask, flags, any_of)


def expanded(granularity: Groups, groups: Mask, mask: Mask, flags: list[bool]) -> Mask:
    """The weights of a mask whose groups live.

    Args:
      granularity: blocks or channels.
      groups: a mask of groups, of the flagged leaves.
      mask: of weights; a subset of it is returned.
      flags: of the leaves that are cut, in tree order.
    """
    whole = iter(jax.tree.leaves(groups))
    return _each(
        granularity,
        mask,
        flags,
        lambda x, cut: x & cut.joined(next(whole)),
        lambda x: (next(whole), x)[1],
    )


def numbers(
    granularity: Groups, tree: PyTree, flags: list[bool]
) -> dict[str, tuple[int, ...]]:
    """The shape of the groups of each flagged leaf, by its key path.

    Args:
      granularity: blocks or channels.
      tree: arrays or shapes.
      flags: of the leaves that are cut, in tree order.

    Raises:
      ValueError: a leaf that cannot be cut into such groups; names it.
    """
    shapes = {name: tuple(x.shape) for name, x in trees.by_path(tree).items()}
    return {
        name: _cut(granularity, name, shapes).groups
        for name, take in zip(shapes, flags)
        if take
    }


# --- one leaf -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Cut:
    """How a leaf is cut: its axes in another order, reshaped, some of them of a group."""

    order: tuple[int, ...]
    moved: tuple[int, ...]  # its shape in that order
    shape: tuple[int, ...]
    members: tuple[int, ...]

    @property
    def groups(self) -> tuple[int, ...]:
        return tuple(n for i, n in enumerate(self.shape) if i not in self.members)

    def split(self, x: Array) -> tuple[Array, tuple[int, ...]]:
        """The leaf cut, and the axes within a group."""
        return jnp.transpose(x, self.order).reshape(self.shape), self.members

    def joined(self, groups: Array) -> Array:
        """What groups have, for each weight of the leaf."""
        whole = jnp.broadcast_to(jnp.expand_dims(groups, self.members), self.shape)
        back = tuple(self.order.index(i) for i in range(len(self.order)))
        return jnp.transpose(whole.reshape(self.moved), back)


def _each(
    granularity: Groups,
    tree: PyTree,
    flags: list[bool],
    function: Callable[[Array, _Cut], Array],
    other: Callable[[Array], Array] = lambda x: x,
) -> PyTree:
    """A function of the flagged leaves, and of how each is cut."""
    leaves, structure = jax.tree.flatten(tree)
    shapes = dict(zip(trees.paths(tree), (tuple(x.shape) for x in leaves)))
    out = [
        function(x, _cut(granularity, name, shapes)) if take else other(x)
        for x, name, take in zip(leaves, shapes, flags)
    ]
    return jax.tree.unflatten(structure, out)


def _cut(granularity: Groups, name: str, shapes: Mapping[str, tuple[int, ...]]) -> _Cut:
    if isinstance(granularity, Channel):
        return _channels(granularity, name, shapes)
    return _blocks(granularity, name, shapes)


def _channels(
    granularity: Channel, name: str, shapes: Mapping[str, tuple[int, ...]]
) -> _Cut:
    shape = shapes[name]
    stack: tuple[int, ...]
    outputs: tuple[int, ...]
    if granularity.axis is not None:
        (axis,) = _named(name, shape, "axis", (granularity.axis,))
        stack, outputs = (), (axis,)
    else:
        found = _layout(name, shapes, "granularity=Channel(axis=...)")
        stack, outputs = found.stack, found.outputs
    rest = tuple(i for i in range(len(shape)) if i not in (*stack, *outputs))
    order = (*stack, *rest, *outputs)
    moved = tuple(shape[i] for i in order)
    lead, size = moved[: len(stack)], math.prod(shape[i] for i in rest)
    number = math.prod(shape[i] for i in outputs)
    return _Cut(order, moved, (*lead, size, number), (len(stack),))


def _blocks(
    granularity: Block, name: str, shapes: Mapping[str, tuple[int, ...]]
) -> _Cut:
    shape = shapes[name]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    if granularity.axes is not None:
        i, o = _named(name, shape, "axes", granularity.axes)
        inputs, outputs = (i,), (o,)
    else:
        found = _layout(
            name, shapes, f"granularity=Block({granularity.shape}, axes=...)"
        )
        inputs, outputs = found.inputs, found.outputs
    rest = tuple(i for i in range(len(shape)) if i not in (*inputs, *outputs))
    order = (*rest, *inputs, *outputs)
    moved = tuple(shape[i] for i in order)
    sizes = [math.prod(shape[i] for i in axes) for axes in (inputs, outputs)]
    for size, by, what in zip(sizes, granularity.shape, ("inputs", "outputs")):
        if size % by:
            raise ValueError(
                f"granularity=Block({granularity.shape}): {name!r}, shape {shape}, has "
                f"{size} {what}, which {by} does not divide; name the leaf in exclude="
            )
    (a, b), lead = granularity.shape, moved[: len(rest)]
    whole = (*lead, sizes[0] // a, a, sizes[1] // b, b)
    return _Cut(order, moved, whole, (len(lead) + 1, len(lead) + 3))


def _layout(
    name: str, shapes: Mapping[str, tuple[int, ...]], say: str
) -> naming.Layout:
    found = naming.layout(name, shapes)
    if found is None:
        raise ValueError(
            f"granularity: neither the name {name!r} nor its shape {shapes[name]} says "
            f"which axes hold its inputs and outputs; pass {say}"
        )
    return found


def _named(
    name: str, shape: tuple[int, ...], field: str, axes: tuple[int, ...]
) -> tuple[int, ...]:
    """Axes that were named, counted from the first."""
    ndim = len(shape)
    if any(not -ndim <= a < ndim for a in axes) or len({a % ndim for a in axes}) < len(
        axes
    ):
        raise errors.wrong(
            f"granularity.{field}",
            axes[0] if len(axes) == 1 else axes,
            f"different axes of {name!r}, which has the shape {shape}",
        )
    return tuple(a % ndim for a in axes)
