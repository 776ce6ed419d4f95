"""Tickets without their dead units: smaller dense arrays, and sparse ones, for use.

A unit (a neuron, a channel) is *dead* if no path of surviving weights leads from it to the
outputs. `shrink` removes dead units with everything that indexes them: their kernels'
columns and rows, biases, norms and running statistics. `expand` puts the rest back.

**Why this is exact.** Let D be the set of dead units. Every surviving weight that reads a
unit of D makes a unit of D, else there would be a path; off the mask weights are 0.

- *Function.* A unit outside D therefore gets 0 times finite numbers from D. Biases, ReLU,
  pooling, flattening and BatchNorm act on each unit alone and a residual connection ties
  units of one group, so nothing else mixes units: what D holds reaches no output.
- *Gradients.* Outputs do not depend on what D holds, and backpropagation finds exactly
  that: the gradient in a unit of D is a sum of products with weights that are 0 or with
  gradients in other units of D, so exactly 0, beginning at the outputs. Hence the gradients
  in all that is made for D alone (incoming weights, biases, scales) are exactly 0. A
  surviving weight outside reads and makes units outside D, and its gradient is a product of
  an activation and a gradient that D does not change. (Weights *out of* D have gradients;
  they are off the mask, where `transforms.masked` drops them, or lead into D.)

Equal means equal up to the order of summation: sums over fewer terms may be rounded in
another order. Activations must be finite: 0 times infinity is nan.

**What that means for training.** One rule per weight (SGD, momentum, Adam) moves what is
left just as in the full network, if the moments are shrunk too (`take`). Weight decay
shrinks the incoming weights of dead units, which does not show in the function.
Clipping by the global norm adds zeros for them, unless decay is added before it. What
combines the weights of a leaf sees fewer of them: trust ratios (LARS, LAMB) and factored
or orthogonalised moments (Adafactor, Muon) are **not** reproduced.

**What stays.** A unit without incoming weights is a constant, not dead: its bias still
acts and is trained. Inputs stay, read or not, and so do outputs. A group (a layer, or the
residual stream of a stage) of which all units are dead keeps its first, so that no axis is
empty; nothing that counts reads it. What is left is as sparse as before wherever units
live: the smaller mask goes with it.

Shapes depend on the mask, so all of this runs on the host, on one network at a time; not
under `jit` or `vmap`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import masks, models
from lottery_jax.types import Array, Mask, ModelState, Network, Params, PyTree

Units: TypeAlias = dict[str, np.ndarray]
"""For each group of units one array."""


class Masked(Protocol):
    """Anything with weights and a mask: a `tickets.Ticket`, a `TrainState`, a `Subnetwork`.

    Weights off the mask count as 0, whatever they are.
    """

    @property
    def params(self) -> Params:
        """The weights."""

    @property
    def mask(self) -> Mask:
        """Which of them survive."""

    @property
    def model_state(self) -> ModelState:
        """BatchNorm statistics, `{"batch_stats": ...}`, or empty."""


class Subnetwork(NamedTuple):
    """A network and its mask.

    Attributes:
      params: the weights; 0 off the mask in everything that this module returns.
      mask: structure and shapes of `params`, bool; True = the weight survives.
      model_state: BatchNorm statistics, `{"batch_stats": ...}`, or empty.
    """

    params: Params
    mask: Mask
    model_state: ModelState = {}


class Compacted(NamedTuple):
    """A network without its dead units, and where it belongs.

    `model.apply({"params": small.params, **small.model_state}, x)` is the function of the
    full network, with the same model; `mask` goes to `transforms.masked`.

    Attributes:
      params: the smaller arrays; 0 off the mask.
      mask: structure and shapes of `params`, bool.
      model_state: the smaller statistics.
      kept: for each group the units that are left, ascending, int `[kept]`.
      widths: for each group the number of units in the full network.
    """

    params: Params
    mask: Mask
    model_state: ModelState
    kept: Units
    widths: dict[str, int]


# --- which units ----------------------------------------------------------------------


def removable(axes: models.Axes, mask: Mask) -> Units:
    """Which units are dead, and can go without changing the function or a gradient.

    Args:
      axes: of every leaf, from `models.units`. Leaves of two or more dimensions are
        kernels, which read the units of their last axis but one and make those of the
        last.
      mask: of one network, bool arrays. Not traced.

    Returns:
      For each group a bool array `[units]`, True = dead. At least one entry of each is
      False; where all units are dead that is the first.

    Raises:
      ValueError: axes that do not fit the mask; names the leaf.
    """
    widths = _widths(axes, mask)
    links: list[tuple[str | None, str | None, np.ndarray]] = []
    for path, leaf in _leaves(mask):
        if leaf.ndim >= 2:
            before, after = axes[path][-2:]
            # [window, repeats, units read, repeats, units made]; inputs and classes are
            # units here that no group holds.
            parts = leaf.reshape(
                -1,
                before.repeats,
                leaf.shape[-2] // before.repeats,
                after.repeats,
                leaf.shape[-1] // after.repeats,
            )
            tied = np.asarray(parts.any(axis=(0, 1, 3)))
            links.append((before.group, after.group, tied))
    # From the outputs backwards until nothing more is reached. Beginning with nothing, and
    # not with everything, finds also units that only read each other (in a residual stream).
    alive = {group: np.zeros(width, bool) for group, width in widths.items()}
    count = -1
    while count != (count := sum(int(a.sum()) for a in alive.values())):
        for reads, makes, tied in links:
            if reads is not None:
                reached = tied if makes is None else tied[:, alive[makes]]
                alive[reads] |= reached.any(axis=1)
    for units in alive.values():
        if not units.any():
            units[0] = True
    return {group: ~units for group, units in alive.items()}


def take(axes: models.Axes, tree: PyTree, kept: Units) -> PyTree:
    """The part of a tree that belongs to the kept units.

    For `params`, a mask, or a part of an optimizer's state with the structure of params
    (`opt_state[0].mu` of Adam).

    Args:
      axes: of every leaf of the tree, for the full network.
      tree: full arrays. Any dtype; not traced.
      kept: for each group the units to take, int `[kept]`.

    Returns:
      The tree with smaller arrays.

    Raises:
      ValueError: axes that do not fit the tree; names the leaf.
    """
    widths = _widths(axes, tree)
    return _taken(axes, tree, kept, widths)


# --- smaller and back -----------------------------------------------------------------


def shrink(model: nn.Module, network: Masked) -> Compacted:
    """Removes the dead units of a network: fewer weights, the same function.

    Args:
      model: a model of `lottery_jax.models`, of the full or an already smaller network.
      network: a ticket, a training state, `Subnetwork(params, mask)` ...; float arrays of
        one network, without a replica axis.

    Returns:
      The smaller network. Shrinking it again removes nothing more.

    Raises:
      ValueError: another kind of model, a mask that does not fit the weights, or leaves
        that are not those of the model; names the leaf.

    Example:
      >>> model = lj.models.make("mlp-3", num_classes=1)
      >>> ones = lambda *shape: jnp.ones(shape)
      >>> params = {
      ...     "dense_0": {"kernel": ones(4, 3), "bias": ones(3)},
      ...     "head": {"kernel": ones(3, 1), "bias": ones(1)},
      ... }
      >>> mask = lj.masks.ones_like(params)
      >>> mask["head"]["kernel"] = mask["head"]["kernel"].at[1].set(False)
      >>> small = lj.compact.shrink(model, lj.compact.Subnetwork(params, mask))
      >>> small.kept["dense_0"].tolist(), small.params["dense_0"]["kernel"].shape
      ([0, 2], (4, 2))
    """
    masks.check(network.mask, network.params)
    axes = models.units(model, network.params)
    state_axes = models.state_units(model, network.params, network.model_state)
    # Before anything is looked up by shapes that may not fit.
    widths = _widths(axes, network.params)
    dead = removable(axes, network.mask)
    kept = {group: np.flatnonzero(~units) for group, units in dead.items()}
    mask = take(axes, network.mask, kept)
    params = masks.apply(mask, take(axes, network.params, kept))
    state = _taken(state_axes, network.model_state, kept, widths)
    return Compacted(params, mask, state, kept, widths)


def expand(
    model: nn.Module, compacted: Compacted, like: Masked | None = None
) -> Subnetwork:
    """Puts a smaller network back into the full shapes.

    What is left of the network (trained on or not) is copied to its places, bit for bit.
    The removed entries, which act on nothing, become those of `like`: so
    `expand(model, shrink(model, network), like=network)` is `network`, masked, bit for
    bit. Without `like` they become 0 (variances 1), and the mask there is False in
    kernels, so that weights which led nowhere no longer count as survivors, and True in
    biases and norms, as everywhere.

    Args:
      model: the one it was shrunk with.
      compacted: from `shrink`; params and model state may have changed since.
      like: the full network that the removed entries are taken from.

    Returns:
      The full network, masked.

    Raises:
      ValueError: another kind of model; a mask that does not fit the weights, or a
        network that does not fit `kept` or `like`; names the leaf.
    """
    masks.check(compacted.mask, compacted.params)
    axes = models.units(model, compacted.params)
    axes |= models.state_units(model, compacted.params, compacted.model_state)
    trees = (compacted.params, compacted.mask, compacted.model_state)
    widths = _widths(axes, compacted.params)
    for group, units in compacted.kept.items():
        if len(units) != widths.get(group):
            raise ValueError(
                f"kept has {len(units)} units of {group!r}; params have "
                f"{widths.get(group)}"
            )

    def shape(path: str, leaf: np.ndarray) -> tuple[int, ...]:
        return tuple(
            size if axis.group is None else axis.repeats * compacted.widths[axis.group]
            for axis, size in zip(axes[path], leaf.shape)
        )

    def empty(path: str, leaf: np.ndarray) -> np.ndarray:
        if leaf.dtype == np.bool_:
            return np.full(shape(path, leaf), leaf.ndim < 2)
        filling = 1 if path in axes and path.endswith("/var") else 0
        return np.full(shape(path, leaf), filling, leaf.dtype)

    if like is None:
        full = tuple(_mapped(empty, tree) for tree in trees)
    else:
        full = (like.params, like.mask, like.model_state)
        for name, tree, small in zip(("params", "mask", "model_state"), full, trees):
            _check_like(name, tree, small, shape)

    def put(full_tree: PyTree, tree: PyTree) -> PyTree:
        targets = dict(_leaves(full_tree))

        def one(path: str, leaf: np.ndarray) -> Array:
            target = targets[path].copy()
            place = _index(axes[path], leaf.shape, compacted.kept, compacted.widths)
            target[place] = leaf
            return jnp.asarray(target)

        return _mapped(one, tree)

    params, mask, state = (put(a, b) for a, b in zip(full, trees))
    return Subnetwork(masks.apply(mask, params), mask, state)


class Saving(NamedTuple):
    """What removing the dead units saves, in weights of the prunable leaves.

    Attributes:
      before: prunable weights of the full network, dead and alive.
      after: those of the smaller one.
      surviving_before: weights on the mask.
      surviving_after: those on the smaller mask; the others led nowhere.
    """

    before: int
    after: int
    surviving_before: int
    surviving_after: int

    @property
    def share(self) -> float:
        """The share of the full network's prunable weights that is gone, in [0, 1)."""
        return 1 - self.after / self.before


def saving(
    network: Masked, compacted: Masked, prunable: masks.PrunableLike = None
) -> Saving:
    """Counts the weights before and after.

    Args:
      network: the full network.
      compacted: the smaller one.
      prunable: which leaves count; a pytree or a function, as in `masks.count`.
    """
    whole = [masks.total(n.mask, prunable) for n in (network, compacted)]
    alive = [int(masks.count(n.mask, prunable)) for n in (network, compacted)]
    return Saving(*whole, *alive)


# --- for inference --------------------------------------------------------------------


def export_dense(model: nn.Module, network: Masked) -> Network:
    """The weights and statistics to infer with: without dead units, 0 off the mask.

    Args:
      model: see `shrink`.
      network: see `shrink`.

    Returns:
      What `model.apply({"params": params, **model_state}, x)` takes.

    Raises:
      ValueError: see `shrink`.
    """
    small = shrink(model, network)
    return Network(small.params, small.model_state)


class SparseMLP(NamedTuple):
    """An MLP with sparse kernels, from `to_bcoo`; a pytree.

    Attributes:
      kernels: of each layer, the output layer last: BCOO matrices `[C_in, C_out]` with one
        entry per surviving weight, in row-major order.
      biases: dense, `[C_out]` each.
    """

    kernels: tuple[Any, ...]
    biases: tuple[Array, ...]


def to_bcoo(
    model: nn.Module, network: Masked, index_dtype: Any = jnp.int32
) -> SparseMLP:
    """The surviving weights of an MLP as sparse matrices (`jax.experimental.sparse`).

    Dead units are not removed: give it the result of `shrink` for that.

    Args:
      model: an `MLP`.
      network: its weights and mask, full or shrunk.
      index_dtype: of the two indices per entry, an integer type.

    Returns:
      The network for `apply_bcoo`. An entry takes the bytes of its weight and of two
      indices: with float32 and int32 a kernel above a density of a third takes more bytes
      than the dense one.

    Raises:
      ValueError: a model that is no `MLP` (kernels of convolutions have four dimensions,
        BCOO products two), a mask that does not fit, or an index type that cannot hold the
        indices of a layer; names it.
    """
    from jax.experimental import sparse

    if not isinstance(model, models.MLP):
        raise ValueError(
            f"to_bcoo: model is a {type(model).__name__}; valid: an MLP, whose kernels "
            "are matrices (convolutions and residual connections: export_dense)"
        )
    masks.check(network.mask, network.params)
    kernels, biases = [], []
    for name in [*(f"dense_{i}" for i in range(len(model.widths))), "head"]:
        kernel, mask = (
            np.asarray(tree[name]["kernel"]) for tree in (network.params, network.mask)
        )
        largest = max(kernel.shape) - 1
        if largest > jnp.iinfo(index_dtype).max:
            raise ValueError(
                f"index_dtype is {jnp.dtype(index_dtype)}; valid: one that holds "
                f"{largest}, the largest index of {name}/kernel"
            )
        places = np.argwhere(mask).astype(index_dtype)
        kernels.append(
            sparse.BCOO(
                (jnp.asarray(kernel[mask]), jnp.asarray(places)),
                shape=kernel.shape,
                indices_sorted=True,
                unique_indices=True,
            )
        )
        bias = network.params[name]["bias"]
        biases.append(jnp.where(network.mask[name]["bias"], bias, jnp.zeros_like(bias)))
    return SparseMLP(tuple(kernels), tuple(biases))


def apply_bcoo(network: SparseMLP, x: Array) -> Array:
    """The function of the MLP, by sparse products; works under `jit` and `vmap`.

    Args:
      network: from `to_bcoo`.
      x: `[B, ...]`, float.

    Returns:
      Logits `[B, num_classes]`.
    """
    x = x.reshape(x.shape[0], -1)
    for i, (kernel, bias) in enumerate(zip(network.kernels, network.biases)):
        x = jax.nn.relu(x) if i else x
        x = x @ kernel
        x = x + jnp.broadcast_to(bias, x.shape)
    return x


def nbytes(tree: PyTree) -> int:
    """Bytes of all arrays of a pytree: of params, of a `SparseMLP`, of a packed mask."""
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


class Sizes(NamedTuple):
    """Bytes of the parameters of a network (without its model state) in several forms.

    Attributes:
      dense: full arrays, zeros included.
      compacted: arrays without the dead units.
      bcoo: sparse kernels without the dead units, indices included, and dense biases;
        None for models that are no `MLP`.
      packed: one bit per weight of the full network and the values of the survivors, which
        is what a stored ticket holds (`tickets.save`); it must be unpacked to be used.
    """

    dense: int
    compacted: int
    bcoo: int | None
    packed: int


def sizes(model: nn.Module, network: Masked, index_dtype: Any = jnp.int32) -> Sizes:
    """The bytes of a network in each form.

    Args:
      model: see `shrink`.
      network: see `shrink`.
      index_dtype: see `to_bcoo`.

    Raises:
      ValueError: see `shrink` and `to_bcoo`.
    """
    small = shrink(model, network)
    bcoo = None
    if isinstance(model, models.MLP):
        bcoo = nbytes(to_bcoo(model, small, index_dtype))
    values = sum(
        int(np.sum(mask)) * leaf.dtype.itemsize
        for mask, leaf in zip(
            jax.tree.leaves(network.mask), jax.tree.leaves(network.params)
        )
    )
    return Sizes(
        nbytes(network.params),
        nbytes(small.params),
        bcoo,
        nbytes(masks.pack(network.mask).bits) + values,
    )


# --- trees by key path ----------------------------------------------------------------


def _leaves(tree: PyTree) -> Iterator[tuple[str, np.ndarray]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield masks.leaf_path(path), np.asarray(leaf)


def _mapped(function: Any, tree: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(masks.leaf_path(path), np.asarray(leaf)), tree
    )


def _taken(
    axes: models.Axes, tree: PyTree, kept: Units, widths: Mapping[str, int]
) -> PyTree:
    return _mapped(
        lambda path, leaf: jnp.asarray(
            leaf[_index(axes[path], leaf.shape, kept, widths)]
        ),
        tree,
    )


def _widths(axes: models.Axes, tree: PyTree) -> dict[str, int]:
    """The number of units of each group, which all leaves must agree on."""
    widths: dict[str, int] = {}
    for path, leaf in _leaves(tree):
        if path not in axes or len(axes[path]) != leaf.ndim:
            known = f"{len(axes[path])} dimensions" if path in axes else sorted(axes)
            raise ValueError(
                f"leaf {path!r} has shape {leaf.shape}; its model has {known} there (one "
                "network at a time, without a replica axis)"
            )
        for axis, size in zip(axes[path], leaf.shape):
            if axis.group is None:
                continue
            width, rest = divmod(size, axis.repeats)
            if rest or widths.setdefault(axis.group, width) != width:
                raise ValueError(
                    f"leaf {path!r} has shape {leaf.shape}; other leaves have "
                    f"{axis.repeats} x {widths.get(axis.group, width)} units of "
                    f"{axis.group!r}"
                )
    return widths


def _index(
    axes: Sequence[models.Axis],
    shape: Sequence[int],
    kept: Units,
    widths: Mapping[str, int],
) -> tuple[np.ndarray, ...]:
    """Where the kept units are found in a full leaf: an index for NumPy."""

    def along(axis: models.Axis, size: int) -> np.ndarray:
        if axis.group is None:
            return np.arange(size)
        starts = np.arange(axis.repeats)[:, None] * widths[axis.group]
        return (starts + kept[axis.group]).ravel()

    return np.ix_(*(along(axis, size) for axis, size in zip(axes, shape)))


def _check_like(name: str, tree: PyTree, small: PyTree, shape: Any) -> None:
    there = dict(_leaves(tree))
    for path, leaf in _leaves(small):
        wanted = shape(path, leaf)
        if path not in there or there[path].shape != wanted:
            has = f"shape {there[path].shape}" if path in there else "nothing"
            raise ValueError(f"like has {has} at {name} {path!r}; valid: {wanted}")
